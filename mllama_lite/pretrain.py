"""Training a small Llama 3.2 Vision from nothing, on scenes that are drawn as it goes.

Built in chapter 11, notebooks/11_training.ipynb. A batch is a function of the seed and
the number of the step, so that training can stop anywhere and go on as if it had not.
"""

import json
import math
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mllama_lite.checkpoint import save_model
from mllama_lite.cross_attention import VisionContext
from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.inference import VLM
from mllama_lite.local_vision import VisionConfig
from mllama_lite.measure import answers, exact_match, held_out
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.processor_files import write_processor_files
from mllama_lite.scenes import (
    COLOURS,
    KINDS,
    MAX_THINGS,
    SIDES,
    THIRDS,
    UNKNOWN,
    WORDINGS,
    ask,
    draw_scene,
    load_masks,
)
from mllama_lite.tiles import canvases, choose_canvas, image_to_tiles, resized_size
from mllama_lite.tokenizer import (
    NUM_SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
    train_bpe,
)


def make_ranks():
    """A small vocabulary for Llama 3's tokenizer, learned from the questions.

    Returns:
        dict from a token's bytes to its rank, see `train_bpe`: every word of the
        questions and answers is one token.
    """
    import regex  # tiktoken needs it too

    things = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
    orders = ["from left to right", "from top to bottom"]
    slots = {
        "colour": list(COLOURS),
        "thing": things,
        "things": ["things", "objects", "digits", "numbers", "shapes"],
        "order": orders,
        "side": list(SIDES),
        "a": ["a", "an"],
    }
    lines = ["user", "assistant", "system", "\n\n", "yes", "no", "nothing", UNKNOWN]
    lines += [place for row in THIRDS for place in row]
    lines += [*things, ", ".join(things)]
    for trained, _ in WORDINGS.values():
        for wording in trained:
            for i in range(12):
                filled = {name: words[i % len(words)] for name, words in slots.items()}
                lines.append(wording.format(**filled))
    words = [w.encode() for line in lines for w in regex.findall(SPLIT_PATTERN, line)]
    # Twice, so that every word becomes one token: merging ends at what occurs once.
    return train_bpe(words * 2, 1000)


def small_config(vocab_size):
    """Sizes of the small model: the 11B's structure, but RoPE is not stretched.

    Args:
        vocab_size: W of its tokenizer.

    Returns:
        MllamaConfig.
    """
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=1024,
        cross_attention_layers=(1, 3, 5),
    )
    vision = VisionConfig(
        hidden_size=128,
        attention_heads=4,
        intermediate_size=512,
        num_hidden_layers=4,
        num_global_layers=2,
        image_size=56,
        intermediate_layers_indices=(1, 3),
    )
    first = vocab_size - NUM_SPECIAL_TOKENS
    return MllamaConfig(text, vision, vocab_size, (first + 1, first + 8, first + 9))


