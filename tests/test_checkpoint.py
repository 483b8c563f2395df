"""Checkpoints: both layouts, full-size names and shapes, memory, damaged files."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import cases
import reference
from mllama_lite.checkpoints import loading, tensor_files
from mllama_lite.checkpoints.configs import (
    config_from_hub,
    config_from_meta,
    config_to_hub,
)
from mllama_lite.checkpoints.folders import read_config
from mllama_lite.checkpoints.loading import load_model, open_checkpoint, save_model
from mllama_lite.checkpoints.names import meta_conversions, old_hub_name
from mllama_lite.checkpoints.tensor_files import read_pth_index, read_safetensors_header
from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig, empty_model
from mllama_lite.rope import RopeScaling
from mllama_lite.vlm import VLM, load

CONFIG_90B = MllamaConfig(
    TextConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=100,
        num_attention_heads=64,
        cross_attention_layers=tuple(range(3, 100, 5)),
    )
)


def shapes_of(model):
    return {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


@pytest.fixture(scope="module")
def trio():
    """(config, Meta's model, ours) of one small configuration."""
    return cases.models(1)


@pytest.fixture
def hub(trio, tmp_path):
    save_model(trio[2], tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def meta_folder(trio, tmp_path):
    """Meta's layout as Meta's own model saves it; the sizes stand in a config.json."""
    folder = tmp_path / "meta"
    folder.mkdir()
    torch.save(trio[1].state_dict(), folder / "consolidated.pth")
    document = config_to_hub(trio[0], torch.float32)
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def same(a, b):
    theirs = dict(b.named_parameters())
    mine = dict(a.named_parameters())
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[n], theirs[n]) for n in mine
    )


@pytest.mark.parametrize(
    "config, total",
    [
        (MllamaConfig(), 10_670_220_835),
        (MllamaConfig(vision=VisionConfig(image_size=448)), 10_642_941_475),
        (CONFIG_90B, 88_593_355_323),
    ],
)
def test_full_size_names_and_shapes(config, total, proof):
    """Every name and shape that transformers declares, on the meta device."""
    import transformers

    ours = shapes_of(empty_model(config))
    with torch.device("meta"):
        document = config_to_hub(config, torch.bfloat16)
        hub = transformers.MllamaForConditionalGeneration(
            transformers.MllamaConfig(**document)
        )
    theirs = {old_hub_name(n): s for n, s in shapes_of(hub).items()}
    wrong = len(ours.items() ^ theirs.items())
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == total
    name = (
        "90B"
        if config is CONFIG_90B
        else f"11B, tiles of {config.vision.image_size} pixels,"
    )
    proof(
        f"{name} names and shapes",
        "transformers",
        f"{len(ours)} tensors, {total:,} parameters",
        wrong,
        0,
    )


@pytest.mark.parametrize("side, total", [(560, 10_629_184_035), (448, 10_616_650_275)])
def test_full_size_meta_layout(side, total, proof):
    """Every name and shape of Meta's own module at 11B, on the meta device."""
    reference.start_meta()
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.multimodal.model import CrossAttentionTransformer

    params = {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "vision_chunk_size": side,
        "vision_max_num_chunks": 4,
        "vision_num_cross_attention_layers": 8,
    }
    with torch.device("meta"):
        theirs = shapes_of(
            CrossAttentionTransformer(ModelArgs(**params, max_seq_len=8))
        )
    config = config_from_meta(params)
    assert config == MllamaConfig(vision=VisionConfig(image_size=side))
    conversions = meta_conversions(shapes_of(empty_model(config)), config)
    ours = {
        source: shape
        for conversion in conversions.values()
        for source, shape in conversion.sources
    }
    wrong = len(ours.items() ^ theirs.items())
    assert sum(torch.Size(shape).numel() for shape in theirs.values()) == total
    proof(
        f"11B in Meta's layout, tiles of {side} pixels, names and shapes",
        "Meta",
        f"{len(ours)} tensors, {total:,} parameters",
        wrong,
        0,
    )


def test_published_parameters_give_the_published_configurations():
    """Meta's params.json, as the package lists them, against the hub's configurations."""
    from llama_models.sku_list import all_registered_models

    found = set()
    for model in all_registered_models():
        if model.arch_args.get("vision_chunk_size"):
            config = config_from_meta(model.arch_args)
            side = model.arch_args["vision_chunk_size"]
            large = model.arch_args["dim"] == 8192
            want = (
                CONFIG_90B
                if large
                else MllamaConfig(vision=VisionConfig(image_size=side))
            )
            assert config == want, model.core_model_id
            found.add((model.arch_args["dim"], side))
    assert found == {(4096, 448), (4096, 560), (8192, 560)}


