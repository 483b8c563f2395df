"""Checks of chapter 8's exercises."""

import itertools
from functools import cache

import numpy as np
import torch

from exercises import exercise, expect
from mllama_lite.attention import attention_by_hand
from mllama_lite.cross_attention import (
    CrossAttentionLayer,
    VisionCache,
    VisionContext,
    visible_ranges,
)
from mllama_lite.decoder import Step, TextConfig
from mllama_lite.tiles import image_to_tiles
from mllama_lite.tokenizer import ImagePart

SMALL = TextConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    cross_attention_layers=(1, 4),
)


def random_layer(seed):
    """A layer whose weights, norms and gates are all away from their first values."""
    generator = torch.Generator().manual_seed(seed)
    layer = CrossAttentionLayer(SMALL, 1).requires_grad_(False)
    for name, parameter in layer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1 + 0.4 * noise)
        elif "gate" in name and "proj" not in name:
            parameter.copy_(0.6 + 0.3 * noise.clamp(-1, 1))
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return layer


@exercise("break-even-answer")
def break_even_answer(answer):
    config = TextConfig()
    with torch.device("meta"):
        layer = CrossAttentionLayer(config, config.cross_attention_layers[0])
    sizes = {name: p.numel() for name, p in layer.named_parameters()}
    ends = ("k_proj.weight", "v_proj.weight")
    keys_and_values = sum(n for name, n in sizes.items() if name.endswith(ends))
    matrices = sum(n for name, n in sizes.items() if name.endswith("proj.weight"))
    rest = matrices - keys_and_values
    pair = 4 * layer.cross_attn.q_proj.out_features
    text, vision, tokens = 100, 4 * 1601, 576
    with_self = len(config.self_attention_layers)
    with_cross = len(config.cross_attention_layers)
    looks = tokens * (tokens + 1) / 2 + text * tokens
    beside = with_self * (2 * tokens * matrices + looks * pair)
    crossed = with_cross * (
        2 * vision * keys_and_values + text * vision * pair + 2 * text * rest
    )
    added = with_cross * (vision * pair + 2 * rest)
    looked = with_self * tokens * pair
    near = lambda value: abs(answer - value) <= 0.03 * value
    expect(
        not near((beside - crossed) / added),
        "with the image in the text, a token of the answer looks at it as well",
    )
    expect(
        not near(beside / (added - looked)),
        "the crossed image is not free before the answer either",
    )
    expect(
        near((beside - crossed) / (added - looked)),
        "after so many tokens the two have not done the same work",
    )


def _moved(layer, image, other):
    context = VisionCache.from_images([layer], [[image]]).context(
        [[(0, None)]], [99], 1
    )
    return context.keys[1]


def _second(layer, image, other):
    return VisionCache.from_images([layer], [[other, image]]).keys[1][
        :, :, len(other) :
    ]


def _opened(layer, image, other):
    layer.cross_attn_attn_gate.fill_(3.0)
    return VisionCache.from_images([layer], [[image]]).keys[1]


def _adapted(layer, image, other):
    weight = layer.cross_attn.k_proj.weight
    weight += torch.outer(weight[:, 0], weight[0])
    return VisionCache.from_images([layer], [[image]]).keys[1]


def _padded(layer, image, other):
    return VisionCache.from_images([layer], [[image], [other]]).keys[1][:1, :, :5]


CHANGES = {"a": _moved, "b": _second, "c": _opened, "d": _adapted, "e": _padded}


@exercise("keys-kept")
def keys_kept(answer):
    expect(answer in CHANGES, "the answer is one of the letters")
    image, other = torch.randn(12, 64, generator=torch.Generator()).split([5, 7])
    before = VisionCache.from_images([random_layer(0)], [[image]]).keys[1]
    after = CHANGES[answer](random_layer(0), image, other)
    same = torch.allclose(before, after, atol=1e-5)
    expect(not same, "tried, and the keys come out as they were")


