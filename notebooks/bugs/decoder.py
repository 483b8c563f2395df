"""Chapter 4: bugs of the decoder, and what notices them."""

from functools import cache

import torch
import torch.nn.functional as F

from bugs import a_bug, a_check, replaced
from mllama_lite.attention import KVCache
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.decoder import (
    DecoderLayer,
    LanguageModel,
    RMSNorm,
    Step,
    TextConfig,
)
from mllama_lite.rope import rope_cos_sin, rope_frequencies
from mllama_lite.vlm import load

SMALL = TextConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    cross_attention_layers=(),
    num_extra_embeddings=0,
)


@a_bug(
    "norm-on-the-stream",
    "The stream itself is normalised on the way into a branch "
    "(`x = norm(x); x = x + attention(x)`): the residual carries the norm's output.",
    "tests/test_parts.py::test_mlp_and_layer",
)
def norm_on_the_stream():
    def wrong(self, hidden, step):
        hidden = self.input_layernorm(hidden)
        shared = (step.cos, step.sin, step.cache, step.positions, step.mask)
        hidden = hidden + self.self_attn(hidden, *shared)
        hidden = self.post_attention_layernorm(hidden)
        return hidden + self.mlp(hidden)

    with replaced(DecoderLayer.forward, wrong):
        yield


@a_bug(
    "logits-of-the-last-column",
    "The next token is chosen from the last column of the batch (`logits[:, -1]`), where "
    "a shorter row has padding and not its last token.",
    "tests/test_inference.py::test_batches_equal_single_rows",
)
def logits_of_the_last_column():
    def wrong(
        self,
        tokens,
        cache=None,
        positions=None,
        mask=None,
        vision=None,
        logits_at=None,
        embeddings=None,
    ):
        hidden = self.model(tokens, cache, positions, mask, vision, embeddings)
        if logits_at is not None:
            hidden = hidden[:, -1:]
        return self.lm_head(hidden).float()

    with replaced(LanguageModel.forward, wrong):
        yield


@a_bug(
    "weight-before-rounding",
    "RMSNorm multiplies by its weight before the result is rounded to bf16, and not after.",
    "tests/test_parts.py::test_rms_norm",
)
def weight_before_rounding():
    def wrong(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=self.eps)

    with replaced(RMSNorm.forward, wrong):
        yield


def seeded(module):
    """Random numbers in all parameters, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        one = parameter.ndim == 1  # of a norm
        parameter.data = 1 + 0.2 * noise if one else noise * parameter.shape[1] ** -0.5
    return module.eval()


def normalised_in_bf16():
    """What RMSNorm makes of bf16 rows, and a loop's result that was rounded twice."""
    norm = seeded(RMSNorm(16, 1e-5)).bfloat16()
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    rows = []
    for row in x.double():
        root = (sum(number**2 for number in row) / 16 + 1e-5) ** 0.5
        rows.append((row / root).bfloat16() * norm.weight)
    return norm(x).detach(), torch.stack(rows).detach()


@a_check("RMSNorm in bf16 and a loop, to 1 %")
def about():
    got, wanted = (x.float() for x in normalised_in_bf16())
    assert ((got - wanted).abs() <= 0.01 * wanted.abs()).all()


@a_check("RMSNorm in bf16 and a loop, to the bit")
def to_the_bit():
    got, wanted = normalised_in_bf16()
    assert torch.equal(got, wanted)


@a_check("a layer and its two formulas, in fp32")
def layer_written_out():
    layer = seeded(DecoderLayer(SMALL, 0))
    hidden = 3 * torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    cos, sin = rope_cos_sin(rope_frequencies(8), torch.arange(5)[None, None])

    def norm(x, weight):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight

    with torch.no_grad():
        got, mlp = layer(hidden, Step(cos, sin)), layer.mlp
        read = norm(hidden, layer.input_layernorm.weight)
        middle = hidden + layer.self_attn(read, cos, sin)
        read = norm(middle, layer.post_attention_layernorm.weight)
        gate, up = read @ mlp.gate_proj.weight.T, read @ mlp.up_proj.weight.T
        wanted = middle + (gate * gate.sigmoid() * up) @ mlp.down_proj.weight.T
    assert (got - wanted).abs().max() < 1e-4


@a_check("a prompt at once, and token by token")
def token_by_token():
    model, tokens, cache = (
        seeded(LanguageModel(SMALL)),
        torch.arange(8)[None],
        KVCache(8),
    )
    with torch.no_grad():
        steps = [model(tokens[:, i : i + 1], cache) for i in range(8)]
        assert (model(tokens) - torch.cat(steps, dim=1)).abs().max() < 1e-4


def batch_against_rows(rows):
    """Largest difference of the last logits, prompts together and each alone."""
    model, off = seeded(LanguageModel(SMALL)), []
    lengths = torch.tensor([len(row) for row in rows])
    padded = [row + [0] * (max(lengths) - len(row)) for row in rows]
    with torch.no_grad():
        together = model(torch.tensor(padded), logits_at=lengths - 1)
        for row, got in zip(rows, together):
            off.append((model(torch.tensor([row]))[0, -1] - got[0]).abs().max())
    return max(off)


@a_check("prompts of one length, together and alone")
def one_length():
    assert batch_against_rows([[1, 2, 3, 4], [5, 6, 7, 8]]) < 1e-4


@a_check("prompts of two lengths, together and alone")
def two_lengths():
    assert batch_against_rows([[1, 2, 3, 4, 5, 6], [7, 8, 9]]) < 1e-4


@cache
def shipped():
    return load(dtype="bfloat16", device="cpu")


@a_check("the shipped model reads its picture, in bf16")
def reads_its_picture():
    picture = find_folder() / "pictures" / "digits.png"
    question = "Read the digits from left to right."
    assert shipped().ask(question, picture) == "3 1 9"
