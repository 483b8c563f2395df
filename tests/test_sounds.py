"""tools/sounds.py: what CTranslate2's layout holds, and who says what."""

import struct

import numpy as np
import pytest
import torch

import sounds
from mllama_lite.hearing.clips import NOTHING, WORDS

SIZE = 16


def hub():
    """transformers' Whisper, small and random, with a decoder."""
    import transformers

    import reference_hearing

    del reference_hearing  # imported for what it arranges
    torch.manual_seed(0)
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=40, num_mel_bins=8, d_model=SIZE, encoder_layers=2, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
            decoder_ffn_dim=24, max_source_positions=20, max_target_positions=10,
            pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
        )
    ).eval()  # fmt: skip


def as_ct2(state):
    """The tensors by CTranslate2's names: query, key and value in one matrix."""
    found = {}
    for side, layers in (("encoder", 2), ("decoder", 1)):
        top = f"model.{side}."
        found[f"{side}/position_encodings/encodings"] = state[
            top + "embed_positions.weight"
        ]
        for name in ("gamma", "beta"):
            what = "weight" if name == "gamma" else "bias"
            found[f"{side}/layer_norm/{name}"] = state[f"{top}layer_norm.{what}"]
        for i in range(layers):
            place, layer = f"{side}/layer_{i}/", f"{top}layers.{i}."
            norms = [
                ("self_attention", "self_attn_layer_norm"),
                ("ffn", "final_layer_norm"),
            ]
            parts = [("self_attention", "self_attn", ("qkv", "o"))]
            if side == "decoder":
                norms.append(("attention", "encoder_attn_layer_norm"))
                parts.append(("attention", "encoder_attn", ("q", "kv", "o")))
            for theirs, ours in norms:
                found[f"{place}{theirs}/layer_norm/gamma"] = state[
                    f"{layer}{ours}.weight"
                ]
                found[f"{place}{theirs}/layer_norm/beta"] = state[f"{layer}{ours}.bias"]
            for theirs, ours, groups in parts:
                for j, letters in enumerate(groups):
                    names = ["out" if x == "o" else x for x in letters]
                    for what in ("weight", "bias"):
                        pieces = [
                            state.get(
                                f"{layer}{ours}.{x}_proj.{what}", torch.zeros(SIZE)
                            )
                            for x in names
                        ]
                        found[f"{place}{theirs}/linear_{j}/{what}"] = torch.cat(pieces)
            for j in (0, 1):
                for what in ("weight", "bias"):
                    found[f"{place}ffn/linear_{j}/{what}"] = state[
                        f"{layer}fc{j + 1}.{what}"
                    ]
    for j in (1, 2):
        for what in ("weight", "bias"):
            found[f"encoder/conv{j}/{what}"] = state[f"model.encoder.conv{j}.{what}"]
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found | {"decoder/scale_embeddings": torch.tensor(0)}


def packed(tensors, version=6, name="WhisperSpec"):
    """A file in CTranslate2's layout, of 16-bit numbers."""

    def text(value):
        data = value.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    out = struct.pack("<I", version) + text(name) + struct.pack("<II", 3, len(tensors))
    for key, tensor in tensors.items():
        kind, numbers = (
            (4, tensor.half().numpy()) if tensor.ndim else (1, np.int8(tensor.item()))
        )
        out += text(key) + struct.pack("<B", tensor.ndim)
        out += b"".join(struct.pack("<I", n) for n in tensor.shape)
        out += struct.pack("<BI", kind, numbers.nbytes) + numbers.tobytes()
    return out + struct.pack("<I", 0)


def test_every_tensor_of_the_other_layout_finds_its_place(tmp_path):
    model = hub()
    state = {n: t for n, t in model.state_dict().items() if n != "proj_out.weight"}
    path = tmp_path / "model.bin"
    path.write_bytes(packed(as_ct2(state)))
    found = sounds.hub_state(sounds.read_ct2(path), SIZE)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.half()), name


@pytest.mark.parametrize("change", [{"version": 5}, {"name": "TransformerSpec"}])
def test_another_version_is_refused(change, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(packed({}, **change))
    with pytest.raises(SystemExit, match="expected Whisper's, 6"):
        sounds.read_ct2(path)


def test_nothing_that_is_tested_as_new_is_ever_spoken():
    words = sounds.other_words()
    known = {word for some in WORDS.values() for word in some}
    assert not set(sounds.UNSEEN) & (set(words[:1450]) | known)
    assert not set(words[:1300]) & set(words[1300:1450])
    assert not set(sounds.THROATS) & set(sounds.HELD_OUT)
    assert len(set(sounds.UNSEEN.values())) == len(sounds.UNSEEN)


def test_who_says_what_is_a_function_of_the_seed():
    made = [sounds.planned(sounds.THROATS, 2, ["yes"], 3, seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    texts = [clip.text for clip in made[0]]
    assert texts.count("seven") == 2 and texts.count("yes") == 1
    assert texts[-3:] == [NOTHING] * 3
    assert {clip.source.split("+")[1] for clip in made[0][:-3]} <= set(sounds.THROATS)


def test_recordings_are_named_by_what_is_said():
    clips = sounds.human_clips()
    assert clips["digits/7"] == ("seven", "digit")
    assert clips["digits/40"] == ("forty", "number")
    assert clips["digits/day-0"] == ("sunday", "date")
    assert clips["digits/mon-11"] == ("december", "date")
    assert clips["phonetic/y_p"] == ("yankee", "phonetic")
    assert clips["letters/zed"] == ("z", "letter")
    for kind, words in WORDS.items():
        assert {t for t, k in clips.values() if k == kind} == set(words), kind