class _Watched(str):
    """A token that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        type(self).compared += 1
        return str(self) == str(other)

    __hash__ = str.__hash__


@exercise("one-pass")
def one_pass(ranges_so_far):
    rows = [r for n in range(1, 8) for r in itertools.product("aI", repeat=n)]
    for row in rows:
        taken = []
        tokens = (taken.append(token) or token for token in row)
        given = 0
        for given, ranges in enumerate(ranges_so_far(tokens, "I"), 1):
            read = " ".join(taken)
            expect(len(taken) == given, f"at result {given} it has read {read}")
            got = [tuple(one) for one in ranges]
            expect(got == visible_ranges(taken, "I"), f"after {read} it says {got}")
        expect(given == len(row), f"{len(row)} tokens give {given} results")
    _Watched.compared = 0
    for _ in ranges_so_far(map(_Watched, "aIaaIIa" * 30), "I"):
        pass
    times = _Watched.compared / 210
    expect(times <= 2, f"a token of 210 is compared {times:.0f} times with the image's")


@exercise("nothing-to-see")
def nothing_to_see(attend):
    generator = torch.Generator().manual_seed(0)
    sees = torch.rand(6, 9, generator=generator) < 0.5
    sees[:, 0], sees[1], sees[4] = True, False, False
    some = sees.any(dim=1)
    for scale in (1.0, 40.0):
        query, key, value = (torch.randn(n, 8, generator=generator) for n in (6, 9, 9))
        query, key = scale * query, scale * key
        parts = [x[None, None] for x in (query, key, value)]
        wanted, _ = attention_by_hand(*parts, sees | ~some[:, None])
        leaves = [x.requires_grad_() for x in (query, key, value)]
        with torch.enable_grad():
            got = attend(*leaves, sees)
        shape = list(getattr(got, "shape", []))
        expect(shape == [6, 8], f"for queries of [6, 8] it returns {shape}")
        large = "" if scale == 1 else ", with large scores"
        expect(got.isfinite().all(), f"the output is not finite{large}")
        expect(not got[~some].any(), "a row that sees nothing gets something")
        off = (got - wanted[0, 0])[some].abs().max().item()
        expect(off < 1e-4, f"rows that see something are {off:.1e} off{large}")
        with torch.enable_grad():
            given = torch.autograd.grad(got.sum(), leaves, allow_unused=True)
        for name, slope in zip(("query", "key", "value"), given):
            whole = slope is not None and slope.isfinite().all()
            expect(whole, f"the gradient at the {name} is not finite{large}")


@exercise("folded-layer")
def folded_layer(fold):
    torch.manual_seed(0)
    for seed in range(3):
        layer = random_layer(seed)
        before = {name: p.clone() for name, p in layer.state_dict().items()}
        with torch.no_grad():
            folded = fold(layer)
        expect(isinstance(folded, CrossAttentionLayer), "it returns no layer")
        same = all(torch.equal(p, before[n]) for n, p in layer.state_dict().items())
        expect(folded is not layer, "it returns the layer that it was given, no copy")
        expect(same, "the layer that it was given has changed")
        norm = folded.cross_attn.q_norm.weight
        expect(norm.eq(1).all(), "the norm of the queries still has weights")
        for name in ("attn", "mlp"):
            factor = getattr(folded, f"cross_attn_{name}_gate").tanh().item()
            expect(factor == 1, f"the factor of the {name} gate is {factor:.4f}")
        text, vision = torch.randn(1, 5, 64), torch.randn(1, 7, 64)
        outputs = []
        for one in (layer, folded):
            key, value = one.keys_and_values(vision)
            step = Step(vision=VisionContext({1: key}, {1: value}))
            with torch.no_grad():
                outputs.append(one(text, step))
        off = (outputs[0] - outputs[1]).abs().max().item()
        expect(off < 1e-3, f"its output is {off:.1e} from the layer's")


@cache
def fresh_questions():
    """(shipped model, what it looks at, tokens, last places, right first tokens)."""
    from mllama_lite.small_model.questions import UNKNOWN, ask
    from mllama_lite.small_model.scenes import draw_scene, load_masks
    from mllama_lite.vlm import load

    vlm = load(dtype="float32", device="cpu")
    rng, masks = np.random.default_rng(11), load_masks("validation")
    rows, tiles, wanted = [], [], []
    while len(rows) < 40:
        scene = draw_scene(rng, masks, int(rng.integers(2, 5)))
        item = ask(rng, scene, "digit")
        if item and item.answer != UNKNOWN:
            content = [ImagePart(scene.image), item.text]
            ids, _ = vlm.tokenizer.encode_chat([{"role": "user", "content": content}])
            rows.append(ids)
            tiles.append([image_to_tiles(scene.image, vlm.config.vision.image_size)])
            wanted.append(vlm.tokenizer.encode(item.answer)[0])
    with torch.no_grad():
        context = vlm.model.vision_context(rows, tiles)
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    return vlm.model, context, tokens, last, torch.tensor(wanted)


@exercise("four-heads")
def four_heads(heads):
    model, context, tokens, last, wanted = fresh_questions()
    layers = {layer.layer: layer for layer in model.cross_attention_layers}
    count = model.config.text.num_attention_heads
    chosen = {(int(layer), int(head)) for layer, head in heads}
    there = set(itertools.product(layers, range(count)))
    expect(
        chosen <= there, f"heads are (layer, head): {sorted(layers)}, 0 to {count - 1}"
    )
    expect(len(chosen) == 4, f"{len(chosen)} heads are kept")
    hooks = []
    for index, layer in layers.items():
        kept = torch.tensor([float((index, head) in chosen) for head in range(count)])
        factor = kept.repeat_interleave(layer.cross_attn.head_dim)
        hook = lambda module, given, factor=factor: (given[0] * factor,)
        hooks.append(layer.cross_attn.o_proj.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            logits = model(tokens, vision=context, logits_at=last)
    finally:
        for hook in hooks:
            hook.remove()
    right = (logits.flatten(0, -2).argmax(dim=-1) == wanted).sum().item()
    expect(right >= 34, f"of {len(wanted)} fresh questions {right} begin right")
