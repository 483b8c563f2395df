"""Model files made to do harm, or only wrong: nothing but InputError comes of them.

Every reader of a file from somebody else is given what its format forbids. What is drawn at
random is held against the formats' own libraries where they decide: safetensors and torch.
"""

import errno
import io
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mllama_lite import InputError, load
from mllama_lite.adapters.lora import add_adapter, lora_layers, merge
from mllama_lite.adapters.peft_files import load_adapter, sample_of_base, save_adapter
from mllama_lite.checkpoints import configs, hub
from mllama_lite.checkpoints.configs import (
    config_from_hub,
    config_from_meta,
    config_to_hub,
)
from mllama_lite.checkpoints.folders import find_files, read_config
from mllama_lite.checkpoints.loading import load_model, open_checkpoint, save_model
from mllama_lite.checkpoints.tensor_files import (
    read_pickle,
    read_pth_index,
    read_safetensors_header,
)
from mllama_lite.cost import memory_needs
from mllama_lite.decoder import TextConfig
from mllama_lite.devices import find_device, find_dtype, free_memory
from mllama_lite.files import parse_json, read_json, written_aside
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig, empty_model
from mllama_lite.tokenizer import (
    Tokenizer,
    read_tokenizer_json,
    read_tokenizer_model,
    write_tokenizer_model,
)

drawn = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

CONFIG = MllamaConfig(
    TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        cross_attention_layers=(1,),
    ),
    VisionConfig(
        hidden_size=16,
        attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        num_global_layers=1,
        image_size=28,
        intermediate_layers_indices=(0, 1),
    ),
    image_token_index=300,
)


@torch.no_grad()
def filled(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = empty_model(CONFIG).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    save_model(filled(), tmp_path / "model")
    return tmp_path / "model"


def refused(function, *arguments, says=None, **settings):
    """The sentence with which something is refused: printable, and of bounded length."""
    with pytest.raises(InputError, match=says) as caught:
        function(*arguments, **settings)
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 1500, sentence
    return sentence


def only_input_errors(function, *arguments):
    """What a function returns, or the InputError that it raises; nothing else."""
    try:
        return function(*arguments)
    except InputError as error:
        assert str(error)
        return error


# Configurations


def text_only():
    document = config_to_hub(CONFIG, torch.float32)["text_config"]
    entries = {k: v for k, v in document.items() if k != "cross_attention_layers"}
    return entries | {"model_type": "llama"}


def meta_params():
    return {
        "dim": 64,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 300,
        "multiple_of": 8,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "vision_chunk_size": 28,
        "vision_max_num_chunks": 4,
        "vision_num_cross_attention_layers": 2,
    }


def complete():
    """A document of each kind with every entry that is read, and its reader."""
    mllama = config_to_hub(CONFIG, torch.float32)
    mllama["eos_token_id"] = [1, 2]
    mllama["text_config"] |= {"attention_bias": False, "mlp_bias": False}
    return {
        "mllama": (mllama, config_from_hub),
        "llama": (text_only(), config_from_hub),
        "params": (meta_params(), config_from_meta),
    }


TABLES = {
    "mllama": {
        (): configs.HUB_FIELDS,
        ("text_config",): configs.TEXT_FIELDS | configs.CROSS_FIELDS,
        ("text_config", "rope_scaling"): configs.ROPE_KIND | configs.ROPE_FIELDS,
        ("vision_config",): configs.VISION_FIELDS,
    },
    "llama": {
        (): configs.TEXT_FIELDS,
        ("rope_scaling",): configs.ROPE_KIND | configs.ROPE_FIELDS,
    },
    "params": {(): configs.META_FIELDS},
}
PLACES = [
    (kind, *within, name)
    for kind, tables in TABLES.items()
    for within, table in tables.items()
    for name in table
]
FRACTIONS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor") + (
    "ffn_dim_multiplier",
)
FLAGS = ("tie_word_embeddings", "use_scaled_rope")


def changed(place, value):
    """(document with one entry changed, its reader)."""
    kind, *within, name = place
    document, reader = complete()[kind]
    document = json.loads(json.dumps(document))
    target = document
    for key in within:
        target = target[key]
    target[name] = value
    return document, reader


def test_the_complete_documents_are_read():
    for document, reader in complete().values():
        assert isinstance(reader(document), MllamaConfig)


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_every_entry_of_another_type_or_size_is_named(place):
    name = place[-1]
    wrong = ["x", "", [None], [[]], {"a": 1}, math.nan, math.inf, -math.inf, -2]
    wrong += [10**18, 2**63, 10**100, -1.5, [-1], [1.5], [True], ["0"]]
    wrong += [True] * (name not in FLAGS) + [1.5] * (name not in FRACTIONS)
    for value in wrong:
        document, reader = changed(place, value)
        assert name in refused(reader, document), value


@drawn
@given(
    st.sampled_from(PLACES),
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 600)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-1, 5) | st.lists(st.integers(0, 3), max_size=3), max_size=5)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(PLACES),
    st.integers(0, 40),
)
def test_what_is_read_can_be_built(first, value, second, number):
    """Any two entries changed: refused, or a model of bounded depth and image."""
    document, reader = changed(first, value)
    kind, *within, name = second
    target = document if first[0] == kind else {}
    for key in within:
        target = target.get(key) if isinstance(target, dict) else None
    if isinstance(target, dict):
        target[name] = number
    config = only_input_errors(reader, document)
    if isinstance(config, MllamaConfig):
        text, vision = config.text, config.vision
        assert text.num_hidden_layers <= 1024 and math.isfinite(text.rope_theta)
        assert 0 < text.rms_norm_eps < 1 <= text.rope_theta
        if vision:
            assert vision.max_num_tiles * vision.image_size**2 <= configs.MOST_PIXELS
        if text.num_hidden_layers < 10:
            empty_model(config)