def sine_table(places, size):
    """Sines and cosines of places in a plane, at several wavelengths.

    Args:
        places: fp32 [..., 2].
        size: D, a multiple of 4.

    Returns:
        fp32 [..., D].
    """
    rates = 0.5 ** torch.arange(size // 4).mul(8 / (size // 4)) * math.pi / 2
    angles = (places[..., None] * rates).flatten(-2)  # [..., D/2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def initialise(model, seed=0, gate=0.3):
    """Give a new model its first values.

    Matrices are normal with variance 1 / inputs; those that write to the residual
    stream are made smaller by the number of their kind. Positions begin as sines, so
    that neighbours are alike from the start. Gates begin a little open: with both sides
    untrained there is nothing to protect, and a closed gate lets no gradient through to
    what is behind it.

    Args:
        model: Mllama.
        seed: of the random numbers.
        gate: first value of every gate.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter, std):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    text, vision = model.config.text, model.config.vision
    depth = {
        "language_model": 2 * text.num_hidden_layers,
        "vision_model": 2 * (vision.num_hidden_layers + vision.num_global_layers),
    }
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            writes = name.endswith(("o_proj", "down_proj", "fc2"))
            shrink = depth[name.split(".")[0]] ** -0.5 if writes else 1.0
            normal(module.weight, fan_in**-0.5 * shrink)
            if module.bias is not None:
                module.bias.zero_()
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 and "gate" in name:
            parameter.fill_(gate)
    normal(model.language_model.model.embed_tokens.weight, text.hidden_size**-0.5)
    encoder, size = model.vision_model, vision.hidden_size
    # Filters of patches begin smooth, as strokes are, and almost blind to plain paper.
    patch = encoder.patch_embedding.weight  # [D, 3, side, side]
    coarse = torch.randn(*patch.shape[:2], 5, 5, generator=generator)
    smooth = F.interpolate(coarse, patch.shape[2:], mode="bicubic", align_corners=True)
    smooth = smooth - 0.9 * smooth.mean(dim=(2, 3), keepdim=True)
    patch.copy_(smooth / smooth.std() * 1.5 * patch[0].numel() ** -0.5)
    normal(encoder.class_embedding, 1.0)
    side = vision.image_size // vision.patch_size
    grid = torch.cartesian_prod(*[torch.arange(side).float()] * 2)  # [P - 1, 2]
    inside = encoder.gated_positional_embedding
    inside.embedding[1:] = sine_table(grid, size)
    normal(inside.embedding[0], 0.5)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        normal(getattr(encoder, name).embedding.weight, 0.3)
    # Row i of the tables belongs to canvas i; its tiles lie side by side.
    for i, (rows, columns) in enumerate(canvases(vision.max_num_tiles), start=1):
        table = inside.tile_embedding.weight[i].view(inside.shape)  # [K, P, D]
        tiles = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        for tile, corner in zip(table, tiles.float()):
            tile[1:] = sine_table(grid + corner * side, size)
            tile[0] = sine_table(corner * side + (side - 1) / 2, size)
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            places = tile_places(vision.max_num_tiles)
            parts = module.weight.view(*places.shape, -1)  # [canvases + 1, K, ...]
            first = {place: i for i, place in enumerate(places.flatten().tolist())}
            same = torch.tensor([first[place] for place in places.flatten().tolist()])
            parts.copy_(parts.flatten(0, 1)[same].view_as(parts))
            parts[places < 0] = 0


def tile_places(max_tiles):
    """Where on its canvas each entry of a table by aspect_ratio_id lies.

    Args:
        max_tiles: K.

    Returns:
        int [canvases + 1, K]: K·row + column; -1 for tiles that a canvas does not have.
    """
    options = canvases(max_tiles)
    places = torch.full((len(options) + 1, max_tiles), -1)
    for i, (rows, columns) in enumerate(options, start=1):
        for tile in range(rows * columns):
            places[i, tile] = max_tiles * (tile // columns) + tile % columns
    return places


def share_places(vision_model):
    """Keep the vectors of one place alike on all canvases while they are trained.

    Meta's code has one vector for each row and column, and the hub's table repeats it
    for every canvas. Entries that begin alike and get the same gradient stay alike; apart,
    they would make a model that Meta's code cannot hold.

    Args:
        vision_model: VisionModel, initialised; its tables get a hook.
    """
    places = tile_places(vision_model.config.max_num_tiles)
    known = places.clamp(min=0).flatten()  # [(canvases + 1)·K]
    valid = (places >= 0).flatten()[:, None]

    def shared(gradient):
        here, there = valid.to(gradient.device), known.to(gradient.device)
        parts = gradient.unflatten(1, (places.shape[1], -1)).flatten(0, 1) * here
        sums = parts.new_zeros(int(known.max()) + 1, parts.shape[1])
        sums.index_add_(0, there, parts)
        return (sums[there] * here).view_as(gradient)

    for module in vision_model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.register_hook(shared)


# What the patch head says about each patch, and among how many answers it chooses.
PATCH_TARGETS = {
    "paper or thing": 2,
    "kind": len(KINDS),
    "colour": len(COLOURS),
    "from the left": MAX_THINGS,
    "from the top": MAX_THINGS,
    "column": 3,
    "row": 3,
}
PATCH_WEIGHTS = (1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # kinds are the hardest to tell


def patch_targets(scene, config):
    """What is under each patch of a scene: the truth that the scene was drawn from.

    Args:
        scene: Scene.
        config: VisionConfig.

    Returns:
        int [K·(P - 1), 7]: for every patch of every valid tile, in the order of
        PATCH_TARGETS, the answers for the thing that covers most of it; -100 where
        there is nothing to learn: no thing, or more things than are put in order.
    """
    width, height = scene.image.size
    tiles = image_to_canvas(scene.image, config)
    (rows, columns), (new_height, new_width) = tiles
    patch = config.patch_size
    side = config.image_size // patch
    targets = np.full((rows * side, columns * side, len(PATCH_TARGETS)), -100)
    targets[:, :, 0] = 0
    most = np.full(targets.shape[:2], 0.15)
    across = np.arange(columns * side) * patch
    down = np.arange(rows * side) * patch
    from_top = sorted(scene.things, key=lambda thing: thing.centre[1])
    few = len(scene.things) <= MAX_THINGS
    for i, thing in enumerate(scene.things):
        left, top, right, bottom = np.array(thing.box, dtype=float)
        inset = 0.12 * (right - left)
        xs = np.array([left + inset, right - inset]) * new_width / width
        ys = np.array([top + inset, bottom - inset]) * new_height / height
        covered_x = np.minimum(across + patch, xs[1]) - np.maximum(across, xs[0])
        covered_y = np.minimum(down + patch, ys[1]) - np.maximum(down, ys[0])
        share = covered_y.clip(0)[:, None] * covered_x.clip(0) / patch**2
        here = share > most
        most[here] = share[here]
        x, y = thing.centre
        targets[here] = (
            1,
            KINDS.index(thing.kind),
            list(COLOURS).index(thing.colour),
            i if few else -100,
            from_top.index(thing) if few else -100,
            min(int(3 * x / width), 2),
            min(int(3 * y / height), 2),
        )
    cut = targets.reshape(rows, side, columns, side, -1).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(cut.reshape(-1, len(PATCH_TARGETS)))


def image_to_canvas(image, config):
    """((rows, columns), (height, width)): an image's canvas and its size on it."""
    side = config.image_size
    canvas = choose_canvas(image.height, image.width, side, config.max_num_tiles)
    return canvas, resized_size(image.height, image.width, canvas, side)


class PatchHead(nn.Linear):
    """Says of each vision token what is under it; for training only, never shipped.

    Args:
        size: D of the projected vision tokens.
    """

    def __init__(self, size):
        super().__init__(size, sum(PATCH_TARGETS.values()))

    def loss(self, vision, targets):
        """Mean cross-entropy of each target.

        Args:
            vision: [N, K, P, D] projected tokens of the valid tiles.
            targets: int [N, K·(P - 1), 7].

        Returns:
            fp32 [7].
        """
        logits = self(vision[:, :, 1:]).flatten(0, 2).float()  # [N·K·(P - 1), answers]
        parts = logits.split(list(PATCH_TARGETS.values()), dim=-1)
        targets = targets.flatten(0, 1).unbind(-1)
        # Without a thing in the whole batch there is no mean; the sum is 0 then.
        return torch.stack(
            [
                F.cross_entropy(part, target, reduction="sum")
                / (target >= 0).sum().clamp(min=1)
                for part, target in zip(parts, targets)
            ]
        )


def encode_turns(tokenizer, questions, image=True):
    """A conversation about one image, with the next tokens of its answers as labels.

    Args:
        tokenizer: Tokenizer.
        questions: list of Question.
        image: whether there is an image; without one every answer is UNKNOWN.

    Returns:
        (tokens, labels), lists of equal length.
    """
    tokens, labels = [tokenizer.bos_id], []
    for i, question in enumerate(questions):
        content = [object(), question.text] if image and i == 0 else question.text
        tokens += tokenizer.encode_message("user", content)[0]
        tokens += tokenizer.encode_header("assistant")
        labels += [-100] * (len(tokens) - 1 - len(labels))
        answer = tokenizer.encode(question.answer if image else UNKNOWN)
        answer.append(tokenizer.special["<|eot_id|>"])
        tokens += answer
        labels += answer
    return tokens, labels + [-100]


@dataclass
class Batch:
    """What one step learns from.

    Attributes:
        pixel_values: fp32 [N, K, 3, S, S].
        aspect_ratio_ids: int [N].
        num_tiles: valid tiles of every image.
        patches: int [N, K·(P - 1), 7], see `patch_targets`.
        tokens: int [N·Q, T], padded on the right.
        labels: int [N·Q, T], the next token where it is part of an answer, else -100.
        sees: bool [N·Q, T, 1], see VisionContext.
    """

    pixel_values: torch.Tensor
    aspect_ratio_ids: torch.Tensor
    num_tiles: int
    patches: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    sees: torch.Tensor

    def to(self, device):
        """The same batch on a device."""
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults made the model that ships.

    Attributes:
        seed: of first values, scenes and questions.
        vision_steps: steps of the first stage, vision encoder and patch head alone.
        joint_steps: steps after it, of the whole model.
        decay_steps: how many of them, at the end, lower the learning rate to 0.
        images: of a batch, all with equally many tiles.
        questions: about each image.
        vision_rate, joint_rate: learning rates of the two stages.
        patch_weight: of the patch head's loss in the second stage.
        strength: of the distortion of what is drawn; held-out scenes have 1.
        weights: how often each kind of question is asked, in the order of WORDINGS.
        later_weights: the same from `later_step` on: more of what was lagging behind.
        later_step: a step of the second stage.
        kinds: of things that are drawn.
        num_things: on each picture of the second stage; None for 0 to 4.
    """

    seed: int = 0
    vision_steps: int = 5000
    joint_steps: int = 7000
    decay_steps: int = 2500
    images: int = 16
    questions: int = 6
    vision_rate: float = 2e-3
    joint_rate: float = 1.5e-3
    patch_weight: float = 0.3
    strength: float = 2.0
    weights: tuple[float, ...] = (1.0, 1.0, 0.8, 1.0, 2.0, 1.2, 2.0, 1.6, 0.8)
    later_weights: tuple[float, ...] = (0.7, 2.0, 0.6, 0.5, 2.0, 1.5, 2.2, 1.0, 2.0)
    later_step: int = 7485
    kinds: tuple[str, ...] = KINDS
    num_things: int | None = None

    def __post_init__(self):
        for name in ("seed", "vision_steps", "joint_steps", "decay_steps"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(
                    f"{name} is {value!r}: expected a whole number, 0 or more; change "
                    "it."
                )

    @property
    def steps(self):
        """Of both stages."""
        return self.vision_steps + self.joint_steps

    def learning_rate(self, step):
        """At a step: a short warm-up in each stage, and a line down to 0 at the end."""
        joint = step >= self.vision_steps
        since = step - self.vision_steps if joint else step
        rate = self.joint_rate if joint else self.vision_rate
        left = (self.steps - step) / max(self.decay_steps, 1)
        return rate * min(1.0, (since + 1) / 200, left)


def draw_batch(plan, step, masks, tokenizer, config, with_text=True):
    """The batch of a step: a function of the plan's seed and the step alone.

    Args:
        plan: Plan.
        step: number of the step.
        masks: from `load_masks("train")`.
        tokenizer: Tokenizer.
        config: VisionConfig.
        with_text: whether questions are wanted.

    Returns:
        Batch.
    """
    rng = np.random.default_rng([plan.seed, step])
    options = canvases(config.max_num_tiles)
    num_tiles = math.prod(options[rng.integers(len(options))])
    options = [canvas for canvas in options if math.prod(canvas) == num_tiles]
    # Things are distorted more and more while the first stage lasts.
    share = min(1.0, step / max(plan.vision_steps, 1))
    strength = 1 + (plan.strength - 1) * share
    scenes = []
    for _ in range(plan.images):
        canvas = options[rng.integers(len(options))]
        # Without questions, the more things the more there is to learn from.
        crowd = (
            plan.num_things if with_text else int(rng.integers(1, 3 * num_tiles + 1))
        )
        scenes.append(draw_scene(rng, masks, crowd, strength, plan.kinds, canvas))
    tiles = [image_to_tiles(s.image, config.image_size) for s in scenes]
    rows = []
    if with_text:
        weights = plan.weights if step < plan.later_step else plan.later_weights
        weights = np.array(weights) / sum(weights)
        turns = 2 if rng.random() < 0.12 else 1
        for scene in scenes:
            asked = draw_questions(rng, scene, plan.questions * turns, weights)
            for i in range(0, len(asked), turns):
                image = rng.random() > 0.02
                rows.append(encode_turns(tokenizer, asked[i : i + turns], image))
    length = max((len(tokens) for tokens, _ in rows), default=1)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for i, (row, targets) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(targets)
    sees = (tokens == tokenizer.image_id).cumsum(dim=1) > 0
    return Batch(
        torch.stack([tile.pixel_values for tile in tiles]),
        torch.tensor([tile.aspect_ratio_id for tile in tiles]),
        num_tiles,
        torch.stack([patch_targets(scene, config) for scene in scenes]),
        tokens,
        labels,
        sees[:, :, None],
    )


def draw_questions(rng, scene, count, weights):
    """So many questions about a scene, no text twice while there are others."""
    kinds, asked, texts = list(WORDINGS), [], set()
    for attempt in range(20 * count):
        question = ask(rng, scene, kinds[rng.choice(len(kinds), p=weights)])
        if question and (question.text not in texts or attempt > 10 * count):
            asked.append(question)
            texts.add(question.text)
        if len(asked) == count:
            break
    return asked


def project(model, batch):
    """Projected vision tokens of a batch's valid tiles: [N, num_tiles, P, D]."""
    features = model.vision_model.encode(
        batch.pixel_values, batch.aspect_ratio_ids, batch.num_tiles
    )
    return model.multi_modal_projector(features[:, : batch.num_tiles])


def answer_loss(model, batch, vision):
    """Mean cross-entropy of the tokens of the answers, and of nothing else.

    Args:
        model: Mllama.
        batch: Batch.
        vision: from `project`.

    Returns:
        fp32 scalar.
    """
    memory, times = vision.flatten(1, 2), len(batch.tokens) // len(vision)  # [N, V, D]
    keys, values = {}, {}
    for layer in model.cross_attention_layers:
        key, value = layer.cross_attn.keys_and_values(memory)
        keys[layer.layer] = key.repeat_interleave(times, dim=0)  # [N·Q, G, V, E]
        values[layer.layer] = value.repeat_interleave(times, dim=0)
    context = VisionContext(keys, values, None, batch.sees)
    hidden = model.language_model.model(batch.tokens, vision=context)  # [N·Q, T, D]
    wanted = batch.labels >= 0
    logits = model.language_model.lm_head(hidden[wanted])  # [answers, W]
    return F.cross_entropy(logits.float(), batch.labels[wanted])


class Trainer:
    """A model in training, with everything that a later run needs to go on from here.

    Args:
        plan: Plan.
        model: Mllama, initialised.
        ranks: of its tokenizer, see `make_ranks`.
        masks: from `load_masks("train")`.

    Attributes:
        tokenizer: Tokenizer.
        step: how many steps are done.
        history: list of dicts, one for every 50 steps.
    """

    def __init__(self, plan, model, ranks, masks):
        self.plan, self.model, self.ranks, self.masks = plan, model, ranks, masks
        self.tokenizer = Tokenizer(ranks)
        share_places(model.vision_model)
        torch.manual_seed(plan.seed)
        self.head = PatchHead(model.config.text.hidden_size).to(model.device)
        parameters = [*model.named_parameters(), *self.head.named_parameters()]
        # Only matrices decay: a gate or a norm that is pulled to 0 means something else.
        decays = [p for name, p in parameters if p.ndim > 1 and "embed" not in name]
        rest = [p for name, p in parameters if p.ndim == 1 or "embed" in name]
        groups = [{"params": decays}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.step, self.history = 0, []
        self._sums = torch.zeros(2 + len(PATCH_TARGETS), device=model.device)

    def train_step(self, batch):
        """One step: draw, look, answer, learn. Returns the loss, fp32 scalar."""
        plan, joint = self.plan, self.step >= self.plan.vision_steps
        for group in self.optimiser.param_groups:
            group["lr"] = plan.learning_rate(self.step)
        device = self.model.device
        # On a CPU the fused kernel's backward pass is slower than plain products.
        kernels = [SDPBackend.MATH]
        if device.type != "cpu":
            kernels += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        batch = batch.to(device)
        # A CPU whose library has no bf16 would multiply number by number.
        fast = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=fast)
        with mixed, sdpa_kernel(kernels):
            vision = project(self.model, batch)  # [N, K, P, D]
            patches = self.head.loss(vision, batch.patches)
            told = patches.new_zeros(())
            if joint:
                told = answer_loss(self.model, batch, vision)
            weighted = (patches * patches.new_tensor(PATCH_WEIGHTS)).mean()
            loss = told + weighted * (plan.patch_weight if joint else 1.0)
        loss.backward()
        parameters = [*self.model.parameters(), *self.head.parameters()]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._record(told.detach(), patches.detach())
        return loss.detach()

    def _record(self, answers, patches):
        self._sums += torch.cat([answers.new_ones(1), answers[None], patches])
        if self.step % 50 == 0:
            count, answers, *patches = self._sums.tolist()
            gates = {
                name: parameter.item()
                for name, parameter in self.model.named_parameters()
                if parameter.numel() == 1
            }
            self.history.append(
                {
                    "step": self.step,
                    "answers": answers / count,
                    "patches": dict(zip(PATCH_TARGETS, (p / count for p in patches))),
                    "gates": gates,
                }
            )
            self._sums.zero_()

    def save(self, path):
        """Write everything to a file, aside and then renamed: no state is half there."""
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "history": self.history,
            "sums": self._sums,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        part = Path(path).with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path):
        """Go on from where `save` was called.

        Raises:
            InputError: it was called with another plan; the file is damaged.
        """
        try:
            state = torch.load(path, self.model.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(
                f"{path} cannot be read: expected the state of a training; delete it "
                "to begin anew."
            ) from None
        mine = json.loads(json.dumps(asdict(self.plan)))  # tuples become lists
        theirs = json.loads(json.dumps(state["plan"]))
        other = [name for name in mine if mine[name] != theirs.get(name)]
        if other:
            raise InputError(
                f"{path} was begun with {other[0]} {theirs.get(other[0])!r}: expected "
                f"{mine[other[0]]!r}, as now asked for; use the same settings, or "
                "another folder."
            )
        self.step, self.history = state["step"], state["history"]
        self._sums = state["sums"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])

    def validate(self, items):
        """Note in the history how many of some questions are answered right.

        Args:
            items: list of Item.
        """
        counts = exact_match(
            items, answers(VLM(self.model.eval(), self.tokenizer), items)
        )
        self.model.train()
        shares = {row: right / total for row, (right, total) in counts.items()}
        self.history[-1]["validation"] = shares

    def batches(self, until, workers=1):
        """The batches of the steps still to do, drawn ahead by another process."""
        steps = _Steps(self)
        return torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=range(self.step, until),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )


