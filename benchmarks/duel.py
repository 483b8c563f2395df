"""Images looked at, or images read: the duel of chapter 17.

    python benchmarks/duel.py                    every variant, in turn
    python benchmarks/duel.py --only "16, prefix" --seed 1
    python benchmarks/duel.py --cost             bytes and milliseconds, without training

One encoder learns first, alone, to say what is under each patch; all variants begin with it.
Then each learns to answer questions for as many steps, on the same batches, with a decoder of as
many layers: one looks at the vision tokens by cross-attention, the others have them in front of the
question, 16 or 4 for each tile, and read them from left to right or all at once. A training
that was stopped goes on from trained/duel/. Each becomes one line of
notebooks/measured/duel.json; a variant that has its line is skipped.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from mllama_lite.errors import InputError
from mllama_lite.families.prepended import (
    Prepended,
    PrependedConfig,
    PrependedSession,
    prefix_mask,
    put_images,
)
from mllama_lite.families.projectors import LinearProjector, ShuffleProjector
from mllama_lite.files import written_aside
from mllama_lite.generation import Session
from mllama_lite.model import Mllama
from mllama_lite.resumable import Resumable, decayed, quick_arithmetic
from mllama_lite.small_model.evaluation import answers, exact_match, held_out
from mllama_lite.small_model.first_values import (
    initialise,
    make_ranks,
    share_places,
    small_config,
)
from mllama_lite.small_model.scenes import load_masks
from mllama_lite.small_model.training import (
    Plan,
    Pretrainer,
    answer_loss,
    draw_batch,
    project,
)
from mllama_lite.tiles import image_to_tiles
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS, Tokenizer
from mllama_lite.training_folder import STATE, as_stored, checksum, only_training
from mllama_lite.vlm import VLM

ROOT = Path(__file__).resolve().parent.parent
FOLDER, OUT = ROOT / "trained" / "duel", ROOT / "notebooks" / "measured" / "duel.json"
SAVE_EVERY = 100  # steps

PLAN = Plan(vision_steps=1200, joint_steps=1000, decay_steps=600, later_step=1600)


@dataclass(frozen=True)
class Variant:
    """How a decoder gets to see an image.

    Attributes:
        name: of its line.
        tokens: of a tile that stand in the text; 0 for cross-attention.
        prefix: whether what stands before the answer sees itself in both directions.
    """

    name: str
    tokens: int
    prefix: bool = False


VARIANTS = (
    Variant("cross-attention", 0),
    Variant("16, causal", 16),
    Variant("4, causal", 4),
    Variant("16, prefix", 16, True),
    Variant("4, prefix", 4, True),
)


class TiledPrepended(Prepended):
    """The book's vision encoder, whose tiles know of each other, before a plain decoder."""

    def tile_tokens(self, pixel_values, aspect_ratio_ids, num_tiles):
        """Images with equally many valid tiles to tokens: [N, num_tiles·m, D]."""
        states = self.vision_tower.encode(pixel_values, aspect_ratio_ids, num_tiles)
        patches = states[:, :num_tiles, 1:].flatten(0, 1)  # without the class token
        tokens = self.multi_modal_projector(patches)  # [N·num_tiles, m, D]
        return tokens.unflatten(0, (-1, num_tiles)).flatten(1, 2)

    def encode_images(self, images):
        """See `Prepended.encode_images`."""
        return [
            self.tile_tokens(
                image.pixel_values[None].to(self.device, self.dtype),
                torch.tensor([image.aspect_ratio_id], device=self.device),
                image.num_tiles,
            )[0]
            for image in images
        ]


def new_model(variant, seed):
    """A variant's model with its first values; all of a seed begin with the same encoder."""
    ranks = make_ranks()
    config = small_config(len(ranks) + NUM_SPECIAL_TOKENS)
    if variant.tokens:  # as many layers, none of them of cross-attention
        text = replace(config.text, cross_attention_layers=())
        config = replace(config, text=text)
    whole = Mllama(config)
    initialise(whole, seed)
    if not variant.tokens:
        return whole, ranks
    torch.manual_seed(seed)
    sizes = config.vision.vision_output_dim, config.text.hidden_size
    projector = (
        LinearProjector(*sizes) if variant.tokens == 16 else ShuffleProjector(*sizes, 2)
    )
    settings = PrependedConfig(
        config.text,
        config.vision,
        config.image_token_index,
        variant.tokens,
        variant.prefix,
        config.eos_token_ids,
    )
    return TiledPrepended(
        settings, whole.vision_model, projector, whole.language_model
    ), ranks