@pytest.mark.parametrize(
    "place, value",
    [
        (("mllama", "text_config", "num_key_value_heads"), 3),
        (("mllama", "text_config", "head_dim"), 7),
        (("mllama", "text_config", "cross_attention_layers"), [3]),
        (("mllama", "text_config", "cross_attention_layers"), [1, 1]),
        (("mllama", "text_config", "cross_attention_layers"), [1, 0]),
        (("mllama", "text_config", "cross_attention_layers"), [0, 1, 2]),
        (("mllama", "text_config", "cross_attention_layers"), []),
        (("mllama", "text_config", "tie_word_embeddings"), True),
        (("mllama", "vision_config", "patch_size"), 13),
        (("mllama", "vision_config", "attention_heads"), 3),
        (("mllama", "vision_config", "intermediate_layers_indices"), [0, 2]),
        (("mllama", "vision_config", "intermediate_layers_indices"), [1, 0]),
        (("mllama", "vision_config", "vision_output_dim"), 32),
        (("mllama", "vision_config", "max_num_tiles"), 5),
        (("mllama", "image_token_index"), 299),
        (("mllama", "image_token_index"), 308),
        (("llama", "num_key_value_heads"), 3),
        (("params", "n_kv_heads"), 3),
        (("params", "dim"), 66),
        (("params", "vision_chunk_size"), 30),
        (("params", "vision_max_num_chunks"), -1),
        (("params", "vision_num_cross_attention_layers"), 5),
        (("params", "vision_num_cross_attention_layers"), -1),
        (("params", "multiple_of"), 2**20 + 1),
        (("params", "ffn_dim_multiplier"), 1e5),
    ],
)
def test_entries_that_contradict_each_other(place, value):
    document, reader = changed(place, value)
    refused(reader, document)
    if place[-1] == "head_dim":  # absent, it follows from the width
        document["text_config"] |= {"head_dim": None, "hidden_size": 33}
        refused(reader, document, says="num_attention_heads 4: expected a divisor")


def test_null_is_the_default():
    """What the hub's own files leave open with null."""
    document, reader = complete()["mllama"]
    plain = reader(document)
    text, vision = document["text_config"], document["vision_config"]
    text |= dict.fromkeys(["tie_word_embeddings", "eos_token_id", "attention_bias"])
    text |= dict.fromkeys(["pad_token_id", "bos_token_id", "hidden_act", "head_dim"])
    vision |= dict.fromkeys(["hidden_act", "supported_aspect_ratios", "num_channels"])
    document["pad_token_id"] = None
    assert reader(document) == plain
    text["rope_scaling"] = None
    assert reader(document).text.rope_scaling is None
    document = text_only() | {"eos_token_id": None, "rope_parameters": None}
    assert config_from_hub(document).eos_token_ids == ()
    assert config_from_hub(document | {"eos_token_id": 0}).eos_token_ids == (0,)


@pytest.mark.parametrize(
    "sizes",
    [
        (4096, 14336, 32, 32, 8, None),  # 8B
        (8192, 28672, 80, 64, 8, 8.0),  # 70B
        (16384, 53248, 126, 128, 8, 8.0),  # 405B
        (2048, 8192, 16, 32, 8, 32.0),  # 1B
    ],
)
def test_published_sizes_are_read(sizes):
    width, inner, depth, heads, key_heads, factor = sizes
    document = text_only() | {
        "vocab_size": 128256,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": None,
        "rope_scaling": factor
        and {"type": "llama3", "factor": factor, "low_freq_factor": 1.0}
        | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    }
    config = config_from_hub(document).text
    assert config.head_dim == width // heads and config.num_hidden_layers == depth


# JSON


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"5",
        b"null",
        b'{"a": 1',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"{\xff}",
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "b": 2, "a": 3}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a": ' * 200_000 + b"1" + b"}" * 200_000,
        b'{"a": 1} {"a": 1}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_json_to_the_letter(tmp_path, content):
    refused(parse_json, content, "file", says="JSON|deeply")
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(read_config, tmp_path)
    path.rename(tmp_path / "model.safetensors.index.json")
    refused(find_files, tmp_path)


@drawn
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:0159.eE-tfnul ').map(str.encode)
)
def test_any_bytes_are_json_or_refused(data):
    document = only_input_errors(parse_json, data, "file")
    if not isinstance(document, InputError):
        assert document == json.loads(data)


def test_numbers_beyond_floats_are_in_no_range(tmp_path):
    document = json.dumps(complete()["llama"][0])
    for text in ("1e999", "-1e999", "1e-400"):
        there = re.sub(r'"rms_norm_eps": [^,]+', f'"rms_norm_eps": {text}', document)
        (tmp_path / "config.json").write_text(there)
        refused(read_config, tmp_path, says="rms_norm_eps")


