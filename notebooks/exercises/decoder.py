"""Checks of chapter 4's exercises."""

import math

import torch
from torch import nn

from exercises import exercise, expect
from mllama_lite.decoder import LanguageModel, RMSNorm, TextConfig
from mllama_lite.rope import RopeScaling

TEXT = dict(cross_attention_layers=(), num_extra_embeddings=0)
SMALL = TextConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    **TEXT,
)


def fresh(config, seed=0, spread=0.0):
    """A model as `randomise` makes it: embeddings of size 1, matrices 1/sqrt(inputs)."""
    generator, model = torch.Generator().manual_seed(seed), LanguageModel(config)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 1 + spread * noise
        else:
            size = 1 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.data = size * noise
    model.tie_weights()
    return model.eval()


@exercise("untrained-and-tied")
def untrained_and_tied(answer):
    sizes = vars(SMALL) | {"hidden_size": 256, "tie_word_embeddings": True}
    model, same = fresh(TextConfig(**sizes)), []
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, SMALL.vocab_size, (8, 30), generator=generator)
    with torch.no_grad():
        probs = model(tokens).softmax(dim=-1)  # [B, T, W]
    likeliest = probs.argmax(dim=-1)
    same = lambda wanted: (likeliest == wanted).double().mean().item() > 0.9
    found = {
        "a": probs.amax(dim=-1).mean().item() < 0.1,
        "b": same(likeliest[0, 0]),
        "c": same(tokens),
        "d": same(tokens[:, :1]),
    }
    expect(answer in found, "the answer is one of the four letters")
    expect(
        found[answer], "a model made this way does something else: build a small one"
    )


@exercise("rows-for-one-fetch")
def rows_for_one_fetch(answer):
    operations, bandwidth, bytes_a_weight, flops_a_weight = 989e12, 3.35e12, 2, 2
    rows = operations / flops_a_weight / (bandwidth / bytes_a_weight)
    near = lambda wrong: abs(answer - wrong) <= 1
    expect(not near(rows / 2), "how many bytes has a weight?")
    expect(not near(2 * rows), "how many operations is a weight used for, in one row?")
    expect(
        math.floor(rows) <= answer <= math.ceil(rows),
        "set the seconds for the bytes of one weight beside those for its operations",
    )


@exercise("count-parameters")
def count_parameters(count):
    small = vars(SMALL)
    tied = dict(tie_word_embeddings=True, rope_scaling=RopeScaling(factor=32.0))
    cases = {
        "three small layers": SMALL,
        "three small layers with a tied head": TextConfig(**small | tied),
        "eight rows more than the head": TextConfig(
            **small | {"num_extra_embeddings": 8}
        ),
        "no layers": TextConfig(**small | {"num_hidden_layers": 0}),
        "Llama 3.1 8B": TextConfig(num_hidden_layers=32, **TEXT),
        "Llama 3.2 3B": TextConfig(
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=28,
            num_attention_heads=24,
            **tied,
            **TEXT,
        ),
    }
    for name, config in cases.items():
        got = count(config)
        with torch.device("meta"):
            wanted = sum(p.numel() for p in LanguageModel(config).parameters())
        off = got - wanted
        expect(off == 0, f"{name}: {abs(off):,} too {'many' if off > 0 else 'few'}")


@exercise("ring-of-tokens")
def ring_of_tokens(embedding, head):
    for name, x in (("embedding", embedding), ("head", head)):
        expect(torch.is_tensor(x) and x.shape == (8, 2), f"the {name} is not [8, 2]")
    sizes = dict(vocab_size=8, hidden_size=2, num_hidden_layers=0, rope_scaling=None)
    model = LanguageModel(TextConfig(**sizes, **TEXT))
    model.model.embed_tokens.weight.data = embedding.float()
    model.lm_head.weight.data = head.float()
    with torch.no_grad():
        probs = model(torch.arange(8)[None])[0].softmax(dim=-1)  # [8, 8]
    for token in range(8):
        share, said = probs[token, (token + 1) % 8].item(), probs[token].argmax().item()
        expect(share > 0.9, f"token {token} gives its next {share:.2f}; it says {said}")


def stream_and_logits(model, tokens):
    """What the last norm reads, and the logits."""
    kept = []
    hook = model.model.norm.register_forward_pre_hook(
        lambda _, args: kept.append(args[0])
    )
    with torch.no_grad():
        logits = model(tokens)
    hook.remove()
    return kept[0], logits


@exercise("fold-the-norms")
def fold_the_norms(fold):
    tokens = torch.arange(40).view(2, 20)
    for seed in (0, 1):
        model = fresh(SMALL, seed, spread=0.3)
        wanted = stream_and_logits(model, tokens)[1]
        with torch.no_grad():
            fold(model)
        for name, module in model.named_modules():
            if isinstance(module, RMSNorm):
                ones = torch.equal(module.weight, torch.ones_like(module.weight))
                expect(ones, f"{name} has weights that are not 1")
        off = (stream_and_logits(model, tokens)[1] - wanted).abs().max().item()
        expect(off < 1e-4, f"the logits change by up to {off:.1e}")


@exercise("rotate-the-stream")
def rotate_the_stream(rotate):
    tokens = torch.arange(40).view(2, 20)
    for seed in (0, 1):
        model = fresh(SMALL, seed)
        stream, wanted = stream_and_logits(model, tokens)
        size, generator = SMALL.hidden_size, torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
        with torch.no_grad():
            rotate(model, turn)
        turned, logits = stream_and_logits(model, tokens)
        off = (turned - stream @ turn).abs().max().item()
        expect(off < 1e-3, f"the stream is up to {off:.1e} from the turned one")
        off = (logits - wanted).abs().max().item()
        expect(off < 1e-3, f"the logits change by up to {off:.1e}")
        embedding = type(model.model.embed_tokens) is nn.Embedding
        expect(embedding, "the model's modules are to stay what they are")