def test_hub_layout(trio, hub):
    model, report = load_model(hub)
    assert same(model, trio[2]) and report.layout == "hub"
    assert len(report.loaded) == len(list(trio[2].named_parameters()))
    assert not (report.converted or report.missing or report.unexpected)


def test_sharded_hub_layout(trio, tmp_path):
    save_model(trio[2], tmp_path, max_shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not list(tmp_path.glob("*.part"))
    assert same(load_model(tmp_path)[0], trio[2])


def test_new_names_and_transformers_itself(trio, tmp_path, proof):
    """transformers reads what we write, we read what it writes, and names of both kinds."""
    import transformers

    config, _, ours = trio
    save_model(ours, tmp_path / "ours")
    theirs = transformers.MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "ours"
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")[0]
    renamed = {name: value.clone() for name, value in theirs.state_dict().items()}
    assert any(name.startswith("model.language_model.layers") for name in renamed)
    (tmp_path / "new").mkdir()
    save_file(renamed, tmp_path / "new" / "model.safetensors")
    shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "new")
    wrong = (not same(back, ours)) + (not same(load_model(tmp_path / "new")[0], ours))
    assert "rope_parameters" in (tmp_path / "theirs" / "config.json").read_text()
    assert read_config(tmp_path / "theirs") == read_config(tmp_path / "ours")
    proof(
        "Checkpoint to transformers and back",
        "the parameters before",
        "old and new names, configurations of 4 and 5",
        wrong,
        0,
    )


def test_meta_layout(trio, meta_folder, proof):
    config, meta, ours = trio
    model, report = load_model(meta_folder)
    assert same(model, ours) and report.layout == "meta"
    # queries and keys of self-attention, embedding, patches, three tables of tiles
    assert len(report.converted) == 2 * len(config.text.self_attention_layers) + 5
    rows, images = cases.batch(1, config)
    worst = 0.0
    for row, pictures in zip(rows, images):
        theirs = reference.meta_logits(meta, [row], [pictures])[0]
        worst = max(
            worst, (VLM(model).logits(row, pictures) - theirs).abs().max().item()
        )
    proof("Logits from a checkpoint in Meta's layout", "Meta", "4 rows", worst, 2e-5)


def test_model_parallel_shards(trio, meta_folder, tmp_path):
    """Cut for two ranks as fairscale's layers cut themselves, and joined again."""
    cut_rows = ("wo.weight", "w2.weight", "c_proj.weight")
    whole = ("norm", "ln_", "gate", "embedding", "c_proj.bias")
    shards = [{}, {}]
    for name, tensor in torch.load(meta_folder / "consolidated.pth").items():
        if name.endswith(cut_rows):
            parts = tensor.chunk(2, dim=1)
        elif "learnable_embedding" not in name and any(word in name for word in whole):
            parts = (tensor, tensor)
        else:
            parts = tensor.chunk(2, dim=0)
        for shard, part in zip(shards, parts):
            shard[name] = part.clone()
    (meta_folder / "consolidated.pth").unlink()
    for i, shard in enumerate(shards):
        torch.save(shard, meta_folder / f"consolidated.{i:02}.pth")
    assert same(load_model(meta_folder)[0], trio[2])