# The index


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../model.safetensors", "a/model.safetensors", "..", ".", "", "\0"]
    + ["a\\b.safetensors", "C:x.safetensors", "\n.safetensors", "model.bin", "x" * 9999]
    + [5, None, ["model.safetensors"], True, "\ud800.safetensors"],
)
def test_an_index_stays_in_its_folder(folder, tmp_path, name):
    names = list(read_safetensors_header(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    refused(load_model, folder, says="weight_map|beside it")


def sharded(path):
    save_model(filled(), path, max_shard_bytes=20_000)
    return path / "model.safetensors.index.json"


def test_an_index_tells_what_its_files_hold(tmp_path):
    index = sharded(tmp_path)
    document = json.loads(index.read_text())
    places = document["weight_map"]
    files = list(places.values())
    first = next(name for name in places if files.count(places[name]) > 1)
    other = next(file for file in files if file != places[first])
    load_model(tmp_path)
    for change in ({first: other}, {"more": places[first]}):
        index.write_text(json.dumps(document | {"weight_map": places | change}))
        refused(load_model, tmp_path, says="index.json is truncated or damaged")


def test_links_are_followed(tmp_path):
    """The hub's cache is made of links."""
    sharded(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert not load_model(tmp_path / "snapshot")[1].missing


# Safetensors


def safetensors(header, numbers=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (
        struct.pack("<Q", len(header) if length is None else length) + header + numbers
    )


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"." * 4
        ),
        safetensors(
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"." * 8
        ),
        safetensors(
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"." * 12
        ),
        safetensors({"a": entry("F32", [1], 4, 8)}, b"." * 8),
        safetensors({"a": entry("F32", [1], 0, 4)}, b"." * 5),
        safetensors({"a": entry("F32", [1], 0, 4)}, b"." * 3),
        safetensors({"a": entry("F32", [-1], 0, -4)}, b"." * 4),
        safetensors({"a": entry("F32", [-1, -1], 0, 4)}, b"." * 4),
        safetensors({"a": entry("F32", [1.0], 0, 4)}, b"." * 4),
        safetensors({"a": entry("F32", [True], 0, 4)}, b"." * 4),
        safetensors({"a": entry("F32", [1] * 100, 0, 4)}, b"." * 4),
        safetensors({"a": entry("F32", [2**40, 2**40], 0, 4)}, b"." * 4),
        safetensors({"a": entry("F32", [1], 0, 2**63)}, b"." * 4),
        safetensors({"a": entry("F32", [1], 4, 0)}, b"." * 4),
        safetensors({"a": entry("F32", [1], 0)}, b"." * 4),
        safetensors({"a": entry("F32", 1, 0, 4)}, b"." * 4),
        safetensors({"a": entry("F33", [1], 0, 4)}, b"." * 4),
        safetensors({"a": entry([], [1], 0, 4)}, b"." * 4),
        safetensors({"a": entry("I32", [1], 0, 4)}, b"." * 4),
        safetensors({"a": None}),
        safetensors({"a": []}),
        safetensors({"__metadata__": []}),
        safetensors({"__metadata__": {"a": 1}}),
        safetensors(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}'),
        safetensors(b"[]"),
        safetensors(b""),
        safetensors(b"{}", length=2**63),
        safetensors(b"{}", length=2**64 - 1),
        safetensors(b"{}", length=3),
        safetensors(b'{"a":' * 100_000),
        b"",
        b"\0\0\0",
    ],
    ids=lambda content: repr(content[8:48]),
)
def test_safetensors_that_break_a_promise(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(read_safetensors_header, tmp_path / "model.safetensors")


offsets = st.integers(0, 12).map(lambda n: 2 * n)


@drawn
@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(
            entry,
            st.sampled_from(["F16", "BF16", "F32", "F64"]),
            st.lists(st.integers(0, 3), max_size=3),
            offsets,
            offsets,
        ),
        max_size=3,
    ),
    st.booleans(),
    st.integers(0, 24),
)
def test_safetensors_are_read_as_its_own_library_does(
    tmp_path_factory, header, pack, extra
):
    """Accepted by both or refused by both, with offsets drawn, or packed as they should be."""
    end = 0
    if pack:
        for one in header.values():
            size = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[one["dtype"]]
            begin, end = end, end + size * math.prod(one["shape"])
            one["data_offsets"] = begin, end
        extra = extra // 20
    path = tmp_path_factory.mktemp("drawn") / "model.safetensors"
    path.write_bytes(safetensors(header, bytes(end + extra)))
    try:
        with safe_open(path, "pt") as file:
            theirs = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        theirs = None
    ours = only_input_errors(read_safetensors_header, path)
    assert isinstance(ours, InputError) == (theirs is None)
    if theirs is not None:
        assert {n: (s.dtype, s.shape) for n, s in ours.items()} == {
            n: (t.dtype, tuple(t.shape)) for n, t in theirs.items()
        }


