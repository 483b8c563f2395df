"""What each part of the small model is worth: train it without, ask the same questions.

    python benchmarks/ablations.py                       every variant, in turn
    python benchmarks/ablations.py --only "no gates"     that one
    python benchmarks/ablations.py --time 10             seconds a step, no training

All variants get the same plan: seed, numbers of steps, and with them the same
batches. The two that give up the vision stage get its time as more joint steps. Each
is measured, in fp32, on the same questions of the validation split, and becomes one
line of notebooks/measured/ablations.json; a variant that has its line is skipped. A
training that was stopped goes on from .cache/ablations/. The package is used as it
is: whatever a variant changes, it changes from here.

One seed each. How far apart two seeds lie, the unchanged model says, on test pictures:

    python benchmarks/ablations.py --only "unchanged" --seed 1 --split test \\
        --count 500 --out notebooks/measured/seeds.json
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.global_vision import VisionModel
from mllama_lite.model import Mllama
from mllama_lite.small_model import training
from mllama_lite.small_model.evaluation import answers, exact_match, held_out
from mllama_lite.small_model.first_values import initialise, make_ranks, small_config
from mllama_lite.small_model.patches import PATCH_TARGETS, PATCH_WEIGHTS
from mllama_lite.small_model.scenes import load_masks
from mllama_lite.small_model.training import SAVE_EVERY, Plan, Pretrainer, draw_batch
from mllama_lite.tiles import image_to_tiles
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS
from mllama_lite.vlm import VLM

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "notebooks" / "measured" / "ablations.json"
STATES = ROOT / ".cache" / "ablations"


class FinalStateOnly(VisionModel):
    """A vision encoder whose output is the final state, with nothing kept on the way.

    The package's own joins the kept states and cannot join none.
    """

    def encode(self, pixel_values, aspect_ratio_ids, num_tiles):
        """See `VisionModel.encode`; [N, K, P, D]."""
        x, _ = super(VisionModel, self).forward(
            pixel_values, aspect_ratio_ids, num_tiles
        )
        x = self.layernorm_post(x)
        x = self.post_tile_positional_embedding(x, aspect_ratio_ids, num_tiles)
        x, _ = self.in_layers(self.global_transformer, x, num_tiles)
        return x[:, :, : self.config.num_patches]


@torch.no_grad()
def open_gates(model):
    """Fix every gate's tanh at 1, for good.

    The position gate divides: at 1 the vectors inside a tile are multiplied by 0, so
    they are no longer parameters.
    """
    for parameter in model.parameters():
        if parameter.numel() == 1:
            parameter.fill_(20.0).requires_grad_(False)  # tanh(20) is 1 in fp32
    model.vision_model.gated_positional_embedding.embedding.requires_grad_(False)


@torch.no_grad()
def forget_tiles(model):
    """Take away everything that says which tile a token is from, for good."""
    encoder = model.vision_model
    for part in (
        encoder.pre_tile_positional_embedding,
        encoder.post_tile_positional_embedding,
    ):
        for parameter in part.parameters():
            parameter.zero_().requires_grad_(False)
    positions = encoder.gated_positional_embedding
    positions.gate.zero_().requires_grad_(False)  # only positions inside a tile
    positions.tile_embedding.weight.requires_grad_(False)


def with_places(rows, more, image_id, counts, padding=0):
    """Rows in which the image token stands as often as its image has vision tokens.

    Args:
        rows: list of B int tensors [T_i], token ids with at most one image token each.
        more: list of B int tensors [T_i] to be stretched like the rows: the rows
            themselves, or their labels.
        image_id: the image token.
        counts: for each row, the number V_i of vision tokens of its image.
        padding: fills shorter rows on the right.

    Returns:
        int [B, longest T_i - 1 + V_i].
    """
    stretched = [
        other.repeat_interleave(torch.where(row == image_id, count, 1))
        for row, other, count in zip(rows, more, counts, strict=True)
    ]
    return nn.utils.rnn.pad_sequence(stretched, batch_first=True, padding_value=padding)


def states_with_images(model, tokens, vision):
    """Hidden states of a text whose image tokens are replaced by vision tokens.

    Args:
        model: Mllama without cross-attention layers.
        tokens: int [B, T] from `with_places`.
        vision: [n, D], the vision tokens of all rows in order, as many as there are
            image tokens.

    Returns:
        [B, T, D].
    """
    places = tokens == model.config.image_token_index  # [B, T]
    assert places.sum() == len(vision), (places.sum(), vision.shape)

    def put(module, inputs, embedded):
        return embedded.masked_scatter(places[:, :, None], vision.to(embedded.dtype))

    hook = model.language_model.model.embed_tokens.register_forward_hook(put)
    try:
        return model.language_model.model(tokens)
    finally:
        hook.remove()


class PrependedTrainer(Pretrainer):
    """Trains a model that finds its image in the text, instead of looking at it."""

    def train_step(self, batch):
        """See `Pretrainer.train_step`, which takes the loss from its module."""
        with mock.patch.object(training, "answer_loss", prepended_answer_loss):
            return super().train_step(batch)


def prepended_answer_loss(model, batch, vision):
    """`answer_loss` for vision tokens in the place of the image token."""
    memory = vision.flatten(1, 2)  # [N, V, D]
    times, count = len(batch.tokens) // len(memory), memory.shape[1]
    image_id, counts = model.config.image_token_index, [count] * len(batch.tokens)
    tokens = with_places(batch.tokens, batch.tokens, image_id, counts)
    labels = with_places(batch.tokens, batch.labels, image_id, counts, -100)
    has_image = (batch.tokens == image_id).any(dim=1)  # [N·Q]
    seen = memory.repeat_interleave(times, dim=0)[has_image]  # [rows with one, V, D]
    hidden = states_with_images(model, tokens, seen.flatten(0, 1))
    wanted = labels >= 0
    logits = model.language_model.lm_head(hidden[wanted])  # [answers, W]
    return F.cross_entropy(logits.float(), labels[wanted])


class PrependedVLM(VLM):
    """Answers with such a model; without a cache, the whole text is run every time."""

    @torch.inference_mode()
    def generate_batch(self, rows, images, max_new_tokens=64, stop_ids=None):
        """Greedy; see `VLM.generate_batch`. A row has at most one image."""
        side = self.config.vision.image_size
        tiles = [image_to_tiles(image, side) for row in images for image in row]
        encoded = iter(self.model.encode_images(tiles) if tiles else ())
        vision = [next(encoded) if row else None for row in images]
        stops = self.tokenizer.stop_ids if stop_ids is None else stop_ids
        results, running = [[] for _ in rows], list(range(len(rows)))
        for _ in range(max_new_tokens):
            logits = self.next_logits(
                [rows[i] + results[i] for i in running], [vision[i] for i in running]
            )
            for i, id in zip(running, logits.argmax(dim=-1).tolist()):
                results[i].append(id)
            running = [i for i in running if results[i][-1] not in stops]
            if not running:
                break
        return results

    def next_logits(self, rows, vision):
        """What follows each of several texts.

        Args:
            rows: list of B lists of token ids.
            vision: list of B: the vision tokens [V_i, D] of a row's image, or None.

        Returns:
            fp32 [B, W].
        """
        rows = [torch.tensor(row) for row in rows]
        counts = [1 if image is None else len(image) for image in vision]
        tokens = with_places(rows, rows, self.config.image_token_index, counts)
        width = self.config.text.hidden_size
        seen = [image for image in vision if image is not None]
        seen = torch.cat(seen) if seen else torch.empty(0, width)
        hidden = states_with_images(self.model, tokens, seen)  # [B, T, D]
        last = [len(row) + count - 2 for row, count in zip(rows, counts)]
        ends = hidden[torch.arange(len(rows)), torch.tensor(last)]  # [B, D]
        return self.model.language_model.lm_head(ends).float()


def later_step(vision_steps, joint_steps):
    """Where the questions' weights change: at the same share of the joint stage."""
    shipped = Plan()
    share = (shipped.later_step - shipped.vision_steps) / shipped.joint_steps
    return vision_steps + round(share * joint_steps)