def prepended_loss(model, batch):
    """`answer_loss` of a model whose images are tokens."""
    image_id = model.config.image_token_index
    seen = model.tile_tokens(
        batch.pixel_values, batch.aspect_ratio_ids, batch.num_tiles
    )  # [N, V, D]
    times, count = len(batch.tokens) // len(seen), seen.shape[1]
    has_image = (batch.tokens == image_id).any(dim=1)  # [N·Q]
    longest = batch.tokens.shape[1] + count - 1
    tokens = batch.tokens.new_zeros(len(batch.tokens), longest)
    labels = torch.full_like(tokens, -100)
    for i, (row, wanted) in enumerate(zip(batch.tokens, batch.labels)):
        each = torch.where(row == image_id, count, 1)
        stretched = row.repeat_interleave(each)
        tokens[i, : len(stretched)] = stretched
        labels[i, : len(stretched)] = wanted.repeat_interleave(each)
    decoder, places = model.language_model.model, tokens == image_id
    embeddings = decoder.embed_tokens(tokens.masked_fill(places, 0))
    vision = seen.repeat_interleave(times, dim=0)[has_image].flatten(0, 1)
    mask, learned = None, labels >= 0
    if model.config.prefix:  # up to the token that is followed by the first answer
        prompt = learned.int().argmax(dim=1) + 1
        here = torch.arange(longest, device=tokens.device).expand(len(tokens), -1)
        mask = prefix_mask(here, longest, prompt)
    hidden = decoder(
        None, mask=mask, embeddings=put_images(embeddings, places, vision)
    )  # [N·Q, T, D]
    logits = model.language_model.lm_head(hidden[learned])
    return F.cross_entropy(logits.float(), labels[learned])


class DuelTrainer(Resumable):
    """A variant that learns to answer."""

    def __init__(self, variant, plan, encoder):
        self.variant, self.plan = variant, plan
        self.model, ranks = new_model(variant, plan.seed)
        tower = self.model.vision_tower if variant.tokens else self.model.vision_model
        tower.load_state_dict(encoder)
        share_places(tower)
        self.tokenizer, self.masks = Tokenizer(ranks), load_masks("train")
        optimiser = torch.optim.AdamW(
            decayed(dict(self.model.named_parameters())),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            fused=True,
        )
        settings = as_stored(plan) | {
            "variant": variant.name,
            "encoder": checksum(encoder),
        }
        super().__init__(
            settings, plan.joint_steps, {"model": self.model}, optimiser, 3
        )

    def train_step(self):
        """Learn from the batch of this step, which is the same for all variants."""
        number = self.plan.vision_steps + self.step
        batch = draw_batch(
            self.plan,
            number,
            self.masks,
            self.tokenizer,
            self.model.config.vision,
        )
        begin = time.process_time()
        with quick_arithmetic(self.model.device):
            if self.variant.tokens:
                loss = prepended_loss(self.model, batch)
            else:
                loss = answer_loss(self.model, batch, project(self.model, batch))
        self.learn(loss, self.plan.learning_rate(number))
        spent = time.process_time() - begin
        self.sums += torch.tensor([1.0, loss.item(), spent])
        if self.step % 50 == 0:
            count, total, seconds = self.sums.tolist()
            note = {"step": self.step, "loss": total / count, "seconds": seconds}
            self.history.append(note)
            self.sums.zero_()


def train_encoder(plan, folder):
    """The encoder that all variants of a seed begin with: the first stage of chapter 11."""
    ranks = make_ranks()
    model = Mllama(small_config(len(ranks) + NUM_SPECIAL_TOKENS))
    initialise(model, plan.seed)
    trainer = Pretrainer(plan, model, ranks, load_masks("train"))
    goes_on(trainer, folder / STATE, plan.vision_steps, "encoder")
    return {name: t.clone() for name, t in model.vision_model.state_dict().items()}


def goes_on(trainer, state, until, name):
    """Train to a step, from where an earlier call was stopped."""
    if state.is_file():
        trainer.load(state)
    if isinstance(trainer, Pretrainer):
        batches = iter(trainer.batches(until, workers=0))
    while trainer.step < until:
        if isinstance(trainer, Pretrainer):
            trainer.train_step(next(batches))
        else:
            trainer.train_step()
        if trainer.step % SAVE_EVERY == 0 or trainer.step == until:
            trainer.save(state)
            print(name, trainer.step, flush=True)