# .pth


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def packed(members, **options):
    """A zip archive of some members: dict from name to bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unpacked(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors_of(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 5, generator=generator).to(dtype)
    return {
        "whole": base,
        "rows": base[2:4],
        "row": base[5],
        "one": base[3, 3],
        "empty": base[:0],
        "column": base[:, :1][:1],
        "same": base,
        "parameter": torch.nn.Parameter(base.clone()),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_saves_is_read_to_the_bit(tmp_path, dtype):
    for value in (tensors_of(1, dtype), torch.nn.Linear(4, 3).to(dtype).state_dict()):
        (tmp_path / "a.pth").write_bytes(saved(value))
        index = read_pth_index(tmp_path / "a.pth")
        assert index.keys() == value.keys()
        for name, tensor in value.items():
            read = index[name].read()
            assert read.dtype == tensor.dtype and read.shape == tensor.shape
            assert (
                read.numpy(force=True).tobytes() if False else torch.equal(read, tensor)
            )


def test_an_archive_that_was_packed_anew_is_read_where_its_bytes_are(tmp_path):
    value = tensors_of(2, torch.float32)
    (tmp_path / "a.pth").write_bytes(packed(unpacked(saved(value))))
    index = read_pth_index(tmp_path / "a.pth")
    assert all(torch.equal(index[name].read(), value[name]) for name in value)


@pytest.mark.parametrize(
    "value, says",
    [
        ({"a": torch.ones(3, 4).T}, "not stored row by row"),
        ({"a": torch.ones(3, 4)[:, 1:]}, "not stored row by row"),
        ({"a": torch.ones(1).expand(5)}, "not stored row by row"),
        ({"a": torch.ones(3, dtype=torch.int8)}, "dtype CharStorage"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "dtype ComplexFloatStorage"),
        ({"a": torch.ones(3).to_sparse()}, "holds more than tensors"),
        ({"a": torch.ones(3, dtype=torch.uint16)}, "holds more than tensors"),
        ({"a": 5}, "holds a int at 'a'"),
        ({5: torch.ones(3)}, "holds a View at 5"),
        ({"a": {"b": torch.ones(3)}}, "holds a dict at 'a'"),
        ({("a", "b"): torch.ones(3)}, "no dict of names"),
        (torch.ones(3), "holds a View at 0"),
        ([torch.ones(3)], "more than tensors"),
        ({"a": os.system}, "more than tensors .*posix"),
        ({"a": eval}, "more than tensors .*eval"),
    ],
)
def test_pth_that_is_no_state_dict(tmp_path, value, says):
    (tmp_path / "a.pth").write_bytes(saved(value))
    refused(read_pth_index, tmp_path / "a.pth", says=says)


def pickled(arguments, kind=b"ctorch\nFloatStorage\n", key="0", length=4):
    """The pickle of one tensor, whose arguments after the storage are given."""
    body = b"\x80\x02}(X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(("
    body += pickle.dumps("storage", 2)[2:-1] + kind
    body += pickle.dumps(key, 2)[2:-1] + pickle.dumps("cpu", 2)[2:-1]
    body += pickle.dumps(length, 2)[2:-1] + b"tQ"
    for argument in arguments:
        body += pickle.dumps(argument, 2)[2:-1]
    return body + b"tRu."


def pth(program, data=bytes(16), **members):
    names = {"a/data.pkl": program, "a/data/0": data, "a/version": b"3\n"}
    return packed(names | members)


GOOD = (0, (2, 2), (2, 1), False, {})


def test_the_pickle_by_hand_is_good(tmp_path):
    (tmp_path / "a.pth").write_bytes(pth(pickled(GOOD)))
    assert torch.equal(
        read_pth_index(tmp_path / "a.pth")["a"].read(), torch.zeros(2, 2)
    )


@pytest.mark.parametrize(
    "arguments, more",
    [
        ((-1, *GOOD[1:]), {}),
        ((1, *GOOD[1:]), {}),
        ((2**63, *GOOD[1:]), {}),
        ((0.0, *GOOD[1:]), {}),
        ((None, *GOOD[1:]), {}),
        ((True, *GOOD[1:]), {}),
        ((0, (-2, -2), (2, 1)), {}),
        ((0, (2, 2), (-2, 1)), {}),
        ((0, (2, 2), (0, 0)), {}),
        ((0, (2, 2), (2,)), {}),
        ((0, (2**40, 2**40), (2**40, 1)), {}),
        ((0, 4, 1), {}),
        ((0, "22", "21"), {}),
        ((0,), {}),
        ((), {}),
        (GOOD, {"length": 3}),
        (GOOD, {"length": 5}),
        (GOOD, {"length": -1}),
        (GOOD, {"length": None}),
        (GOOD, {"key": "1"}),
        (GOOD, {"key": "../data.pkl"}),
        (GOOD, {"key": 0.5}),
        (GOOD, {"kind": b"N"}),
        (GOOD, {"kind": b"ctorch\nDoubleStorage\n"}),
        (GOOD, {"kind": b"ctorch\nUntypedStorage\n"}),
        (GOOD, {"kind": b"cos\nsystem\n"}),
        (GOOD, {"kind": b"ctorch._utils\n_rebuild_tensor_v2\n"}),
    ],
)
def test_tensors_that_are_not_where_they_should_be(tmp_path, arguments, more):
    (tmp_path / "a.pth").write_bytes(pth(pickled(arguments, **more)))
    refused(read_pth_index, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02N",
        b"\x80\x02(.",
        b"\x80\x02}(NN",
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02q\0.",
        b"\x80\x02h\0.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02Nr\xff\xff\xff\xff0.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02B\xff\xff\xff\x7fa.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02N" + b"\x85" * 100_000 + b".",
        b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.",
        b"\x80\x02}q\0(X\1\0\0\0ah\0u.",
        b"\x80\x02cos\nsystem\nX\4\0\0\0true\x85R.",
        b"\x80\x04\x8c\2os\x8c\6system\x93\x8c\4true\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n((NNtt\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch\nFloatStorage\n)\x81.",
        b"\x80\x02(itorch\nload\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02P0\n.",
        b"\x80\x02N(((((Q.",
        b"\x80\x02]q\0h\0a.",
        b"\x80\x02" + b"N" * (2**20 - 2),
        b"\x80\x02" + b"N" * 2**20,
    ],
    ids=lambda program: repr(program[:24]),
)
def test_pickles_that_no_tensors_have(tmp_path, program):
    (tmp_path / "a.pth").write_bytes(pth(program))
    refused(read_pth_index, tmp_path / "a.pth")


@drawn
@given(st.data())
def test_a_pickle_with_wrong_bytes_reads_or_is_refused(data):
    program = bytearray(
        unpacked(saved(tensors_of(0, torch.float32)))["archive/data.pkl"]
    )
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(program) - 1))
        program[place] = data.draw(
            st.integers(0, 255) | st.sampled_from(b"RbQsu()}.tc")
        )
    only_input_errors(read_pickle, bytes(program), "a.pth")


@drawn
@given(
    st.lists(
        st.sampled_from([bytes([i]) for i in range(256)] + [b"q\0", b"h\0", b"K\1"])
    )
)
def test_any_operations_read_or_are_refused(operations):
    only_input_errors(read_pickle, b"\x80\x02" + b"".join(operations) + b".", "a.pth")


@drawn
@given(st.data())
def test_an_archive_with_wrong_bytes_reads_or_is_refused(tmp_path_factory, data):
    content = bytearray(pth(pickled(GOOD)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, 2 * len(content)))]
    path = tmp_path_factory.mktemp("drawn") / "a.pth"
    path.write_bytes(content)
    index = only_input_errors(read_pth_index, path)
    if not isinstance(index, InputError):
        for stored in index.values():
            assert stored.read().shape == stored.shape


def double(data, name):
    """An archive whose directory lists a member a second time, under another name."""
    other = name[:-1] + "9"
    begin = data.index(b"PK\1\2")
    while data[begin + 46 : begin + 46 + len(name)].decode() != name:
        begin = data.index(b"PK\1\2", begin + 4)
    size = 46 + len(name)
    listed = data[begin : begin + 46] + other.encode()
    end = data.index(b"PK\5\6")
    count, room = struct.unpack_from("<10xHI", data, end)
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, count + 1, count + 1, room + size)
    return data[:end] + listed + bytes(tail)


@pytest.mark.parametrize(
    "content, says",
    [
        (packed(unpacked(pth(pickled(GOOD))), compression=8), "compressed"),
        (
            packed({"a/data.pkl": pickled(GOOD), "b/data.pkl": b"."}),
            "2 members data.pkl",
        ),
        (packed({"a/b/data.pkl": pickled(GOOD)}), "0 members data.pkl"),
        (packed({"data.pkl": pickled(GOOD)}), "0 members data.pkl"),
        (pth(pickled(GOOD), **{"a/byteorder": b"big"}), "byte order"),
        (pth(pickled(GOOD), **{"a/byteorder": b"x" * 2**21}), "too large"),
        (pth(pickled(GOOD), data=bytes(12)), "not where they should be"),
        (double(pth(pickled(GOOD)), "a/data/0"), "overlap"),
        (
            double(pth(pickled(GOOD)), "a/data/0").replace(b"a/data/9", b"a/data/0"),
            "twice",
        ),
        (pth(pickled(GOOD)) + b"PK\5\6" + b"\xff" * 18, "zip"),
        (
            saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False),
            "before 1.6",
        ),
        (pickle.dumps({"a": 1}), "zip"),
    ],
)
def test_archives_that_torch_does_not_write(tmp_path, content, says):
    (tmp_path / "a.pth").write_bytes(content)
    refused(read_pth_index, tmp_path / "a.pth", says=says)


BOUNDED = """
import io, resource, struct, sys, time, zipfile
from pathlib import Path
from mllama_lite import InputError
from mllama_lite.checkpoints.configs import config_from_hub
from mllama_lite.checkpoints.folders import find_files, read_config
from mllama_lite.checkpoints.tensor_files import read_pth_index, read_safetensors_header
from mllama_lite.tokenizer import read_tokenizer_json, read_tokenizer_model

