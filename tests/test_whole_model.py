"""The whole model against Meta's code and transformers, on random small configurations."""

import random

import pytest
import torch

import cases
import reference
from mllama_lite.generation import Session
from mllama_lite.model import empty_model
from mllama_lite.tiles import canvases
from mllama_lite.vlm import VLM

SEEDS = range(28)


@pytest.fixture(scope="module")
def all_models():
    return {seed: cases.models(seed) for seed in SEEDS}


def largest(a, b, rows):
    """Largest difference over the tokens that rows have; [B, T, W] each."""
    return max(
        (a[i, : len(r)] - b[i, : len(r)]).abs().max().item() for i, r in enumerate(rows)
    )


def test_configurations_vary_everything(all_models):
    """The sweep covers what it claims to cover."""
    configs = [config for config, _, _ in all_models.values()]
    texts, visions = [c.text for c in configs], [c.vision for c in configs]
    assert {v.image_size // v.patch_size for v in visions} == set(range(2, 9))
    for values in (
        [t.num_attention_heads for t in texts],
        [t.num_key_value_heads for t in texts],
        [t.num_attention_heads // t.num_key_value_heads for t in texts],
        [t.num_hidden_layers for t in texts],
        [t.cross_attention_layers for t in texts],
        [t.hidden_size for t in texts],
        [v.hidden_size for v in visions],
        [v.num_hidden_layers for v in visions],
        [v.intermediate_layers_indices for v in visions],
    ):
        assert len(set(values)) >= 3
    used, counts, consecutive = set(), set(), 0
    for seed, config in zip(SEEDS, configs):
        rows, images = cases.batch(seed, config)
        used |= {
            tiles.canvas for row in cases.tiles_of(config, images) for tiles in row
        }
        counts |= {len(row) for row in images}
        image = config.image_token_index
        consecutive += sum(
            a == b == image for row in rows for a, b in zip(row, row[1:])
        )
        assert all(row[0] != image for row in rows)  # text comes before every image
    assert used == set(canvases()) and counts == {0, 1, 2, 3} and consecutive >= 10


def test_no_parameter_is_zero(all_models):
    for _, meta, _ in all_models.values():
        for name, parameter in meta.named_parameters():
            assert parameter.count_nonzero() == parameter.numel(), name


def test_prefill(all_models, proof):
    worst = 0.0
    for seed, (config, meta, ours) in all_models.items():
        rows, images = cases.batch(seed, config)
        theirs = reference.meta_logits(meta, rows, images)
        worst = max(
            worst, largest(cases.batch_logits(ours, rows, images), theirs, rows)
        )
    proof(
        "Whole model, prefill of mixed batches",
        "Meta",
        "28 configurations, 4 rows each",
        worst,
        2e-5,
    )


def test_single_rows(all_models, proof):
    """`VLM.logits`, a row at a time, no batch on either side."""
    worst = 0.0
    for seed, (config, meta, ours) in all_models.items():
        rows, images = cases.batch(seed, config)
        for row, pictures in zip(rows, images):
            theirs = reference.meta_logits(meta, [row], [pictures])
            mine = VLM(ours).logits(row, pictures)
            worst = max(worst, (mine - theirs[0]).abs().max().item())
    proof(
        "Whole model, single rows",
        "Meta",
        "28 configurations, 4 rows each",
        worst,
        2e-5,
    )


def test_cached_decode(all_models, proof):
    """Prefill of half a row, then a token at a time, caches on both sides."""
    worst = 0.0
    for seed, (config, meta, ours) in all_models.items():
        rows, images = cases.batch(seed, config)
        for row, pictures in zip(rows, images):
            cut = (
                max(
                    [i for i, t in enumerate(row) if t == config.image_token_index],
                    default=0,
                )
                + 1
            )
            steps = list(range(cut, len(row)))
            theirs = reference.meta_logits(meta, [row], [pictures], steps=steps)[0]
            session = Session(ours, 1, len(row))
            mine = [session.extend([row[:cut]], cases.tiles_of(config, [pictures]))]
            mine += [session.step(torch.tensor([token])) for token in row[cut:]]
            worst = max(worst, (torch.cat(mine) - theirs[cut - 1 :]).abs().max().item())
    proof(
        "Whole model, cached decode",
        "Meta",
        "28 configurations, 4 rows each",
        worst,
        2e-5,
    )


def test_rows_of_a_mixed_batch(all_models, proof):
    """Every row of a mixed batch equals the same row alone: prefill and four steps."""
    worst = 0.0
    for seed, (config, _, ours) in all_models.items():
        rows, images = cases.batch(seed, config)
        tiles = cases.tiles_of(config, images)
        later = torch.tensor(
            [[random.Random(seed + i).randrange(64) for i in range(4)]] * 4
        )
        together = Session(ours, len(rows), 24)
        got = [together.extend(rows, tiles)] + [
            together.step(later[:, i]) for i in range(4)
        ]
        for i, (row, own) in enumerate(zip(rows, tiles)):
            alone = Session(ours, 1, 24)
            want = [alone.extend([row], [own])] + [
                alone.step(later[i : i + 1, j]) for j in range(4)
            ]
            difference = max(
                (a[i] - b[0]).abs().max().item() for a, b in zip(got, want)
            )
            worst = max(worst, difference)
    proof(
        "Row of a mixed batch",
        "the row alone",
        "28 configurations, 4 rows each, 4 steps",
        worst,
        2e-5,
    )


def test_static_shapes(all_models, proof):
    """A fixed window and masks instead of growing views: the same numbers."""
    worst = 0.0
    for seed, (config, _, ours) in list(all_models.items())[:8]:
        rows, images = cases.batch(seed, config)
        tiles = cases.tiles_of(config, images)
        a, b = Session(ours, 4, 32), Session(ours, 4, 32, static=True)
        difference = (a.extend(rows, tiles) - b.extend(rows, tiles)).abs().max().item()
        for i in range(4):
            tokens = torch.tensor([i, 1, 2, 3])
            difference = max(
                difference, (a.step(tokens) - b.step(tokens)).abs().max().item()
            )
            assert (a.cache.window, b.cache.window) == (None, 32)
        worst = max(worst, difference)
    proof(
        "Decode step of fixed shapes",
        "growing shapes",
        "8 configurations, 4 rows each",
        worst,
        2e-5,
    )


@pytest.mark.parametrize("static", [False, True])
def test_everything_is_made_on_the_models_device(static, monkeypatch):
    """torch refuses to mix the meta device with another, as it does with an accelerator.

    Only which canvas an image has is read back, and meta keeps no numbers: any will do.
    """
    config = reference.random_config(5)
    model = empty_model(config)
    see = model.vision_model.forward

    def forward(pixels, ids):
        assert ids.device.type == "meta"
        return see(pixels, torch.arange(len(ids)) % 8 + 1)

    monkeypatch.setattr(model.vision_model, "forward", forward)
    devices = set()
    model.language_model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: devices.add(args[0].device.type)
    )
    rows, images = cases.batch(5, config)
    tiles = cases.tiles_of(config, images)
    session = Session(model, len(rows), 24, static)
    logits = [session.extend(rows, tiles), session.step(session._next)]
    session.extend([row + [1, 2] for row in rows], tiles)
    alone = Session(model, 1, 8, static)
    logits += [alone.extend([[1, 2]], [[]]), alone.extend([[1, 2, 3, 4]], [[]])]
    logits += [alone.extend([[1, 2, 3, 4, config.image_token_index]], [tiles[1][:1]])]
    assert {part.device.type for part in logits} == {"meta"} == {model.device.type}
    assert devices == {"meta"}


def test_embeddings_stand_for_tokens_beside_images(all_models):
    config, _, ours = all_models[1]
    rows, images = cases.batch(1, config, num_rows=1)
    tiles, tokens = cases.tiles_of(config, images), torch.tensor(rows)
    given = ours.language_model.model.embed_tokens(tokens)
    vision = ours.vision_context(rows, tiles)
    assert torch.equal(
        ours(None, vision=vision, embeddings=given), ours(tokens, vision=vision)
    )


def test_decode_step_traces_whole_and_once(all_models):
    """One graph serves every step: nothing in it depends on the length so far."""
    config, _, ours = all_models[1]
    rows, images = cases.batch(1, config)
    session = Session(ours, 4, 32, static=True)
    session.extend(rows, cases.tiles_of(config, images))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(ours.forward, backend=count, fullgraph=True)
    for _ in range(3):
        positions = session._positions(session._next, 1)
        step(
            torch.zeros(4, 1, dtype=torch.long),
            session.cache,
            positions,
            None,
            session._later,
        )
        session._next = session._next + 1
    assert len(graphs) == 1


def test_second_witness(all_models, proof):
    """transformers, its two known deviations corrected from outside."""
    worst = 0.0
    for seed, (config, _, ours) in all_models.items():
        theirs = reference.hub_model(ours)
        for row, pictures in zip(*cases.batch(seed, config)):
            mine = VLM(ours).logits(row, pictures)
            worst = max(
                worst,
                (mine - reference.hub_logits(theirs, row, pictures)).abs().max().item(),
            )
    proof(
        "Whole model",
        "transformers, corrected",
        "28 configurations, 4 rows each",
        worst,
        2e-5,
    )


def test_the_corrections_are_needed(all_models):
    """Uncorrected, transformers is far from Meta: the second witness is not a rubber stamp."""
    config, meta, ours = all_models[3]
    rows, images = cases.batch(3, config)
    i = next(i for i, row in enumerate(images) if row)
    theirs = reference.hub_logits(
        reference.hub_model(ours, corrected=False), rows[i], images[i]
    )
    meta = reference.meta_logits(meta, [rows[i]], [images[i]])[0]
    assert (theirs - meta).abs().max() > 0.05


def test_bf16(proof):
    """In bf16 we lose no more than Meta's own code does."""
    mine, metas = 0.0, 0.0
    for seed in range(16):
        config = reference.random_config(seed)
        low = reference.meta_model(config, seed=seed, dtype=torch.bfloat16)
        rows, images = cases.batch(seed, config)
        exact = reference.ours_from_meta(low, config).float()
        ours = reference.ours_from_meta(low, config)
        for row, pictures in zip(rows, images):
            truth = VLM(exact).logits(row, pictures)
            mine += (VLM(ours).logits(row, pictures) - truth).abs().mean().item()
            metas += (
                (reference.meta_logits(low, [row], [pictures])[0] - truth)
                .abs()
                .mean()
                .item()
            )
    ratio = mine / metas
    assert metas > 0.01  # bf16 does round
    proof(
        "bf16: mean error, as a multiple of Meta's own",
        "fp32",
        "16 configurations, 4 rows each",
        ratio,
        1.5,
    )
