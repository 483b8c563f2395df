"""Each part alone against Meta's code and transformers, so that a mistake is found where
it is made."""

import random
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch import nn

import cases
import reference
from mllama_lite.attention import (
    KVCache,
    SelfAttention,
    attention_by_hand,
    causal_mask,
    grouped_attention,
)
from mllama_lite.cross_attention import CrossAttention, VisionCache, visible_ranges
from mllama_lite.decoder import LanguageModel, RMSNorm, Step, TextConfig
from mllama_lite.errors import InputError
from mllama_lite.generation import Sampling, probabilities
from mllama_lite.local_vision import VisionConfig, padded_length
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.rope import (
    RopeScaling,
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
    to_half_split,
    to_interleaved,
)
from mllama_lite.tiles import canvases, image_to_tiles

SEEDS = range(12)


@pytest.fixture(scope="module")
def all_models():
    return {seed: cases.models(seed) for seed in SEEDS}


@pytest.fixture(scope="module", autouse=True)
def meta_code():
    reference.start_meta()


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def test_default_sizes_are_the_hubs():
    """Those of transformers' own defaults; only the side of a tile is Instruct's."""
    from transformers import MllamaConfig as HubConfig

    hub, config = HubConfig(), MllamaConfig()
    theirs, ours = hub.text_config, vars(config.text)
    same = set(ours) & set(vars(theirs)) - {"rope_scaling", "cross_attention_layers"}
    assert len(same) == 9 and all(ours[n] == getattr(theirs, n) for n in same)
    assert config.text.head_dim * config.text.num_attention_heads == theirs.hidden_size
    assert list(config.text.cross_attention_layers) == theirs.cross_attention_layers
    assert config.text.rope_theta == 5e5 and config.text.num_extra_embeddings == 8
    theirs, ours = hub.vision_config, vars(config.vision)
    same = set(ours) & set(vars(theirs)) - {"image_size", "intermediate_layers_indices"}
    assert len(same) == 9 and all(ours[n] == getattr(theirs, n) for n in same)
    kept = list(config.vision.intermediate_layers_indices)
    assert kept == theirs.intermediate_layers_indices
    assert config.vision.vision_output_dim == theirs.vision_output_dim
    assert config.vision.num_patches == 1601 and config.vision.image_size == 560
    assert config.image_token_index == hub.image_token_index
    assert config.eos_token_ids == (128001, 128008, 128009)


def test_settings_cannot_be_changed():
    for settings in (RopeScaling(), TextConfig(), VisionConfig(), MllamaConfig()):
        with pytest.raises(FrozenInstanceError):
            setattr(settings, fields(settings)[0].name, 1)
        assert hash(settings) == hash(replace(settings))


def test_a_configuration_that_fits_no_model_is_refused():
    with pytest.raises(InputError, match="6 query heads for 4 key heads"):
        TextConfig(num_attention_heads=6, num_key_value_heads=4)
    with pytest.raises(InputError, match="an embedding with 8 more rows"):
        TextConfig(tie_word_embeddings=True)
    TextConfig(tie_word_embeddings=True, num_extra_embeddings=0)


def test_a_tied_head_is_the_embedding():
    config = replace(
        reference.random_config(0).text,
        cross_attention_layers=(),
        num_extra_embeddings=0,
    )
    for tied in (True, False):
        model = LanguageModel(replace(config, tie_word_embeddings=tied))
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_new_model_shows_no_image_and_takes_every_eps_from_its_configuration():
    """Gates and added positions start at 0, so that the decoder begins as plain Llama."""
    config = reference.random_config(1)
    config = replace(
        config,
        text=replace(config.text, rms_norm_eps=2e-4),
        vision=replace(config.vision, norm_eps=3e-4),
    )
    model = Mllama(config)
    gates = [
        p
        for name, p in model.named_parameters()
        if name.endswith(("gate", "ffn", "attn"))
    ]
    layers = len(model.cross_attention_layers) + config.vision.num_global_layers
    assert len(gates) == 2 * layers + 3 and not any(gate.any() for gate in gates)
    assert not model.vision_model.class_embedding.any()
    assert not model.vision_model.gated_positional_embedding.embedding.any()
    norms = [m for m in model.modules() if isinstance(m, RMSNorm)]
    assert {norm.eps for norm in norms} == {2e-4} and all(
        n.weight.eq(1).all() for n in norms
    )
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {3e-4}


