"""Checks of chapter 18's exercises."""

from dataclasses import replace

import torch

from exercises import exercise, expect
from mllama_lite.attention import KVCache
from mllama_lite.decoder import TextConfig
from mllama_lite.hearing.mel import mel_filters
from mllama_lite.hearing.model import HearingConfig, HearingModel, SoundProjector
from mllama_lite.hearing.whisper_encoder import WhisperConfig

SMALL = HearingConfig(
    TextConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rope_scaling=None,
        cross_attention_layers=(),
        num_extra_embeddings=1,
    ),
    WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=2),
)


@exercise("vectors-of-a-sound")
def vectors_of_a_sound(answer):
    number = isinstance(answer, (int, float)) and answer > 0
    expect(number, "a number of vectors is above 0")
    projector = SoundProjector(replace(SMALL, stack=4))
    found = projector(torch.zeros(1, 350, 8)).shape[1]  # 50 states a second
    times = answer / found
    expect(answer == found, f"tried, it is {times:.3g} times as many as come out")


@exercise("empty-bands")
def empty_bands(answer):
    expect(isinstance(answer, int) and 0 <= answer <= 80, "there are 80 bands")
    pitch = torch.linspace(0, 8000, 201)
    filters = mel_filters(80)
    empty = int((filters[:, pitch <= 4000].sum(dim=1) == 0).sum())
    many = "more" if answer < empty else "fewer"
    expect(answer == empty, f"counted, there are {many}")


@exercise("quiet-of-each")
def quiet_of_each(finish):
    for seed, shape in enumerate(((80, 20), (3, 80, 20), (2, 4, 5), (2, 3, 10, 7))):
        generator = torch.Generator().manual_seed(seed)
        power = torch.randn(shape, generator=generator).exp() * 1e-3
        power = power * 10.0 ** torch.randint(
            -9, 3, (*shape[:-2], 1, 1), generator=generator
        )
        power[..., 0, 0] = 0.0
        given = finish(power.clone())
        size = list(getattr(given, "shape", []))
        expect(size == list(shape), f"for {list(shape)} it returns {size}")
        expect(given.isfinite().all(), "silence becomes no number")
        # As `log_mel` ends, one sound at a time.
        sizes = (-1, *shape[-2:])
        for one, got in zip(power.view(sizes), given.reshape(sizes)):
            log = one.clamp(min=1e-10).log10()
            want = (log.maximum(log.max() - 8) + 4) / 4
            expect(
                (got - want).abs().max() < 1e-5,
                f"for {list(shape)} a sound's numbers are others than alone",
            )


@exercise("frames-side-by-side")
def frames_side_by_side(stack):
    for batch, length, size, count in ((1, 8, 6, 4), (2, 9, 4, 4), (3, 5, 2, 5)):
        states = torch.arange(1.0, 1 + batch * length * size).view(batch, length, size)
        given = stack(states.clone(), count)
        shape = [batch, -(-length // count), count * size]
        got = list(getattr(given, "shape", []))
        expect(got == shape, f"for {length} states by {count} it returns {got}")
        encoder = replace(SMALL.encoder, d_model=size)
        projector = SoundProjector(replace(SMALL, stack=count, encoder=encoder))
        seen = []  # by the first matrix
        projector.linear_1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        with torch.no_grad():
            projector(states)
        expect(torch.equal(given, seen[0]), "the vectors hold other numbers")


@exercise("what-is-kept")
def what_is_kept(kept):
    for vectors, tokens, layers, crosses in (
        (25, 20, 5, (1, 3)),
        (8, 30, 4, (2,)),
        (40, 3, 6, (0, 2, 5)),
    ):
        text = replace(SMALL.text, num_hidden_layers=layers)
        counts = []
        for looks in (False, True):
            config = replace(
                SMALL,
                text=replace(text, cross_attention_layers=crosses if looks else ()),
                stack=1,
            )
            model = HearingModel(config)
            row = [1] * (tokens - 1)
            with torch.no_grad():
                heard = model.hear(
                    [[config.audio_token_index, *row]], torch.zeros(1, vectors, 8)
                )
                cache = KVCache(tokens + (0 if looks else vectors - 1))
                model.run(heard, cache)
            numbers = cache.num_bytes // 4
            if looks:
                numbers += sum(k.numel() for k in heard.later.keys.values()) * 2
            counts.append(numbers)
        given = kept(vectors, tokens, layers, len(crosses), 1, 8)
        expect(
            isinstance(given, (tuple, list)) and len(given) == 2,
            "two numbers are asked for",
        )
        for name, got, want in zip(("among tokens", "keys and values"), given, counts):
            expect(
                got == want,
                f"{vectors} vectors, {tokens} tokens, {layers} layers: tried, with sound "
                f"as {name} the caches hold another number",
            )