class _Steps(torch.utils.data.Dataset):
    """Batches by the number of their step."""

    def __init__(self, trainer):
        self.plan, self.masks = trainer.plan, trainer.masks
        self.tokenizer = trainer.tokenizer
        self.config = trainer.model.config.vision

    def __len__(self):
        return self.plan.steps

    def __getitem__(self, step):
        with_text = step >= self.plan.vision_steps
        return draw_batch(
            self.plan, step, self.masks, self.tokenizer, self.config, with_text
        )


SAVE_EVERY = 500  # steps
VALIDATE_EVERY = 1000  # steps of the second stage


def new_trainer(plan, device="cpu"):
    """A Trainer at its first step, everything made from the plan's seed."""
    ranks = make_ranks()
    model = Mllama(small_config(len(ranks) + NUM_SPECIAL_TOKENS))
    initialise(model, plan.seed)
    return Trainer(plan, model.to(device), ranks, load_masks("train"))


def train(folder, plan=Plan(), progress=None, workers=1, device="cpu"):
    """Train a small model from nothing, or go on where an earlier call was stopped.

    Every 500 steps the state is written to `training.pt` in the folder, and every 1,000
    steps of the second stage 440 questions of the validation split are asked. The same
    plan gives the same model on the same processor with as many threads, however often
    it was stopped.

    Args:
        folder: path; made if it is not there. At the end it holds the model, as the
            hub lays it out, with what transformers' processor needs, and
            `history.json`.
        plan: Plan.
        progress: called with the Trainer after every step, or None.
        workers: processes that draw batches; 0 to draw them in this one.
        device: torch device or its name.

    Returns:
        VLM, parameters in bf16 as they are stored.

    Raises:
        InputError: the folder is a file, or holds a training with another plan;
            scikit-learn is not installed.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file: expected a folder to train in; choose another name."
        )
    folder.mkdir(parents=True, exist_ok=True)
    state, trainer = folder / "training.pt", new_trainer(plan, device)
    if state.is_file():
        trainer.load(state)
    items = []
    for batch in trainer.batches(plan.steps, workers):
        trainer.train_step(batch)
        if trainer.step % VALIDATE_EVERY == 0 and trainer.step > plan.vision_steps:
            items = items or held_out("validation", 40, seed=1)
            trainer.validate(items)
        if trainer.step % SAVE_EVERY == 0 or trainer.step == plan.steps:
            trainer.save(state)
        if progress:
            progress(trainer)
    model = trainer.model.to(torch.bfloat16).eval()
    save_model(model, folder)
    write_processor_files(folder, trainer.ranks, model.config)
    (folder / "history.json").write_text(json.dumps(trainer.history) + "\n")
    return VLM(model, trainer.tokenizer)
