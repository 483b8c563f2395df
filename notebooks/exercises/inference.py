"""Checks of chapter 10's exercises."""

import itertools

import torch

from exercises import exercise, expect
from mllama_lite.cost import memory_needs
from mllama_lite.decoder import TextConfig
from mllama_lite.generation import Sampling, probabilities
from mllama_lite.model import Mllama, MllamaConfig, empty_model
from mllama_lite.vlm import VLM


@exercise("tokens-that-stay")
def tokens_that_stay(answer):
    halved = -torch.arange(40.0)[None] * torch.tensor(2.0).log()  # 1/2, 1/4, 1/8, ...

    def kept(temperature):
        sampling = Sampling(temperature, top_p=0.9)
        return (probabilities(halved, sampling) > 0).sum().item()

    expect(answer != kept(1.0), "those would stay at temperature 1")
    expect(answer != kept(0.5), "does a temperature above 1 sharpen or flatten?")
    expect(answer != kept(2.0) - 1, "what of the token with which the sum passes p?")
    expect(answer == kept(2.0), "what have all likelier tokens together, at each?")


@exercise("rows-without-end")
def rows_without_end(answer):
    config = MllamaConfig()
    text, length = config.text, 8192
    model = empty_model(config).language_model
    read = sum(p.numel() for p in model.parameters())
    read -= model.model.embed_tokens.weight.numel()
    caches = memory_needs(config, torch.bfloat16, length, 1)
    own = caches["text cache"] + caches["image cache"]  # bytes of one row
    width = text.num_attention_heads * text.head_dim
    work = 2 * read + 4 * width * length * len(text.self_attention_layers)
    rows = {"a": 30, "b": 300, "c": 3000, "d": 10**12}
    expect(answer in rows, "choose one of the letters")
    found = rows[answer] * work / (2 * read + rows[answer] * own)
    if answer == "d":
        expect(found < 295, "with enough rows, arithmetic decides")
    else:
        expect(found >= 295, f"then there are {found:.0f} operations for each byte")


@exercise("stop-string")
def stop_string(until):
    for text, stop in (
        ("one, two. User: three", "User:"),
        ("aaab and more", "aab"),
        ("no end, but Use", "User:"),
        ("ababac, abac", "abac"),
        ("###", "##"),
    ):
        wanted, _, _ = text.partition(stop)
        for sizes in ((1,), (2, 1), (3,), (5, 2), (100,)):
            given, got = [], []

            def pieces():
                rest = text
                for size in itertools.cycle(sizes):
                    if not rest:
                        return
                    piece, rest = rest[:size], rest[size:]
                    given.append(piece)
                    yield piece
                    _could_be_known(given, got, stop)

            for piece in until(pieces(), stop):
                got.append(piece)
                so_far = "".join(got)
                expect(
                    wanted.startswith(so_far),
                    f"of {given} it shows {so_far!r}, with the stop string {stop!r}",
                )
            so_far = "".join(got)
            expect(
                so_far == wanted,
                f"of {given} it shows {so_far!r} in the end, with {stop!r}",
            )


def _could_be_known(given, got, stop):
    """Whether a next piece is asked for only when nothing more can be shown."""
    text, shown = "".join(given), "".join(got)
    expect(stop not in text, f"{stop!r} was whole in {given}, and it asks for more")
    held = max(n for n in range(len(stop)) if text.endswith(stop[:n]))
    late = len(text) - held - len(shown)
    expect(late <= 0, f"after {given} it could show {late} characters more")


@exercise("likeliest-answer")
def likeliest_answer(choose):
    vlm = _random_vlm(vocabulary=12)
    generator = torch.Generator().manual_seed(1)

    def ids(count):
        return torch.randint(0, 12, (count,), generator=generator).tolist()

    for trial in range(20):
        prompt = ids(4)
        choices = [[*ids(length), 11] for length in (1, 2, 1, 3)]
        wanted = [_step_by_step(vlm, prompt, choice) for choice in choices]
        got = choose(vlm, prompt, choices)
        right = isinstance(got, int) and 0 <= got < 4
        expect(right, f"it returns {got!r}, and not the place of one of four choices")
        best = max(range(4), key=lambda i: wanted[i])
        expect(
            got == best,
            f"in trial {trial} it chooses one that is {wanted[best] / wanted[got]:.1f} "
            "times less likely than another",
        )


def _step_by_step(vlm, prompt, choice):
    """The probability of an answer, a token at a time."""
    product, text = 1.0, list(prompt)
    for token in choice:
        product *= vlm.logits(text)[-1].softmax(dim=-1)[token].item()
        text.append(token)
    return product


def _random_vlm(vocabulary):
    text = TextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        cross_attention_layers=(),
    )
    model = Mllama(MllamaConfig(text, None))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        random = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(0.4 * random)
    return VLM(model.eval())


@exercise("draft-and-keep")
def draft_and_keep(rule):
    torch.manual_seed(0)
    wanted, drafted = (2 * torch.randn(2, 50)).softmax(dim=-1)
    cut = probabilities(drafted.log()[None], Sampling(1.0, top_k=10))[0]
    nucleus = probabilities(wanted.log()[None], Sampling(1.0, top_p=0.8))[0]
    for name, p, q in (
        ("two distributions", wanted, drafted),
        ("q cut to ten tokens", wanted, cut),
        ("both cut", nucleus, cut),
        ("p equal to q", wanted, wanted.clone()),
        ("nothing in common", torch.eye(3)[0], torch.eye(3)[1]),
    ):
        kept, instead = rule(p, q)
        for one, called in ((kept, "kept"), (instead, "instead")):
            shape = list(getattr(one, "shape", []))
            expect(shape == list(p.shape), f"{called} is {shape}, not {list(p.shape)}")
            whole = one.isfinite().all() and one.min() >= -1e-6
            expect(whole, f"{name}: {called} has values that are nan or below 0")
        expect(kept.max() <= 1 + 1e-6, f"{name}: a token is kept with more than 1")
        total = instead.sum().item()
        expect(abs(total - 1) < 1e-4, f"{name}: instead has a sum of {total:.3f}")
        stays = q * kept
        written = stays + (1 - stays.sum()) * instead
        off = (written - p).abs().max().item()
        expect(off < 1e-5, f"{name}: what is written is {off:.3f} from p")
        more = torch.minimum(p, q).sum().item() - stays.sum().item()
        expect(more < 1e-4, f"{name}: {more:.3f} more of the drafts could be kept")