folder = Path(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20), used + (700 << 20)))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def sparse(name, size, *parts):
    with open(folder / name, "wb") as file:
        for place, data in parts:
            file.seek(place)
            file.write(data)
        file.truncate(size)
    return folder / name


def bombs(*members):
    # A gigabyte of zeros in a megabyte, as each of some members of equally long names.
    with zipfile.ZipFile(folder / "bomb", "w", 8, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", b"}.")
        with archive.open(members[0], "w", force_zip64=True) as file:
            for _ in range(1024):
                file.write(bytes(1 << 20))
    data = (folder / "bomb").read_bytes()
    for member in members:
        path = folder / member.replace("/", "-")
        path.write_bytes(data.replace(members[0].encode(), member.encode()))
        yield read_pth_index, path


giga = 1 << 30
end = struct.pack("<4s4H2IH", b"PK\\5\\6", 0, 0, 65535, 65535, giga * 3 - 22, 0, 0)
trials = [
    (read_config, sparse("config.json", 4 * giga).parent),
    (find_files, sparse("model.safetensors.index.json", 4 * giga).parent),
    (read_tokenizer_model, sparse("tokenizer.model", 4 * giga)),
    (read_tokenizer_json, sparse("tokenizer.json", 4 * giga)),
    (read_safetensors_header, sparse("a", 4 * giga, (0, struct.pack("<Q", 3 * giga) + b"{"))),
    (read_safetensors_header, sparse("b", 4 * giga, (0, struct.pack("<Q", 99_000_000) + b"{"))),
    (read_pth_index, sparse("c", 3 * giga, (0, b"PK\\3\\4"), (3 * giga - 22, end))),
    *bombs("a/byteorder", "a/.version_", "a/data/0000"),
    (config_from_hub, {"model_type": "llama"} | {"num_hidden_layers": 10**6}),
]
header = b'{"a":[' + b"[]," * 5_000_000 + b"1]}"
(folder / "g").write_bytes(struct.pack("<Q", len(header)) + header)
trials.append((read_safetensors_header, folder / "g"))
for function, argument in trials:
    begin = time.process_time()
    try:
        function(argument)
    except InputError as error:
        print(function.__name__, str(error)[:300])
    else:
        sys.exit(f"{function.__name__} took {argument}")
    assert time.process_time() - begin < 30, function.__name__
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_memory_and_time_are_bounded(tmp_path):
    command = [sys.executable, "-c", BOUNDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 12


# What the system refuses


def place_fifo(path):
    os.mkfifo(path)


def place_folder(path):
    path.mkdir()


def place_device(path):
    path.symlink_to("/dev/zero")


def place_broken_link(path):
    path.symlink_to(path.parent / "nowhere")


def place_circle(path):
    path.symlink_to(path)


READERS = {
    "config.json": read_config,
    "params.json": read_config,
    "model.safetensors.index.json": open_checkpoint,
    "model.safetensors": open_checkpoint,
    "consolidated.pth": open_checkpoint,
    "tokenizer.model": hub.find_tokenizer,
    "tokenizer.json": hub.find_tokenizer,
    "adapter_config.json": lambda folder: load_adapter(filled(), folder),
    "adapter_model.safetensors": lambda folder: load_adapter(filled(), folder),
}


@pytest.mark.parametrize(
    "place", [place_fifo, place_folder, place_device, place_broken_link, place_circle]
)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, place):
    document = config_to_hub(CONFIG, torch.float32)
    if name not in ("config.json", "params.json"):
        (tmp_path / "config.json").write_text(json.dumps(document))
    if name == "adapter_model.safetensors":
        (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    if name == "adapter_config.json":
        (tmp_path / "adapter_model.safetensors").write_bytes(safetensors({}))
    place(tmp_path / name)
    assert name in refused(READERS[name], tmp_path)


def test_names_that_cannot_be():
    for name in ("n" * 300, "a/" + "n" * 300, "n" * 5000, "a\0b", "\ud800"):
        refused(load_model, name)
        refused(open_checkpoint, name)
        refused(read_json, name)
        refused(Tokenizer.from_file, name)
        refused(load_adapter, filled(), name)
        refused(save_model, filled(), name)


LOCKED = """
import json, os, sys
from pathlib import Path
from mllama_lite import InputError
from mllama_lite.adapters.data import read_samples
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.checkpoints.loading import load_model, open_checkpoint, save_model
from mllama_lite.cli.ask import _check_adapter

folder = Path(sys.argv[1])
model, _ = load_model(folder / "model")
if os.getuid() == 0:
    os.setuid(65534)
for name, function in json.loads(sys.argv[2]):
    path = folder / name
    try:
        eval(function)(path)
    except InputError as error:
        print("Permission denied" in str(error), name, error)
    else:
        print(False, name)
"""


def test_what_may_not_be_read_or_written(tmp_path, folder):
    """As a user who is nobody: root may read everything."""
    trials = []
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        copy = tmp_path / f"locked {name}"
        save_model(filled(), copy)
        (copy / "tokenizer.model").write_bytes(b"")
        (copy / name).chmod(0)
        reader = "find_tokenizer" if "tokenizer" in name else "open_checkpoint"
        trials.append((copy.name, reader))
    for name in ("shut", "shut/inner"):
        (tmp_path / name).mkdir()
        trials.append((name, "open_checkpoint"))
    trials.append(("shut/inner", "find_folder"))
    trials.append(("shut/inner", "lambda path: read_samples(path, None, None)"))
    trials.append(("shut/inner", "_check_adapter"))
    trials.append(("shut", "lambda path: save_model(model, path)"))
    (tmp_path / "shut").chmod(0)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    command = [sys.executable, "-c", LOCKED, str(tmp_path), json.dumps(trials)]
    done = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / "shut").chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == len(trials), done.stderr
    assert all(line.startswith("True") for line in lines), lines