def test_rope_frequencies(proof):
    from llama_models.llama3.model import precompute_freqs_cis

    worst = 0.0
    for head_dim in (8, 64, 80, 128):
        for theta in (10000.0, 500000.0):
            for scaling in (None, RopeScaling()):
                table = precompute_freqs_cis(
                    head_dim, 131072, theta, scaling is not None
                )
                positions = torch.arange(131072)
                cos, sin = rope_cos_sin(
                    rope_frequencies(head_dim, theta, scaling), positions
                )
                worst = max(worst, largest(cos, table.real), largest(sin, table.imag))
    proof(
        "RoPE, cosines and sines", "Meta", "131,072 positions, 16 settings", worst, 1e-6
    )


def test_frequencies_do_not_hang_on_the_programs_dtype():
    want = rope_frequencies(64, 500000.0)
    assert torch.equal(rope_frequencies(64), want)
    torch.set_default_dtype(torch.float64)
    try:
        assert rope_frequencies(64).dtype == torch.float32
        assert torch.equal(rope_frequencies(64), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rope_rotation(proof):
    from llama_models.llama3.model import apply_rotary_emb, precompute_freqs_cis

    worst = 0.0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        start, length = 500 * seed, 7
        query = torch.randn(2, length, 6, 32, generator=generator)  # [B, T, H, E]
        key = torch.randn(2, length, 3, 32, generator=generator)
        table = precompute_freqs_cis(32, start + length, 5e5, True)[start:]
        theirs = apply_rotary_emb(query, key, table)
        positions = torch.arange(start, start + length)
        cos, sin = rope_cos_sin(rope_frequencies(32, 5e5, RopeScaling()), positions)
        for ours, want in zip((query, key), theirs):
            turned = apply_rope_interleaved(ours.transpose(1, 2), cos, sin)
            worst = max(worst, largest(turned.transpose(1, 2), want))
    proof(
        "RoPE, turning (interleaved)",
        "Meta",
        "20 batches at positions to 9,506",
        worst,
        1e-5,
    )


def test_layouts_are_a_permutation_apart():
    weight = torch.randn(6 * 32, 50)
    assert torch.equal(to_interleaved(to_half_split(weight, 6), 6), weight)
    x = torch.randn(1, 6, 9, 32)
    permuted = to_half_split(torch.arange(32.0)[:, None], 1)[:, 0].long()
    cos, sin = rope_cos_sin(rope_frequencies(32), torch.arange(9))
    a = apply_rope_interleaved(x, cos, sin)[..., permuted]
    assert torch.allclose(apply_rope(x[..., permuted], cos, sin), a, atol=1e-6)


def test_rope_turns_bf16_in_fp32_and_rounds_once():
    x = torch.randn(1, 2, 9, 32).bfloat16()
    cos, sin = rope_cos_sin(rope_frequencies(32), torch.arange(9))
    for turn in (apply_rope, apply_rope_interleaved):
        turned = turn(x, cos, sin)
        assert turned.dtype == torch.bfloat16
        assert torch.equal(turned, turn(x.float(), cos, sin).bfloat16())


def test_rope_of_the_hub(proof):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import (
        LlamaRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    worst = 0.0
    for factor in (8.0, 32.0):
        scaling = RopeScaling(factor=factor)
        config = LlamaConfig(
            hidden_size=256,
            num_attention_heads=4,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | vars(scaling),
        )
        positions = torch.randint(0, 131072, (1, 50))
        query, key = torch.randn(1, 4, 50, 64), torch.randn(1, 2, 50, 64)
        theirs = apply_rotary_pos_emb(
            query, key, *LlamaRotaryEmbedding(config)(query, positions)
        )
        cos, sin = rope_cos_sin(rope_frequencies(64, 5e5, scaling), positions[:, None])
        for ours, want in zip((query, key), theirs):
            worst = max(worst, largest(apply_rope(ours, cos, sin), want))
    proof(
        "RoPE, turning (half-split)",
        "transformers",
        "100 positions to 131,071, factors 8 and 32",
        worst,
        1e-5,
    )


def test_rms_norm(proof):
    from llama_models.llama3.model import RMSNorm as MetaRMSNorm

    worst = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        for eps in (1e-5, 1e-6):
            theirs, ours = MetaRMSNorm(96, eps), RMSNorm(96, eps)
            theirs.weight.data = ours.weight.data = (1 + 0.3 * torch.randn(96)).to(
                dtype
            )
            x = (torch.randn(64, 96) * torch.logspace(-3, 2, 64)[:, None]).to(dtype)
            difference = (ours(x).float() - theirs(x).float()).abs()
            worst = max(
                worst, (difference / theirs(x).float().abs().clamp(1)).max().item()
            )
    proof("RMSNorm, fp32 and bf16 (relative)", "Meta", "256 rows", worst, 1e-6)


@pytest.mark.parametrize("mask", [None, "causal", "random"])
def test_grouped_attention(mask, proof):
    """The fused kernels against attention written out, and no copy of keys and values."""
    worst = 0.0
    for heads, kv_heads in ((4, 4), (8, 2), (6, 1), (12, 4)):
        for length, keys in ((1, 9), (5, 9), (9, 9)):
            if mask == "causal" and length != keys:
                continue
            query = torch.randn(2, heads, length, 16)
            key, value = (
                torch.randn(2, kv_heads, keys, 16),
                torch.randn(2, kv_heads, keys, 16),
            )
            allowed = None
            if mask == "causal":
                allowed = causal_mask(length, keys)
            elif mask == "random":
                allowed = torch.rand(2, 1, length, keys) < 0.5
                allowed[..., 0] = True
            want, _ = attention_by_hand(query, key, value, allowed)
            given = allowed if mask == "random" else None
            got = grouped_attention(query, key, value, given, causal=mask == "causal")
            worst = max(worst, largest(got, want))
    proof(
        f"Grouped attention, mask: {mask}",
        "softmax written out",
        "4 head layouts, 3 lengths",
        worst,
        5e-6,
    )


def test_attention_by_hand_gives_weights_in_fp32():
    """They are 0 where nothing may be seen, and a row's sum is 1, also in bf16."""
    query, key = torch.randn(2, 4, 3, 8).bfloat16(), torch.randn(2, 2, 5, 8).bfloat16()
    mask = causal_mask(3, 5)
    output, weights = attention_by_hand(query, key, key, mask)
    assert output.dtype == torch.bfloat16 and weights.dtype == torch.float32
    assert (weights.sum(dim=-1) - 1).abs().max() < 1e-6
    assert not weights[..., ~mask].any() and weights[..., mask].all()


def test_grouped_attention_copies_no_keys():
    """What it allocates has the size of queries, however long the cache is."""
    query = torch.randn(1, 16, 1, 64)
    key, value = torch.randn(1, 2, 20000, 64), torch.randn(1, 2, 20000, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        grouped_attention(query, key, value)
    taken = sum(
        max(e.self_cpu_memory_usage, 0)
        for e in profile.events()
        if e.name.startswith("aten::")
    )
    assert taken < key.nbytes / 4


def test_cache_refuses_what_does_not_fit():
    cache = KVCache(2)
    piece = torch.ones(1, 1, 2, 4)
    cache.update(0, piece, piece)
    cache.length = 2
    with pytest.raises(IndexError, match="2 slots, and 3"):
        cache.update(0, piece[:, :, :1], piece[:, :, :1])
    cache.reserve(3)
    keys, _ = cache.update(0, 2 * piece[:, :, :1], piece[:, :, :1])
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="as many keys"):
        grouped_attention(piece, keys, keys, causal=True)


def test_reserve_keeps_what_is_stored_and_where():
    """Only room that is missing is made: memory in use stays at its place."""
    cache, piece = KVCache(3), torch.ones(2, 1, 3, 4)
    cache.update(5, piece, 2 * piece)
    before = cache.keys[5]
    for capacity in (1, 3):
        cache.reserve(capacity)
        assert cache.keys[5] is before and cache.capacity == 3
    assert cache.num_bytes == 2 * (2 * 1 * 3 * 4) * 4  # K and V; B·G·S·E; fp32
    cache.reserve(6)
    assert cache.num_bytes == 2 * (2 * 1 * 6 * 4) * 4
    assert torch.equal(cache.keys[5][:, :, :3], piece)
    assert torch.equal(cache.values[5][:, :, :3], 2 * piece)
    layer, one = SelfAttention(8, 2, 1, 4), torch.zeros(1)
    layer(torch.ones(1, 2, 8), one, one, alone := KVCache(2))
    assert list(alone.keys) == [0]


def test_a_mask_that_is_given_is_used(all_models):
    """Token 1 hidden from all after it changes nothing of theirs, cached or not."""
    model = all_models[0][2].language_model
    mask = causal_mask(6, 6)[None, None].clone()
    mask[..., 2:, 1] = False
    row = torch.tensor([[5, 6, 7, 8, 9, 10]])
    other, positions = torch.tensor([[5, 60, 7, 8, 9, 10]]), torch.arange(6)[None]
    for place in (None, positions):
        for cut in (0, 3):
            results = []
            for tokens in (row, other):
                cache = KVCache(6)
                if cut:
                    model(tokens[:, :cut], cache, None, mask[:, :, :cut, :cut])
                later = place if place is None else place[:, cut:]
                rest = model(tokens[:, cut:], cache, later, mask[:, :, cut:])
                results.append(rest[:, -3:])
            assert torch.equal(*results)
    assert largest(model(row)[:, -3:], model(other)[:, -3:]) > 1e-3


def test_self_attention(all_models, proof):
    worst = 0.0
    for config, meta, ours in all_models.values():
        text = config.text
        theirs = meta.text_model.layers[0].attention
        mine = ours.language_model.model.layers[text.self_attention_layers[0]].self_attn
        hidden = torch.randn(3, 10, text.hidden_size)
        positions = torch.arange(10)
        want = theirs(
            hidden,
            meta.text_model.mask_cache[:, :, :10],
            meta.text_model.freqs_cis[:10],
            positions,
        )
        frequencies = rope_frequencies(
            text.head_dim, text.rope_theta, text.rope_scaling
        )
        cos, sin = rope_cos_sin(frequencies, positions)
        worst = max(worst, largest(mine(hidden, cos, sin), want))
    proof("Self-attention", "Meta", "12 configurations", worst, 1e-5)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_heads_need_not_fill_the_width(kind):
    """4 heads of 8 numbers in a width of 48, as some models have them; Meta's can't."""
    torch.manual_seed(0)
    x, there = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    if kind == "self":
        attention = SelfAttention(48, num_heads=4, num_kv_heads=2, head_dim=8)
        cos, sin = torch.ones(1, 1, 5, 4), torch.zeros(1, 1, 5, 4)  # nothing turns
        got, there, mask = attention(x, cos, sin), x, causal_mask(5, 5)
    else:
        sizes = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
        attention = CrossAttention(TextConfig(hidden_size=48, **sizes))
        got, mask = attention(x, *attention.keys_and_values(there)), None
    query, key, value = (
        (tokens @ projection.weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)
        for tokens, projection in (
            (x, attention.q_proj),
            (there, attention.k_proj),
            (there, attention.v_proj),
        )
    )
    if kind == "cross":
        query, key = attention.q_norm(query), attention.k_norm(key)
    output, _ = attention_by_hand(query, key, value, mask)
    want = output.transpose(1, 2).flatten(2) @ attention.o_proj.weight.T
    assert want.shape == x.shape and largest(got, want) < 1e-5


def test_no_token_sees_a_later_one(all_models):
    """In a piece of any length, at the beginning or after others, without a mask given."""
    config, _, ours = all_models[1]
    model = ours.language_model.model
    tokens = torch.arange(1, 7)[None]
    whole = model(tokens)
    assert torch.equal(whole, model(tokens, positions=torch.arange(6)[None]))
    for length in range(1, 6):
        assert largest(model(tokens[:, :length]), whole[:, :length]) < 1e-5
        for first in range(1, length):
            cache = KVCache(6)
            model(tokens[:, :first], cache)
            got = model(tokens[:, first:length], cache)
            assert largest(got, whole[:, first:length]) < 1e-5


def test_a_text_only_model_has_no_vision():
    config = reference.random_config(0)
    text = replace(config.text, cross_attention_layers=(), num_extra_embeddings=0)
    model = Mllama(MllamaConfig(text, vision=None))
    assert not hasattr(model, "vision_model")
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, text.vocab_size)


def test_logits_are_fp32_and_frequencies_kept():
    model = Mllama(reference.random_config(0)).to(torch.bfloat16)
    tokens = torch.tensor([[1, 2, 3]])
    assert model(tokens).dtype == torch.float32
    assert model(tokens, logits_at=torch.tensor([1])).dtype == torch.float32
    text = model.language_model.model
    assert text.frequencies(tokens.device) is text.frequencies(tokens.device)
    assert text.frequencies(tokens.device).dtype == torch.float32


def test_mlp_and_layer(all_models, proof):
    """The MLP alone, and the whole layer: norms, attention and residuals around it."""
    mlp, whole = 0.0, 0.0
    for config, meta, ours in all_models.values():
        layer = ours.language_model.model.layers[config.text.self_attention_layers[-1]]
        theirs = meta.text_model.layers[-1]
        x = torch.randn(2, 5, config.text.hidden_size)
        mlp = max(mlp, largest(layer.mlp(x), theirs.feed_forward(x)))
        positions = torch.arange(5)
        want = theirs(
            x,
            meta.text_model.freqs_cis[:5],
            meta.text_model.mask_cache[:, :, :5],
            positions,
        )
        table = ours.language_model.model.frequencies(x.device)
        got = layer(x, Step(*rope_cos_sin(table, positions)))
        whole = max(whole, largest(got, want))
    proof("MLP (SwiGLU)", "Meta", "12 configurations", mlp, 1e-5)
    proof("Decoder layer, whole", "Meta", "12 configurations", whole, 1e-5)


def test_embedding(all_models, proof):
    wrong = 0
    for config, meta, ours in all_models.values():
        tokens = torch.arange(config.text.vocab_size + 8)[None]
        theirs = meta.text_model.get_partially_trainable_embedding(tokens)
        wrong += not torch.equal(ours.language_model.model.embed_tokens(tokens), theirs)
    proof(
        "Embedding with 8 extra rows", "Meta", "every id of 12 configurations", wrong, 0
    )


def vision_inputs(config, seed):
    """One noise image for each of the 8 canvases."""
    rng = random.Random(seed)
    side = config.vision.image_size
    tiles = [
        image_to_tiles(cases.image(rng, canvas, side), side) for canvas in canvases()
    ]
    assert [one.canvas for one in tiles] == canvases()
    pixels = torch.stack([one.pixel_values for one in tiles])  # [8, 4, 3, S, S]
    return pixels, torch.arange(1, 9), torch.tensor(canvases())


def meta_states(encoder, pixels, ratios):
    """What Meta's encoder computes on the way: embedding, last local state, kept ones."""
    kept = {}
    hooks = [
        encoder.transformer.register_forward_pre_hook(
            lambda m, a: kept.update(embedded=a[0])
        ),
        encoder.transformer.register_forward_hook(
            lambda m, a, out: kept.update(local=out)
        ),
    ]
    kept["output"] = encoder(pixels[:, None], ratios[:, None])[:, 0]
    for hook in hooks:
        hook.remove()
    return kept


def test_local_vision(all_models, proof):
    """Embedding, local layers and kept states, for all 8 canvases."""
    worst_embedding, worst_local = 0.0, 0.0
    for seed, (config, meta, ours) in all_models.items():
        pixels, ids, ratios = vision_inputs(config, seed)
        theirs = meta_states(meta.vision_model.vision_encoder, pixels, ratios)
        for i, (rows, columns) in enumerate(canvases()):
            one = slice(i, i + 1)
            embedded = ours.vision_model.embed(pixels[one], ids[one], rows * columns)
            worst_embedding = max(
                worst_embedding,
                largest(embedded.flatten(1, 2), theirs["embedded"][one]),
            )
            x, states = super(type(ours.vision_model), ours.vision_model).forward(
                pixels[one], ids[one], rows * columns
            )
            last, kept = theirs["local"]
            mine = torch.stack(states, dim=-1).flatten(1, 2)
            worst_local = max(
                worst_local,
                largest(x.flatten(1, 2), last[one]),
                largest(mine, kept[one]),
            )
    proof(
        "Local vision, embedding",
        "Meta",
        "12 configurations, 8 canvases",
        worst_embedding,
        2e-5,
    )
    proof(
        "Local vision, last and kept states",
        "Meta",
        "12 configurations, 8 canvases",
        worst_local,
        2e-5,
    )


def test_vision_model(all_models, proof):
    worst = 0.0
    for seed, (config, meta, ours) in all_models.items():
        pixels, ids, ratios = vision_inputs(config, seed)
        theirs = meta_states(meta.vision_model.vision_encoder, pixels, ratios)["output"]
        worst = max(worst, largest(ours.vision_model(pixels, ids), theirs))
    proof(
        "Vision encoder, whole",
        "Meta",
        "12 configurations, 8 canvases in a batch",
        worst,
        2e-5,
    )


def test_images_of_a_batch_are_encoded_as_alone(all_models):
    """One, two or three numbers of tiles in a batch, in any order."""
    config, _, ours = all_models[0]
    pixels, ids, ratios = vision_inputs(config, 0)
    alone = [ours.vision_model(pixels[i : i + 1], ids[i : i + 1]) for i in range(8)]
    for chosen in ([1, 4], [3, 0], [0, 3, 0], [5, 7, 3], [6, 0, 1, 2]):
        together = ours.vision_model(pixels[chosen], ids[chosen])
        want = torch.cat([alone[i] for i in chosen])
        assert largest(together, want) < 2e-5


def test_vision_of_the_hub(all_models, proof):
    worst = 0.0
    for seed, (config, _, ours) in all_models.items():
        pixels, ids, ratios = vision_inputs(config, seed)
        hub = reference.hub_model(ours).model.vision_model
        valid = (torch.arange(4) < ratios.prod(1)[:, None]).long()[:, None]
        theirs = hub(pixels[:, None], ids[:, None], valid).last_hidden_state[:, 0]
        worst = max(worst, largest(ours.vision_model(pixels, ids), theirs))
    proof(
        "Vision encoder, whole",
        "transformers, corrected",
        "12 configurations, 8 canvases in a batch",
        worst,
        2e-5,
    )


def test_tables_count_for_nothing_where_a_tile_is_missing():
    """Random tables, which no checkpoint has: only places of valid tiles are read."""
    config = reference.random_config(2)
    model = reference.fill(Mllama(config).vision_model)
    pixels, ids, ratios = vision_inputs(config, 2)
    before = model(pixels, ids)
    tables = (
        model.pre_tile_positional_embedding,
        model.gated_positional_embedding,
        model.post_tile_positional_embedding,
    )
    for count in range(4):  # beginning with the last of 4 tiles
        tile = 3 - count
        for table in tables:
            weight = getattr(table, "tile_embedding", getattr(table, "embedding", None))
            places = weight.weight.unflatten(-1, table.shape)  # [ids, K, ...]
            places[ids[ratios.prod(1) <= tile], tile] += 1
        assert torch.equal(model(pixels, ids), before)
    weight.weight.unflatten(-1, table.shape)[1, 0] += 1
    assert not torch.equal(model(pixels, ids)[0], before[0])


def test_tokens_of_a_tile_are_filled_up():
    """To a multiple of 8, at the sizes of the published models too."""
    lengths = [padded_length(num) for num in (16, 17, 1025, 1601)]
    assert lengths == [16, 24, 1032, 1608]


def test_padding_is_seen():
    """Real tokens attend to padded tiles, as in Meta's code: their pixels matter."""
    config, meta, ours = cases.models(2)
    pixels, ids, ratios = vision_inputs(config, 2)
    other = pixels.clone()
    other[0, 3] += 1.0  # canvas (1, 1): tile 3 does not exist
    ours_changed = largest(
        ours.vision_model(pixels, ids)[0, 0], ours.vision_model(other, ids)[0, 0]
    )
    encoder = meta.vision_model.vision_encoder
    before, after = (meta_states(encoder, p, ratios)["output"] for p in (pixels, other))
    assert ours_changed > 1e-3
    assert abs(ours_changed - largest(before[0, 0], after[0, 0])) < 1e-4


def test_cross_attention_layer(all_models, proof):
    """A layer with a mask, tokens that see nothing among them."""
    from llama_models.llama3.multimodal.model import _pad_masks

    worst = 0.0
    for seed, (config, meta, ours) in all_models.items():
        text = meta.text_model
        generator = torch.Generator().manual_seed(seed)
        tokens, width = config.vision.num_patches, config.text.hidden_size
        ranges, counts = [[(2, 6), (4, 6), (6, 9)]], [[2, 4, 1]]
        vision = torch.randn(1, 3, 4, tokens, width, generator=generator)
        hidden = torch.randn(1, 9, width, generator=generator)
        masks = _pad_masks([[list(r) for r in ranges[0]]], counts, 9, 4)
        mask, rows = text._get_xattn_mask(9, "cpu", torch.float32, vision, masks)
        images = [vision[0, i, : counts[0][i]].flatten(0, 1) for i in range(3)]
        vision_cache = VisionCache.from_images(ours.cross_attention_layers, [images])
        context = vision_cache.context(ranges, [0], 9)
        assert context.mask is not None and context.sees is not None
        for theirs, mine in zip(
            text.cross_attention_layers, ours.cross_attention_layers, strict=True
        ):
            cache = theirs.compute_xattn_kv_cache(vision.view(1, -1, width))
            want = theirs(hidden, mask, rows, cache)
            worst = max(worst, largest(mine(hidden, Step(vision=context)), want))
    proof(
        "Cross-attention layer with a mask",
        "Meta",
        "12 configurations, 3 images",
        worst,
        2e-5,
    )


def test_which_token_sees_which_image(proof):
    """Meta's ranges; the last of several is open here, as it is there for one image."""
    from llama_models.llama3.chat_format import create_vision_mask

    rng, wrong = random.Random(0), 0
    for _ in range(5000):
        row = [rng.choice([7, 7, 9]) for _ in range(rng.randrange(1, 12))]
        theirs = create_vision_mask(row, 9)
        ours = visible_ranges(row, 9)
        last = (-1, len(row))
        wrong += [(a, None if b in last else b) for a, b in theirs] != ours
    proof("Which token sees which image", "Meta", "5,000 rows of tokens", wrong, 0)


def test_masks_only_where_needed():
    """One image: no mask, and no row factor once all tokens see it."""
    layer = cases.models(1)[2].cross_attention_layers
    width = layer[0].cross_attn.k_proj.in_features
    one = VisionCache.from_images(layer, [[torch.randn(10, width)]])
    context = one.context([[(1, None)]], [0], 5)
    assert context.mask is None and context.sees.flatten().tolist() == [False] + 4 * [
        True
    ]
    later = one.context([[(1, None)]], [5], 1)
    assert later.mask is None and later.sees is None
    assert one.context([[(9, None)]], [0], 5) is None
    rows = [[torch.randn(1, width), torch.randn(3, width)]]
    context = VisionCache.from_images(layer, rows).context(
        [[(0, 1), (1, None)]], [0], 2
    )
    assert context.mask.tolist() == [[[[True] + 3 * [False], [False] + 3 * [True]]]]
    rows = [[torch.randn(3, width)], [torch.randn(2, width)]]
    context = VisionCache.from_images(layer, rows).context(2 * [[(0, None)]], [0, 0], 1)
    assert context.mask.tolist() == [[[[True] * 3]], [[[True, True, False]]]]
    with pytest.raises(ValueError, match="zip"):  # an image more in the text than here
        one.context([[(1, None), (2, None)]], [0], 5)
    assert (
        later.keys[layer[0].layer].shape[1]
        == layer[0].cross_attn.k_proj.out_features // layer[0].cross_attn.head_dim
    )


def test_top_p(proof):
    from llama_models.llama3 import generation

    worst = 0.0
    for seed in range(50):
        torch.manual_seed(seed)
        logits = torch.randn(4, 100) * 3
        for p in (0.1, 0.5, 0.9, 0.999):
            for temperature in (0.3, 1.0, 2.0):
                kept = []

                def keep(probs, num_samples, kept=kept):
                    kept.append(probs)
                    return torch.zeros(4, 1, dtype=torch.long)

                draw, torch.multinomial = torch.multinomial, keep
                try:
                    generation.sample_top_p((logits / temperature).softmax(-1), p)
                finally:
                    torch.multinomial = draw
                ours = probabilities(logits, Sampling(temperature=temperature, top_p=p))
                worst = max(worst, largest(ours.sort(descending=True).values, kept[0]))
    proof("Sampling, top-p", "Meta", "200 distributions, 12 settings", worst, 1e-6)