def without_vision_stage(plan, seconds):
    """The same plan with one stage, which takes as long as both did."""
    if seconds is None:
        raise SystemExit(
            f"{BASELINE!r} has no line with this plan: expected one, whose seconds per "
            "step tell how long a training without vision stage may take; run it first."
        )
    more = round(plan.vision_steps * seconds["vision"] / seconds["joint"])
    joint_steps = plan.joint_steps + more
    return replace(
        plan,
        vision_steps=0,
        joint_steps=joint_steps,
        later_step=later_step(0, joint_steps),
    )


def without_patches(plan, seconds):
    """The same, and without the patch head's loss."""
    return replace(without_vision_stage(plan, seconds), patch_weight=0.0)


@dataclass(frozen=True)
class Variant:
    """A model, or a way to train it, that differs from the shipped one in one thing.

    Attributes:
        name: of its line in the output.
        changed: what differs, in a clause.
        note: what to know when reading its figures.
        text, vision: entries of TextConfig and VisionConfig that differ.
        vision_model: class of the vision encoder.
        freeze: called with the model in training, to fix some of its parameters.
        trainer, vlm: classes that train it and let it answer.
        plan: called with the common Plan and the baseline's seconds per step, gives its
            own.
    """

    name: str
    changed: str
    note: str = ""
    text: dict = field(default_factory=dict)
    vision: dict = field(default_factory=dict)
    vision_model: type = VisionModel
    freeze: Callable = lambda model: None
    trainer: type = Pretrainer
    vlm: type = VLM
    plan: Callable = lambda plan, seconds: plan