FULL = """
import resource, sys
from pathlib import Path
import torch
from mllama_lite import InputError
from mllama_lite.adapters.lora import add_adapter
from mllama_lite.adapters.peft_files import save_adapter
from mllama_lite.checkpoints.loading import load_model, save_model
from mllama_lite.files import write_json, written_aside

folder = Path(sys.argv[1])
model, _ = load_model(folder)
add_adapter(model, "all", 8, report=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def saved(path):
    with written_aside(path) as part:
        torch.save({"a": torch.zeros(10_000)}, part)


for function in (
    lambda: save_model(model, folder),
    lambda: save_model(model, folder, max_shard_bytes=3000),
    lambda: save_adapter(model, folder),
    lambda: write_json({"a": "x" * 5000}, folder / "config.json"),
    lambda: saved(folder / "model.safetensors"),
):
    try:
        function()
    except InputError as error:
        print("cannot be written" in str(error), error)
    else:
        print(False)
"""


def test_a_full_disk_loses_nothing(tmp_path, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(line.startswith("True") for line in lines), done
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_written_aside(tmp_path):
    path = tmp_path / "file"
    with written_aside(path) as part:
        part.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), written_aside(path) as part:
        part.write_text("second")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["file"]
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "file/below", "no/folder", "n" * 300, "a\0b"):
        with pytest.raises(InputError), written_aside(tmp_path / name) as part:
            part.write_text("x")
    with pytest.raises(InputError), written_aside("/dev/null") as part:
        part.write_text("x")
    with pytest.raises(ZeroDivisionError), written_aside(path):
        raise ZeroDivisionError
    assert path.read_text() == "first"


def test_a_model_is_saved_into_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(save_model, filled(), tmp_path / "file", says="is a file")
    refused(save_model, filled(), tmp_path / "file" / "below", says="cannot be written")
    refused(save_model, filled(), "")
    assert (tmp_path / "file").read_text() == "mine"


# Calls from Python


@pytest.mark.parametrize("what", [5, True, [], {}, b"x", 1.5, "", object()])
def test_models_devices_and_dtypes_of_another_kind(folder, what):
    refused(load, what)
    refused(load_model, what)
    refused(read_config, what)
    refused(find_device, what)
    refused(find_dtype, what)
    refused(free_memory, what)
    refused(load_model, folder, device=what)
    refused(load_model, folder, dtype=what)
    refused(memory_needs, CONFIG, what, 1, 1)
    if what != 5:
        refused(memory_needs, CONFIG, torch.float32, what, 1)


def test_devices_that_are_not_there():
    names = [
        "hpu",
        "privateuseone",
        "meta",
        "vulkan",
        "xla",
        "cuda:99",
        "cpu:",
        "\x1b[2J",
    ]
    for name in [*names, torch.device("meta")]:
        refused(find_device, name, says="is not there")
    for dtype in (torch.int8, torch.bool, "int8", "float", "torch.float32"):
        refused(find_dtype, dtype, says="is not known")


# Adapters

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
PREFIX = "base_model.model.model.language_model.layers.0.self_attn.q_proj."
OLD_PREFIX = "base_model.model.language_model.model.layers.0.self_attn.q_proj."


def pair(prefix=PREFIX, a=None, b=None):
    return {
        f"{prefix}lora_A.weight": torch.ones(2, 32) if a is None else a,
        f"{prefix}lora_B.weight": torch.ones(32, 2) if b is None else b,
    }


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter").mkdir()

    def write(config=None, tensors=None, notes=None):
        config = ADAPTER | (config or {})
        path = tmp_path / "adapter"
        (path / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors or pair(), path / "adapter_model.safetensors", notes)
        return path

    return write