@pytest.mark.parametrize("tied, factor", [(False, 8.0), (True, 32.0)])
def test_text_only_llama(tmp_path, tied, factor, proof):
    """A LlamaForCausalLM that transformers saved: same parameters, same logits."""
    import transformers

    rope = {"rope_type": "llama3", "rope_theta": 5e5} | vars(RopeScaling(factor=factor))
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=24,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        eos_token_id=[7, 9],
    )
    theirs = reference.fill(transformers.LlamaForCausalLM(config)).eval()
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    vlm = load(tmp_path, device="cpu")
    assert vlm.config.vision is None and vlm.config.eos_token_ids == (7, 9)
    head = vlm.model.language_model.lm_head.weight
    assert (head is vlm.model.language_model.model.embed_tokens.weight) == tied
    row = torch.randint(1, 300, (40,)).tolist()
    want = theirs(torch.tensor([row])).logits[0]
    scale = want.abs().max().item()
    worst = (vlm.logits(row) - want).abs().max().item() / max(scale, 1)
    greedy = theirs.generate(
        torch.tensor([row]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=301,
        pad_token_id=0,
    )
    assert vlm.generate(row, max_new_tokens=12, stop_ids=()) == greedy[0, 40:].tolist()
    save_model(vlm.model, tmp_path / "again")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(
        again.model.embed_tokens.weight,
        head if tied else vlm.model.language_model.model.embed_tokens.weight,
    )
    with pytest.raises(InputError, match="text-only model"):
        vlm.logits(row, [object()])
    kind = "tied" if tied else "untied"
    proof(
        f"Text-only Llama, {kind} head, factor {factor:g} (relative)",
        "transformers",
        "40 tokens",
        worst,
        2e-5,
    )


MEASURE = """
import re, sys, torch
from mllama_lite.checkpoints.loading import load_model, open_checkpoint
said = lambda: open("/proc/self/status").read()
status = lambda name: int(re.search(name + r":\\s+(\\d+)", said())[1]) * 1024
opened = open_checkpoint(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = status("VmRSS")
model, report = load_model(opened, dtype=getattr(torch, sys.argv[2]))
print((status("VmHWM") - before) / sum(p.nbytes for p in model.parameters()), report.stored_bytes)
"""


@pytest.fixture(scope="module")
def big_folders(tmp_path_factory):
    """A checkpoint of some 300 MB, in both layouts."""

    config = MllamaConfig(
        TextConfig(
            vocab_size=32000,
            hidden_size=1024,
            intermediate_size=3584,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            cross_attention_layers=(3,),
        ),
        VisionConfig(
            hidden_size=256,
            attention_heads=4,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_global_layers=1,
            image_size=112,
            intermediate_layers_indices=(1, 2),
        ),
        image_token_index=32000,
    )
    model = empty_model(config).to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    parent = tmp_path_factory.mktemp("big")
    save_model(model, parent / "hub", max_shard_bytes=150_000_000)
    conversions = meta_conversions(shapes_of(model), config)
    stored = {}
    for name, parameter in model.named_parameters():
        row = 0
        for source, shape in conversions[name].sources:
            if len(shape) == len(parameter.shape) and shape[1:] == parameter.shape[1:]:
                stored[source] = parameter.data[row : row + shape[0]].clone()
                row += shape[0]
            else:
                stored[source] = torch.randn(shape).to(torch.bfloat16)
    (parent / "meta").mkdir()
    torch.save(stored, parent / "meta" / "consolidated.pth")
    shutil.copy(parent / "hub" / "config.json", parent / "meta")
    return parent


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's peak counter"
)
@pytest.mark.parametrize("layout", ["hub", "meta"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory(big_folders, layout, dtype, proof):
    command = [sys.executable, "-c", MEASURE, str(big_folders / layout), dtype]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ratio, size = map(float, output.split())
    assert size > 250e6
    proof(
        f"Peak memory while loading, {layout} layout to {dtype}",
        "bytes of the parameters",
        f"{size / 1e6:.0f} MB on disk",
        ratio,
        1.1,
    )


def test_readers_equal_the_libraries(hub, meta_folder):
    """Our header readers and the libraries' full readers see the same numbers."""
    for name, tensor in load_file(hub / "model.safetensors").items():
        assert torch.equal(
            read_safetensors_header(hub / "model.safetensors")[name].read(), tensor
        )
    index = read_pth_index(meta_folder / "consolidated.pth")
    for name, tensor in torch.load(meta_folder / "consolidated.pth").items():
        assert torch.equal(index[name].read(), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_larger_than_the_buffer(trio, hub, dtype, monkeypatch):
    """Read in pieces, each from its place in the file; most of the 11B's matrices are."""
    monkeypatch.setattr(tensor_files, "CHUNK", 100)
    loaded = dict(load_model(hub, dtype=dtype)[0].named_parameters())
    for name, parameter in trio[2].named_parameters():
        assert torch.equal(loaded[name], parameter.to(dtype)), name


def test_dtypes(trio, hub):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model, _ = load_model(hub, dtype=dtype)
        for (name, a), b in zip(model.named_parameters(), trio[2].parameters()):
            assert torch.equal(a, b.to(dtype)), name


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "a byte short":
        path.write_bytes(data[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "short":
        path.write_bytes(data[:5])
    elif how == "noise":
        path.write_bytes(bytes((i * 37 + 11) % 256 for i in range(1000)))
    elif how == "header":
        path.write_bytes(data[:9] + b"\xff\xff{" + data[12:])


@pytest.mark.parametrize(
    "how", ["truncated", "a byte short", "empty", "short", "noise", "header"]
)
def test_damaged_safetensors(hub, how):
    damage(hub / "model.safetensors", how)
    with pytest.raises(InputError, match="truncated or damaged"):
        load_model(hub)


@pytest.mark.parametrize("how", ["truncated", "empty", "short", "noise"])
def test_damaged_pth(meta_folder, how):
    damage(meta_folder / "consolidated.pth", how)
    with pytest.raises(InputError, match="truncated or damaged|more than tensors"):
        load_model(meta_folder)


class Malicious:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_pth_is_never_unpickled(meta_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = torch.load(meta_folder / "consolidated.pth")
    torch.save(tensors | {"x": Malicious()}, meta_folder / "consolidated.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        load_model(meta_folder)
    (meta_folder / "consolidated.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError):
        load_model(meta_folder)
    assert not (tmp_path / "pwned").exists()
    torch.save(tensors | {"epoch": 3}, meta_folder / "consolidated.pth")
    with pytest.raises(InputError, match="holds a int at 'epoch'"):
        load_model(meta_folder)


class Saves:
    def __reduce__(self):
        return (torch.save, ({}, "left"))


def test_no_function_of_torch_is_called(meta_folder, tmp_path, monkeypatch):
    """That a name is torch's is no reason to call it: `torch.save` writes anywhere."""
    monkeypatch.chdir(tmp_path)
    tensors = torch.load(meta_folder / "consolidated.pth")
    torch.save(tensors | {"x": Saves()}, meta_folder / "consolidated.pth")
    with pytest.raises(InputError, match="asks for 'torch.serialization save'"):
        load_model(meta_folder)
    assert not (tmp_path / "left").exists()


def edit(hub, change):
    """Rewrite the tensors of a folder."""
    tensors = load_file(hub / "model.safetensors")
    change(tensors)
    save_file(tensors, hub / "model.safetensors")


def test_wrong_tensors(hub):
    name = "language_model.model.norm.weight"
    edit(hub, lambda t: t.update({"language_model.extra": torch.ones(1)}))
    assert open_checkpoint(hub).report.unexpected == ["language_model.extra"]
    with pytest.raises(InputError, match="has unknown 1 tensors.*language_model.extra"):
        load_model(hub)
    edit(hub, lambda t: t.pop("language_model.extra"))
    size = load_file(hub / "model.safetensors")[name]
    edit(hub, lambda t: t.update({name: torch.ones(3)}))
    with pytest.raises(InputError, match=rf"{name} in .* has shape \[3\]: expected"):
        load_model(hub)
    edit(hub, lambda t: t.pop(name))
    assert open_checkpoint(hub).report.missing == [name]
    with pytest.raises(InputError, match=f"lacks 1 tensors.*{name}"):
        load_model(hub)
    edit(hub, lambda t: t.update({name: size.to(torch.int8)}))
    with pytest.raises(InputError, match="dtype I8"):
        load_model(hub)


def test_missing_files(trio, tmp_path, hub):
    with pytest.raises(InputError, match="There is no folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="There is no folder"):
        load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no configuration"):
        load_model(tmp_path / "empty")
    shutil.copy(hub / "config.json", tmp_path / "empty")
    with pytest.raises(InputError, match="has no weights"):
        load_model(tmp_path / "empty")
    save_model(trio[2], tmp_path / "sharded", max_shard_bytes=200_000)
    lost = sorted((tmp_path / "sharded").glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"lacks {lost.name}"):
        load_model(tmp_path / "sharded")
    for content in ("{", "[]", '{"weight_map": []}', '{"weight_map": {}}'):
        (tmp_path / "sharded" / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError):
            load_model(tmp_path / "sharded")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "llava"}, "model_type 'llava'"),
        ({"model_type": None}, "model_type None"),
        ({"text_config": {}}, "has no entry 'text_config.vocab_size'"),
        ({"text_config.hidden_size": ...}, "no entry 'text_config.hidden_size'"),
        ({"text_config.rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"text_config.hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"text_config.num_key_value_heads": 5}, "num_key_value_heads 5: expected a"),
        ({"text_config.tie_word_embeddings": True}, "tie"),
        (
            {"vision_config.supported_aspect_ratios": [[1, 1]]},
            "supported_aspect_ratios",
        ),
    ],
)
def test_wrong_configurations(trio, change, says):
    document = config_to_hub(trio[0], torch.float32)
    for path, value in change.items():
        *parents, last = path.split(".")
        place = document
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    with pytest.raises(InputError, match=says):
        config_from_hub(document)


def test_configuration_files_that_are_no_json(tmp_path):
    for content in ("", "[1]", "{'a': 1}", "\xff"):
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError):
            read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "params.json").write_text('{"dim": 64}')
    with pytest.raises(InputError, match="has no entry 'n_layers'"):
        read_config(tmp_path)


def test_too_little_memory_is_said_before_loading(hub, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda device: 1000)

    def never(self, destination):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(loading.StoredTensor, "read_into", never)
    with pytest.raises(InputError, match="GiB are free"):
        load_model(hub)


def test_configurations_survive_the_round_trip():
    for seed in range(20):
        config = reference.random_config(seed)
        assert config_from_hub(
            json.loads(json.dumps(config_to_hub(config, torch.float32)))
        ) == (
            MllamaConfig(
                config.text,
                config.vision,
                config.image_token_index,
                config.eos_token_ids,
            )
        )