BASELINE = "unchanged"
VARIANTS = (
    Variant(BASELINE, "nothing is changed"),
    Variant(
        "no global layers",
        "the vision encoder ends after its local layers",
        "The final state is the local layers' output after its norm and the tile "
        "embedding. Two layers less: fewer parameters, and faster steps.",
        vision={"num_global_layers": 0},
    ),
    Variant(
        "no intermediate states",
        "the projector gets the final state alone",
        "The projector's input is a third as wide.",
        vision={"intermediate_layers_indices": ()},
        vision_model=FinalStateOnly,
    ),
    Variant(
        "no gates",
        "the tanh of every gate is fixed at 1",
        "Global and cross-attention layers are plain residual layers from the first "
        "step, and tile embeddings are added whole. The position gate divides between "
        "two tables: at 1 only the one by canvas is left, and the one inside a tile, "
        "multiplied by 0, is not trained and not counted.",
        freeze=open_gates,
    ),
    Variant(
        "no tile embeddings",
        "nothing says which tile a vision token is from",
        "Both tile embeddings are 0 and the position gate is fixed at 0: what is left "
        "is the position inside a tile. Attention does not tell tiles apart by their "
        "order. Black padding at the right and at the bottom still shows some edges of "
        "the canvas.",
        freeze=forget_tiles,
    ),
    Variant(
        "cross-attention before every layer",
        "four cross-attention layers, one before each self-attention layer",
        "One layer more; the first looks at the image before any text was mixed.",
        text={"num_hidden_layers": 8, "cross_attention_layers": (0, 2, 4, 6)},
    ),
    Variant(
        "one cross-attention layer",
        "one cross-attention layer, before the last of the four self-attention layers",
        "Two layers less: fewer parameters, and faster steps.",
        text={"num_hidden_layers": 5, "cross_attention_layers": (3,)},
    ),
    Variant(
        "prepended tokens",
        "vision tokens stand in the text in the image token's place, without "
        "cross-attention",
        "Seven self-attention layers, so that depth and parameters are nearly equal. "
        "Vision tokens have positions in the text, pass through every layer of the "
        "decoder, and see only those before them. An image makes the text 16 to 67 "
        "tokens longer, and steps slower: equal steps aren't equal time here.",
        text={"num_hidden_layers": 7, "cross_attention_layers": ()},
        trainer=PrependedTrainer,
        vlm=PrependedVLM,
    ),
    Variant(
        "no vision warm-up",
        "answers and patches are learned together from the first step",
        "The time of the vision stage, by the baseline's seconds per step, is given to "
        "more joint steps. With other numbers of steps come other batches, and things "
        "are distorted fully from the second step on.",
        plan=without_vision_stage,
    ),
    Variant(
        "no patch loss",
        "only the answers teach",
        "As many joint steps as without vision warm-up. Its patch losses are those of "
        "a head that never learns.",
        plan=without_patches,
    ),
)


def new_trainer(variant, plan):
    """A variant's Pretrainer at its first step; see `training.new_trainer`."""
    ranks = make_ranks()
    config = small_config(len(ranks) + NUM_SPECIAL_TOKENS)
    config = replace(
        config,
        text=replace(config.text, **variant.text),
        vision=replace(config.vision, **variant.vision),
    )
    model = Mllama(config)
    model.vision_model = variant.vision_model(config.vision)
    initialise(model, plan.seed)
    trainer = variant.trainer(plan, model, ranks, load_masks("train"))
    # Only now: the Pretrainer puts hooks on tables that can learn.
    variant.freeze(model)
    return trainer