@pytest.fixture(scope="module")
def model():
    return filled()


def leaves_no_trace(model, path, says=None):
    before = {n: (id(m), m.training) for n, m in model.named_modules()}
    trains = [p.requires_grad for p in model.parameters()]
    sentence = refused(load_adapter, model, path, says=says)
    assert {n: (id(m), m.training) for n, m in model.named_modules()} == before
    assert [p.requires_grad for p in model.parameters()] == trains
    return sentence


def test_the_adapter_by_hand_is_good(adapter):
    for config in ({}, {"lora_dropout": None, "r": None}, {"alpha_pattern": None}):
        assert len(load_adapter(filled(), adapter(config))) == 2


@pytest.mark.parametrize("name", ["lora_alpha", "lora_dropout", "r", "use_rslora"])
def test_settings_of_an_adapter_of_another_kind(model, adapter, name):
    values = ["4", [], {}, math.nan, math.inf, -1, 1e300, 10**400, "NaN"]
    values += [True] * (name != "use_rslora") + [None, 0] * (name == "lora_alpha")
    for value in values:
        leaves_no_trace(model, adapter({name: value}))


@pytest.mark.parametrize(
    "config",
    [{"init_lora_weights": "pissa"}, {"fan_in_fan_out": True}, {"use_dora": True}]
    + [{"modules_to_save": ["lm_head"]}, {"use_dora": 0}, {"peft_type": ["LORA"]}]
    + [{"r": 3}, {"rank_pattern": {"q_proj": 3}}, {"bias": {}}]
    + [{"base_model_name_or_path": 5}, {"layer_replication": [[0, 1]]}],
)
def test_settings_that_would_compute_something_else(model, adapter, config):
    leaves_no_trace(model, adapter(config))


@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize(
    "patterns",
    [
        {"(.*)*$x": 4},
        {"(a+)+$": 4},
        {".*.*.*.*.*.*.*.*.*.*x": 4},
        {"(": 4},
        {"[": 4},
        {"q_proj|v_proj": 4},
        {"(?=q_proj)": 4},
        {r"\w+": 4},
        {r"(q_proj)\1": 4},
        {"a" * 201 + r"\d": 4},
        {r"q\d" + "a" * i: 4 for i in range(101)},
        {"q_proj": "4"},
        {"q_proj": math.nan},
        {"q_proj": True},
        {"q_proj": -1},
        {"q_proj": [4]},
        ["q_proj"],
        "q_proj",
        5,
    ],
    ids=lambda patterns: repr(patterns)[:30],
)
def test_patterns_that_are_refused(model, adapter, setting, patterns):
    leaves_no_trace(model, adapter({setting: patterns}), says="_pattern")


@pytest.mark.parametrize(
    "pattern, scale",
    [
        ("q_proj", 3),
        ("self_attn.q_proj", 3),
        (PREFIX.removeprefix("base_model.model.")[:-1], 3),
        (r"layers\.\d+\.self_attn\.q_proj", 3),
        (r"model.language_model.layers.\d.self_attn.q_proj$", 3),
        (r"^model.*q_proj$", 3),
        (".*q_proj", 3),
        ("proj", 2),
        ("^q_proj", 2),
        ("layers", 2),
        (r"layers\.\d+", 2),
        ("q.proj", 2),  # PEFT would take the dot for any character
        ("", 2),
    ],
)
def test_patterns_match_the_end_of_a_name(adapter, pattern, scale):
    changed = filled()
    load_adapter(changed, adapter({"alpha_pattern": {pattern: 6}}))
    (layer,) = lora_layers(changed).values()
    assert layer.adapters["default"].scale == scale


def test_many_patterns_take_no_time(adapter):
    patterns = {f"layers.{i}.self_attn.v_proj": 5 for i in range(1900)}
    patterns |= {rf"^model.*\d+x{i}": 5 for i in range(100)}
    load_adapter(filled(), adapter({"alpha_pattern": patterns}))


@pytest.mark.parametrize(
    "tensors, says",
    [
        (pair(a=torch.full((2, 32), math.nan)), "NaN or infinity"),
        (pair(b=torch.full((32, 2), math.inf)), "NaN or infinity"),
        (pair(a=torch.full((2, 32), 1e300, dtype=torch.float64)), "NaN or infinity"),
        (pair() | pair(OLD_PREFIX), "names one layer in two ways"),
        (pair(a=torch.ones(32)), "expected a matrix"),
        (pair(b=torch.ones(32, 2, 1)), "expected a matrix"),
        (pair(a=torch.ones(0, 32), b=torch.ones(32, 0)), "expected a matrix"),
        (pair(a=torch.ones(2, 33)), "has matrices"),
        (pair(b=torch.ones(32, 3)), "has matrices"),
        (pair(b=torch.ones(32, 2, dtype=torch.int32)), "dtype I32"),
        (pair(PREFIX.replace("q_proj", "rotary")), "an adapter for"),
        (pair(PREFIX.replace("base_model.", "")), "expected lora_A and lora_B"),
        (pair() | {f"{PREFIX}base_layer.weight": torch.ones(32, 32)}, "holds another"),
        (pair() | {f"{PREFIX}base_layer.weight": torch.ones(3)}, "holds another"),
    ],
)
def test_matrices_that_are_refused(model, adapter, tensors, says):
    leaves_no_trace(model, adapter(tensors=tensors), says=says)


def test_adapter_files_that_are_damaged(model, adapter):
    path = adapter()
    for content in (b'{"lora_alpha": ' + b"[" * 200_000, b"[]", b"{}", b"", b"\xff"):
        (path / "adapter_config.json").write_bytes(content)
        leaves_no_trace(model, path)
    adapter()
    (path / "adapter_model.safetensors").write_bytes(safetensors({}))
    leaves_no_trace(model, path, says="holds no matrices")


