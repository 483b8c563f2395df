"""Checks of chapter 16's exercises."""

import torch

from exercises import exercise, expect
from mllama_lite.attention import KVCache
from mllama_lite.families.experts import balance_loss, expert_load
from mllama_lite.families.llama4 import Llama4, Llama4Config
from mllama_lite.pretraining.training import active_parameters


@exercise("active-share")
def active_share(answer):
    number = isinstance(answer, (int, float)) and answer > 0
    expect(number, "a number of billions is above 0")
    with torch.device("meta"):
        model = Llama4(
            Llama4Config(
                vocab_size=32000,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                num_local_experts=8,
                num_experts_per_tok=2,
                shared_expert=False,
            )
        )
    times = float(answer) / (active_parameters(model) / 1e9)
    expect(abs(times - 1) < 0.02, f"counted, it is {times:.3g} times as many")


# A model with chunks of 8 stands for one with chunks of 8,192.
CONFIG = Llama4Config(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=32,
    intermediate_size_mlp=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rope_scaling=None,
    attention_chunk_size=8,
    num_local_experts=0,
)
TALKS = {"a": (5, 2), "b": (9, 1), "c": (9, 3), "d": (5, 3)}


@torch.no_grad()
def _is_noticed(prompt, written):
    """Whether some logits differ if steps of one token get no mask."""
    torch.manual_seed(0)
    model, found = Llama4(CONFIG), []
    tokens = torch.randint(50, (1, 16))
    plain = model.model.step

    def unmasked(hidden, cache, positions):
        step = plain(hidden, cache, positions)
        if hidden.shape[1] == 1:
            step.near = step.far
        return step

    for way in (plain, unmasked):
        model.model.step = way
        cache = KVCache(16)
        logits = [model(tokens[:, :prompt], cache)[:, -1]]
        # The last token that is written is not taken in any more.
        for i in range(prompt, prompt + written - 1):
            logits.append(model(tokens[:, i : i + 1], cache)[:, -1])
        found.append(torch.cat(logits))
    return bool((found[0] - found[1]).abs().max() > 1e-4)


@exercise("first-wrong-token")
def first_wrong_token(answer):
    expect(answer in TALKS, "the answer is one of the letters")
    expect(_is_noticed(*TALKS[answer]), "tried at a thousandth, and nothing differs")


@exercise("below-even")
def below_even(answer):
    logits = torch.as_tensor(answer).float()
    fits = logits.ndim == 2 and logits.shape[1] == 2 and len(logits) >= 2
    expect(fits, "the logits have a row for each token and two columns")
    expect(logits.isfinite().all(), "a logit is no finite number")
    chosen = logits.topk(1, dim=-1).indices
    load = expert_load(logits, chosen)
    expect(load.max() > 1.05, "the experts are used alike")
    loss = balance_loss(logits, chosen).item()
    expect(loss < 0.98, f"the loss is {loss:.3f}")


@exercise("places-for-each")
def places_for_each(place):
    for seed, (tokens, experts, room) in enumerate(
        ((12, 3, 4), (40, 4, 5), (30, 6, 30), (9, 2, 0), (1, 3, 1))
    ):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(tokens, experts, generator=generator)
        logits[:, 0] += 1  # one that many want
        given = place(logits.clone(), room)
        shape = list(getattr(given, "shape", []))
        expect(shape == [tokens], f"for {tokens} tokens it returns {shape}")
        taken, best = [0] * experts, logits.argmax(dim=-1).tolist()
        for token, (got, want) in enumerate(zip(given.tolist(), best)):
            full = taken[want] >= room
            expect(got in (want, -1), f"token {token} is with an expert it likes less")
            expect(not (got == want and full), "an expert has more tokens than room")
            expect(
                not (got == -1 and not full),
                f"token {token} is left out, and its expert has room",
            )
            taken[want] += got == want


def _reached(position, layers, chunk, every):
    """The first token that changes the logits at a position, tried with a random model."""
    config = Llama4Config(
        **vars(CONFIG)
        | {
            "num_hidden_layers": layers,
            "attention_chunk_size": chunk,
            "no_rope_layer_interval": every,
        }
    )
    torch.manual_seed(0)
    model = Llama4(config)
    with torch.enable_grad():
        rows = torch.randn(1, position + 1, 32, requires_grad=True)
        model(None, embeddings=rows)[0, position].square().sum().backward()
    return int((rows.grad[0].abs().amax(-1) > 0).nonzero()[0])


@exercise("how-far-back")
def how_far_back(reach):
    for position, layers, chunk, every in (
        (5, 2, 8, 0),
        (12, 3, 8, 4),
        (12, 4, 8, 4),
        (13, 1, 4, 1),
        (14, 6, 5, 0),
        (20, 2, 4, 2),
        (9, 5, 0, 0),
        (15, 3, 16, 4),
    ):
        got = reach(position, layers, chunk, every)
        want = _reached(position, layers, chunk, every)
        case = f"{layers} layers, chunks of {chunk}, interval {every}"
        expect(
            got == want,
            f"{case}: tried, and position {position} is not reached from where you say",
        )