def stage_of(step, plan):
    """Which stage a step belongs to."""
    return "joint" if step >= plan.vision_steps else "vision"


def train(variant, plan, folder=STATES, workers=1):
    """Train a variant to the end of its plan, or go on where it was stopped.

    Args:
        variant: Variant.
        plan: its own Plan.
        folder: path, where the state is kept.
        workers: see `Pretrainer.batches`.

    Returns:
        (Pretrainer, dict from stage to median seconds per step, waiting for the batch
        included: a few steps beside something else do not count).
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:8]
    state = folder / f"{variant.name.replace(' ', '-')}-{digest}.pt"
    clock = state.with_suffix(".json")
    trainer, times = new_trainer(variant, plan), {}  # seconds of each step, by stage
    if state.is_file():
        trainer.load(state)
        times = json.loads(clock.read_text())
    last = None
    for batch in trainer.batches(plan.steps, workers):
        stage = stage_of(trainer.step, plan)
        trainer.train_step(batch)
        if last is not None:  # the first step waits for the worker to start
            seconds = round(time.perf_counter() - last, 4)
            times.setdefault(stage, []).append(seconds)
        if trainer.step % SAVE_EVERY == 0 or trainer.step == plan.steps:
            write(clock, json.dumps(times))
            trainer.save(state)
            show_progress(variant, trainer)
        last = time.perf_counter()  # saving is not counted
    return trainer, {stage: statistics.median(each) for stage, each in times.items()}


def show_progress(variant, trainer):
    """One line with the losses of the last 50 steps."""
    line = f"{variant.name}: step {trainer.step} of {trainer.plan.steps}"
    if trainer.history:
        latest = trainer.history[-1]
        line += f", answers {latest['answers']:.3f}, patches {patch_loss(latest):.3f}"
    print(line, flush=True)


def patch_loss(entry):
    """Weighted mean of the patch head's losses, as training has it."""
    losses = [entry["patches"][name] for name in PATCH_TARGETS]
    return sum(w * loss for w, loss in zip(PATCH_WEIGHTS, losses)) / len(losses)