def vlm_of(variant, model, tokenizer):
    """Asks a variant."""
    session = PrependedSession if variant.tokens else Session
    return VLM(model.eval(), tokenizer, session=session)


def measured(trainer, count):
    """One line: what a trained variant answers, and what it cost."""
    items = held_out("test", count, seed=0)
    vlm = vlm_of(trainer.variant, trainer.model, trainer.tokenizer)
    own, wrong = (answers(vlm, items, images) for images in ("own", "wrong"))
    by_tiles = {}
    vision = trainer.model.config.vision
    for item, answer in zip(items, own):
        tiles = image_to_tiles(item.image, vision.image_size, vision.max_num_tiles)
        right, total = by_tiles.get(tiles.num_tiles, (0, 0))
        hit = answer == item.question.answer
        by_tiles[tiles.num_tiles] = right + hit, total + 1
    return {
        "accuracy": exact_match(items, own),
        "wrong image": exact_match(items, wrong)["all"],
        "by tiles": dict(sorted(by_tiles.items())),
        "history": trainer.history,
        "seconds_per_step": statistics.median(
            note["seconds"] / 50 for note in trainer.history
        ),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def cost(variant, question, count=15):
    """What images cost a variant: bytes kept and milliseconds, by number and by tiles."""
    model, ranks = new_model(variant, 0)
    vlm = vlm_of(variant, model, Tokenizer(ranks))
    rows = []
    for images, tiles in ((1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (8, 4)):
        side = {1: (56, 56), 2: (112, 56), 4: (112, 112)}[tiles]
        picture = image_to_tiles(Image.new("RGB", side, "white"), 56, 4)
        assert picture.num_tiles == tiles
        markers = [model.config.image_token_index] * images
        row = [vlm.tokenizer.bos_id, *markers, *vlm.tokenizer.encode(question)]
        first, step = [], []
        for _ in range(count):
            session = vlm.session(model, 1, len(row) + 16 * tiles * images + 20)
            with torch.no_grad():
                begin = time.perf_counter()
                logits = session.extend([row], [[picture] * images])
                first.append(time.perf_counter() - begin)
                for _ in range(8):
                    begin = time.perf_counter()
                    logits = session.step(logits.argmax(-1))
                    step.append(time.perf_counter() - begin)
        rows.append(
            {
                "images": images,
                "tiles": tiles,
                "bytes": kept_bytes(session),
                "prompt ms": 1000 * statistics.median(first),
                "token ms": 1000 * statistics.median(step),
            }
        )
    return rows


def kept_bytes(session):
    """Bytes of keys and values of a session: its tokens in use, and its images."""
    cache, seen = session.cache, session.vision_cache
    used = cache.num_bytes * cache.length // cache.capacity
    if seen is not None:
        tensors = [*seen.keys.values(), *seen.values.values()]
        used += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return used


def read():
    """The lines that are there: {"variants": [...], "cost": {...}}."""
    known = {"variants": [], "cost": {}}
    return known | (json.loads(OUT.read_text()) if OUT.is_file() else {})


def put(change):
    """Change the file of lines; it is never half there."""
    lines = read()
    change(lines)
    with written_aside(OUT) as part:
        part.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def main():
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--count", type=int, default=200, help="questions in each row")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [v for v in VARIANTS if v.name in (options.only or names)]
    if options.cost:
        question = "Which digit is red?"
        found = {variant.name: cost(variant, question) for variant in chosen}
        put(lambda lines: lines["cost"].update(found))
        return
    for seed in options.seed:
        plan = replace(PLAN, seed=seed)
        for variant in chosen:
            keys = [(line["name"], line["seed"]) for line in read()["variants"]]
            if (variant.name, seed) in keys:
                continue
            folder = FOLDER / f"{variant.name.replace(', ', '-')}-{seed}"
            base = FOLDER / f"encoder-{seed}"
            for one in (folder, base):
                one.mkdir(parents=True, exist_ok=True)
            try:
                with only_training(base):
                    encoder = train_encoder(plan, base)
                with only_training(folder):
                    trainer = DuelTrainer(variant, plan, encoder)
                    goes_on(trainer, folder / STATE, plan.joint_steps, folder.name)
                    line = {"name": variant.name, "seed": seed}
                    line |= measured(trainer, options.count)
            except InputError as error:
                print(error)
                continue
            put(lambda lines, line=line: lines["variants"].append(line))
            right, total = line["accuracy"]["all"]
            print(f"{folder.name}: {right} of {total} right", flush=True)


if __name__ == "__main__":
    main()