def test_an_adapter_knows_its_model(tmp_path):
    """Another model of the same size is refused; the same one in bf16 is not."""
    first = filled(0)
    save_model(first, tmp_path / "model")
    add_adapter(first, "all", 2, report=None)
    save_adapter(first, tmp_path / "adapter")
    leaves_no_trace(filled(1), tmp_path / "adapter", says="another model")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other, _ = load_model(tmp_path / "model", dtype=dtype)
        load_adapter(other, tmp_path / "adapter")
    changed = filled(0)
    norm = changed.language_model.model.layers[2].input_layernorm.weight
    norm.mul_(1.1)
    leaves_no_trace(changed, tmp_path / "adapter", says="another model")
    assert len(sample_of_base(first)) == 4 * len(list(filled().parameters()))


@pytest.mark.parametrize("noted", ["", "A", "AAAA", "AAAAAA==", "\u00e9", "x" * 10**5])
def test_notes_that_are_no_sample(model, adapter, noted):
    leaves_no_trace(
        model, adapter(notes={"sample_of_base": noted}), says="another model"
    )


def test_nothing_is_added_to_a_merged_model(adapter, tmp_path):
    merged = filled()
    add_adapter(merged, "self.q", 2, name="first", report=None)
    merge(merged)
    leaves_no_trace(merged, adapter(), says="merged into the weights")
    refused(add_adapter, merged, "self.v", name="second", report=None)
    assert all(list(m.adapters) == ["first"] for m in lora_layers(merged).values())
    save_adapter(merged, tmp_path / "saved", "first")
    load_adapter(filled(), tmp_path / "saved")


# The hub


@pytest.mark.parametrize(
    "error, says",
    [
        (
            ValueError("Expecting value: line 1 column 1"),
            "answer about a/b makes no sense",
        ),
        (TypeError("string indices"), "answer about a/b makes no sense"),
        (
            UnicodeEncodeError("ascii", "ö", 0, 1, "no"),
            "The token for a/b cannot be sent",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x"), "Not a directory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "cannot be reached"),
        (TimeoutError("timed out"), "cannot be reached"),
    ],
)
def test_the_hub_is_blamed_for_its_own_faults_alone(monkeypatch, error, says):
    import huggingface_hub

    def download(*arguments, **settings):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused(load, "a/b", says=says)


def test_a_repository_without_a_configuration(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path)
    )
    refused(load, "a/b", says="a/b on the hub has no configuration")


HUB = """
import http.server, json, os, sys, threading

answers = {"html": b"<html>log in first</html>", "list": b"[1, 2]", "none": b"{}"}
answers["empty"] = json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": []}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"[]" if "/tree/" in self.path else answers[mode]
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1]}
os.environ.pop("HF_HUB_OFFLINE", None)
from mllama_lite import InputError, load

for mode in answers:
    try:
        load("a/b")
    except InputError as error:
        print(mode, error)
"""


def test_a_hub_that_answers_nonsense(tmp_path):
    command = [sys.executable, "-c", HUB, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "html",
        "list",
        "none",
        "empty",
    ]


# Tokenizers

BYTES = {bytes([i]): i for i in range(256)}


@pytest.fixture
def vocabulary(tmp_path):
    write_tokenizer_model(BYTES, tmp_path / "tokenizer.model")
    return tmp_path / "tokenizer.model"


@pytest.mark.parametrize(
    "line",
    [b"YWI= 256\nYWI= 256", b"AA== 256", b"YWI= 257", b"YWI= 255", b"YWI= -1"]
    + [
        b"YWI= 2_56",
        b"YWI= +256",
        b"YWI= " + b"9" * 5000,
        b"YWI=",
        b"256",
        b"YW I= 256",
    ]
    + [b"YWI= 256 256", b"\xff\xfe 256", b"YWI 256", b"\x1b[2J 256", b"x" * 10**6],
)
def test_lines_of_a_vocabulary(vocabulary, line):
    vocabulary.write_bytes(vocabulary.read_bytes() + line + b"\n")
    refused(read_tokenizer_model, vocabulary)


@drawn
@given(st.data())
def test_a_vocabulary_with_wrong_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("drawn") / "tokenizer.model"
    write_tokenizer_model(BYTES, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b"\n =0"))
    path.write_bytes(content)
    ranks = only_input_errors(read_tokenizer_model, path)
    if not isinstance(ranks, InputError):
        assert sorted(ranks.values()) == list(range(len(ranks)))


def hub_vocabulary():
    from mllama_lite.checkpoints.processor_files import hub_tokenizer

    return hub_tokenizer(BYTES)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("model"),
        lambda d: d.update(model=[]),
        lambda d: d["model"].update(type="WordPiece"),
        lambda d: d["model"].update(type=["BPE"]),
        lambda d: d["model"].update(vocab=[]),
        lambda d: d["model"]["vocab"].update(a="97"),
        lambda d: d["model"]["vocab"].update(a=True),
        lambda d: d["model"]["vocab"].update(a=-1),
        lambda d: d["model"]["vocab"].update(a=[]),
        lambda d: d["model"]["vocab"].update({"\U0001f600": 256}),
        lambda d: d["model"]["vocab"].update({"ab": 300}),
        lambda d: d["model"]["vocab"].pop("a"),
        lambda d: d.pop("added_tokens"),
        lambda d: d.update(added_tokens={}),
        lambda d: d.update(added_tokens=[5]),
        lambda d: d["added_tokens"][0].update(id=[]),
        lambda d: d["added_tokens"][0].update(id=257),
        lambda d: d["added_tokens"][0].pop("content"),
        lambda d: d["added_tokens"][9].update(id=600),
    ],
)
def test_vocabularies_of_the_hub(tmp_path, change):
    document = hub_vocabulary()
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    assert read_tokenizer_json(path) == BYTES
    change(document)
    path.write_text(json.dumps(document))
    refused(read_tokenizer_json, path)