def thinned(history, plan, most=50):
    """Means of consecutive entries, so that about `most` of them are left.

    Args:
        history: see Pretrainer.
        plan: Plan.
        most: entries.

    Returns:
        list of [last step, loss of the answers or None, loss of the patches]; None
        before the joint stage, and where a mean would reach back before it.
    """
    size, points = -(-len(history) // most), []
    for first in range(0, len(history), max(size, 1)):
        part = history[first : first + size]
        begins = part[0]["step"] - 50
        asked = begins >= plan.vision_steps
        losses = (
            sum(entry["answers"] for entry in part) / len(part) if asked else None,
            sum(map(patch_loss, part)) / len(part),
        )
        rounded = [None if loss is None else round(loss, 4) for loss in losses]
        points.append([part[-1]["step"], *rounded])
    return points


def measured(variant, trainer, seconds, items):
    """A variant's line: what was changed, what it cost, what it can do."""
    plan, model = trainer.plan, trainer.model.eval()
    given = answers(variant.vlm(model, trainer.tokenizer), items)
    learned = [p.numel() for p in model.parameters() if p.requires_grad]
    return {
        "name": variant.name,
        "changed": variant.changed,
        "note": variant.note,
        "parameters": sum(learned),
        "plan": as_json(plan),
        "seconds_per_step": {stage: round(s, 4) for stage, s in seconds.items()},
        "machine": f"{platform.system()} on {platform.machine()}, CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "accuracy": {row: list(n) for row, n in exact_match(items, given).items()},
        "history": thinned(trainer.history, plan),
    }


def as_json(plan):
    """A plan as it is read back from a file: tuples are lists there."""
    return json.loads(json.dumps(asdict(plan)))


def find(records, name, plan, count):
    """The line of a variant with this plan and so many questions a row, or None."""
    wanted = (name, as_json(plan), count)
    return next((record for record in records if key(record) == wanted), None)


def key(record):
    """What tells a line from the others: variant, plan, questions in each row."""
    counts = [total for row, (_, total) in record["accuracy"].items() if row != "all"]
    return record["name"], record["plan"], counts[0]


def read(path):
    """The lines written so far."""
    return json.loads(path.read_text()) if path.is_file() else []


def add(path, record):
    """Write a line; lines stay in the order of VARIANTS."""
    names = [variant.name for variant in VARIANTS]
    records = [other for other in read(path) if key(other) != key(record)]
    records.append(record)
    records.sort(key=lambda record: names.index(record["name"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")


def write(path, text):
    """Write a file aside and rename it: it is never half there."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def run(variants, plan, count, out, folder=STATES, workers=1, split="validation"):
    """Train and measure variants, those that have their line already excepted.

    Args:
        variants: list of Variant.
        plan: the common Plan.
        count: questions in each row.
        out: path of the output file.
        folder, workers: see `train`.
        split: whose questions are asked.

    Raises:
        SystemExit: a variant needs the baseline's seconds per step, and it has no line.
    """
    items = None
    for variant in variants:
        baseline = find(read(out), BASELINE, plan, count)
        own = variant.plan(plan, baseline and baseline["seconds_per_step"])
        if find(read(out), variant.name, own, count):
            print(f"{variant.name}: in {out} already", flush=True)
            continue
        trainer, seconds = train(variant, own, folder, workers)
        items = items or held_out(split, count)
        record = measured(variant, trainer, seconds, items)
        add(out, record)
        right, total = record["accuracy"]["all"]
        print(f"{variant.name}: {right} of {total} right", flush=True)


def time_steps(variants, plan, count):
    """Print seconds per step, the variants in turn on the same batches.

    Medians; "x baseline" is the median over pairs of joint steps with the same batch.
    """
    trainers = {
        v.name: new_trainer(v, v.plan(plan, {"vision": 1, "joint": 1}))
        for v in variants
    }
    first = next(iter(trainers.values()))
    vision = first.model.config.vision
    seconds = {name: {"vision": [], "joint": []} for name in trainers}
    for stage, start in (("vision", 0), ("joint", plan.vision_steps)):
        for i in range(-1, count):
            batch = draw_batch(
                plan, start + max(i, 0), first.masks, first.tokenizer, vision, start > 0
            )
            for name, trainer in trainers.items():
                own = trainer.plan
                if stage == "vision" and not own.vision_steps:
                    continue
                trainer.step = max(i, 0) + (own.vision_steps if start else 0)
                begun = time.perf_counter()
                trainer.train_step(batch)
                if i >= 0:  # the first of each is for warming up
                    seconds[name][stage].append(time.perf_counter() - begun)
    medians = {
        name: {
            stage: statistics.median(each or [0.0]) for stage, each in stages.items()
        }
        for name, stages in seconds.items()
    }
    print(f"{'':36}{'parameters':>10}  vision  joint s  x baseline  {'hours':>6}")
    for variant in variants:
        own, each = variant.plan(plan, medians[BASELINE]), medians[variant.name]
        pairs = zip(seconds[variant.name]["joint"], seconds[BASELINE]["joint"])
        ratio = statistics.median(mine / base for mine, base in pairs)
        model = trainers[variant.name].model
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        hours = own.vision_steps * each["vision"] + own.joint_steps * each["joint"]
        print(
            f"{variant.name:36}{size:10,}  {each['vision']:6.3f}  "
            f"{each['joint']:7.3f}  {ratio:10.2f}  {hours / 3600:6.2f}"
        )


def main():
    def whole(text):
        if int(text) < 2:
            raise argparse.ArgumentTypeError(f"{text}: expected 2 or more")
        return int(text)

    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps-vision", type=whole, default=1200)
    parser.add_argument("--steps-joint", type=whole, default=800)
    parser.add_argument("--decay", type=whole, default=600, help="steps, of the joint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument(
        "--count", type=whole, default=100, help="questions in each row"
    )
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--time", type=whole, help="time so many steps of each instead")
    options = parser.parse_args()
    plan = Plan(
        seed=options.seed,
        vision_steps=options.steps_vision,
        joint_steps=options.steps_joint,
        decay_steps=options.decay,
        later_step=later_step(options.steps_vision, options.steps_joint),
    )
    chosen = [v for v in VARIANTS if v.name in (options.only or names)]
    if options.time:
        baseline = [v for v in VARIANTS if v.name == BASELINE]
        time_steps(
            baseline + [v for v in chosen if v.name != BASELINE], plan, options.time
        )
    else:
        run(chosen, plan, options.count, options.out, split=options.split)


if __name__ == "__main__":
    main()
