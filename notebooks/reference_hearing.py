"""transformers' Whisper and Voxtral, small and random, as witnesses for chapter 18.

Voxtral is Whisper's encoder, a projector over stacked frames, and a Llama that has sound among its
tokens. Mllama's text model stands for a decoder that looks at sound: it never knew that what it
looks at were pictures.
"""

import random
from dataclasses import asdict

import torch

import reference
from mllama_lite.decoder import TextConfig
from mllama_lite.hearing.model import HearingConfig, HearingModel
from mllama_lite.hearing.whisper_encoder import WhisperConfig, WhisperEncoder


def quiet_transformers():
    """transformers, which would tell of every id that a small vocabulary has not."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def extractor(num_mel_bins=80):
    """transformers' WhisperFeatureExtractor."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=num_mel_bins)


def random_config(seed, looks=False):
    """A small configuration: heads, widths, depths, stack and window all vary.

    Args:
        seed: of the choices.
        looks: whether the decoder has cross-attention layers.
    """
    rng = random.Random(seed)
    heads, groups = rng.choice([(2, 1), (4, 2), (3, 3), (6, 2)])
    head_dim, stack = rng.choice([8, 16]), rng.choice([1, 2, 4, 5])
    layers = rng.randint(2, 5)
    encoder_heads = rng.choice([1, 2, 4])
    width = encoder_heads * rng.choice([8, 12, 16])
    crosses = sorted(rng.sample(range(1, layers), rng.randint(1, layers - 1)))
    text = TextConfig(
        vocab_size=rng.randint(50, 120),
        hidden_size=heads * head_dim,
        intermediate_size=rng.choice([40, 64]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        rope_theta=rng.choice([1e4, 5e5]),
        rope_scaling=None,
        max_position_embeddings=512,
        cross_attention_layers=tuple(crosses) if looks else (),
        num_extra_embeddings=8 if looks else 1,
    )
    # As many states as the stack divides, and as Whisper of transformers insists on.
    positions = stack * rng.choice([6, 10, 20])
    encoder = WhisperConfig(
        num_mel_bins=rng.choice([80, 128]),
        d_model=width,
        encoder_layers=rng.randint(1, 3),
        encoder_attention_heads=encoder_heads,
        encoder_ffn_dim=stack * width,  # which is how Voxtral says how many it stacks
        max_source_positions=positions,
    )
    return HearingConfig(text, encoder, stack, positions / 50)


def whisper(config, seed=0):
    """transformers' Whisper with an encoder of these sizes, filled at random."""
    transformers = quiet_transformers()
    hub = transformers.WhisperConfig(
        **asdict(config), vocab_size=51, decoder_layers=1, decoder_ffn_dim=16,
        decoder_attention_heads=1, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return reference.fill(transformers.WhisperModel(hub), seed).eval()


def encoder_of(hub, config):
    """Our encoder with the parameters of one of transformers'."""
    ours = WhisperEncoder(config)
    ours.load_state_dict(hub.state_dict())
    return ours.eval()


def voxtral(config, seed=0):
    """transformers' Voxtral at the sizes of `config`, filled at random.

    Its vocabulary is one larger than ours, by the token of a sound.
    """
    transformers = quiet_transformers()
    text, encoder = config.text, config.encoder
    hub = transformers.VoxtralForConditionalGeneration(
        transformers.VoxtralConfig(
            audio_config={
                "model_type": "voxtral_encoder",
                "hidden_size": encoder.d_model,
                "intermediate_size": encoder.encoder_ffn_dim,
                "num_hidden_layers": encoder.encoder_layers,
                "num_attention_heads": encoder.encoder_attention_heads,
                "num_mel_bins": encoder.num_mel_bins,
                "max_source_positions": encoder.max_source_positions,
            },
            text_config={
                "model_type": "llama",
                **_text_fields(text),
                "vocab_size": text.vocab_size + 1,
            },
            audio_token_id=text.vocab_size,
        )
    )
    return reference.fill(hub, seed).eval()


def _text_fields(text):
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads rms_norm_eps max_position_embeddings"
    ).split()
    rope = {"rope_type": "default", "rope_theta": text.rope_theta}
    fields = {name: getattr(text, name) for name in names}
    return fields | {"rope_parameters": rope, "head_dim": text.head_dim}


def ours_from_voxtral(hub, config):
    """(our encoder, our model) with the parameters of transformers' Voxtral."""
    state = {}
    for name, value in hub.state_dict().items():
        name = name.removeprefix("model.")
        if name == "lm_head.weight":
            value = value[: config.text.vocab_size]  # the sound's token is never said
        name = name.replace("language_model.", "language_model.model.")
        state[name.replace("lm_head", "language_model.lm_head")] = value
    tower = "audio_tower."
    rest = {n: v for n, v in state.items() if not n.startswith(tower)}
    ours = HearingModel(config)
    ours.load_state_dict(rest)
    return encoder_of(hub.model.audio_tower, config.encoder), ours.eval()


@torch.no_grad()
def voxtral_logits(hub, rows, mel, vectors):
    """Logits of Voxtral, with the sound's token as often as there are vectors."""
    mark = hub.config.audio_token_id
    spread = [
        [id for token in row for id in [token] * (vectors if token == mark else 1)]
        for row in rows
    ]
    logits = hub(input_ids=torch.tensor(spread), input_features=mel).logits
    return logits[..., :mark]


def looking(config, seed=0):
    """transformers' MllamaForCausalLM at the sizes of `config`, filled at random."""
    transformers = quiet_transformers()
    text = config.text
    hub = transformers.MllamaTextConfig(
        **_text_fields(text),
        vocab_size=text.vocab_size,
        cross_attention_layers=list(text.cross_attention_layers),
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    hub._attn_implementation = "sdpa"
    return reference.fill(transformers.MllamaForCausalLM(hub), seed).eval()


def ours_from_looking(hub, config, seed=0):
    """Our model with the decoder of `looking` and a random projector."""
    ours = reference.fill(HearingModel(config), seed)
    state = ours.state_dict()
    for name, value in hub.state_dict().items():
        state[f"language_model.{name}"] = value
    ours.load_state_dict(state)
    return ours.eval()
