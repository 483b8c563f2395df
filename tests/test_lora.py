"""Adapters: what they take, what they change, and files that PEFT reads and writes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import reference  # before transformers: it makes torchvision importable

# isort: split

import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from mllama_lite import InputError, load
from mllama_lite.adapters.lora import (
    GROUPS,
    adapter_names,
    adapters_used,
    add_adapter,
    find_targets,
    groups_of,
    lora_layers,
    merge,
    remove_adapters,
    unmerge,
    use_adapters,
)
from mllama_lite.adapters.peft_files import (
    hub_name,
    load_adapter,
    our_name,
    save_adapter,
)
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.small_model.evaluation import held_out
from mllama_lite.tokenizer import ImagePart


@pytest.fixture
def vlm():
    return load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def item():
    return held_out("validation", 1, seed=9)[-2]  # a description


def logits(vlm, item):
    content = [ImagePart(item.image), item.question.text]
    message = {"role": "user", "content": content}
    return vlm.logits(vlm.tokenizer.encode_chat([message])[0], [item.image])


def hub_logits(model, vlm, item):
    message = {"role": "user", "content": [ImagePart(item.image), item.question.text]}
    return reference.hub_logits(
        model, vlm.tokenizer.encode_chat([message])[0], [item.image]
    )


def hub_base():
    kind = transformers.MllamaForConditionalGeneration
    model = kind.from_pretrained(find_folder(), dtype=torch.float32)
    return reference.correct(model.eval())


def moved(parameters, size=0.05, seed=0):
    """The same parameters, shifted at random: as if something had been learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += size * torch.randn(parameter.shape, generator=generator)


def test_every_linear_is_in_one_group_and_its_part(vlm):
    groups = groups_of(vlm.model)
    linear = [n for n, m in vlm.model.named_modules() if isinstance(m, nn.Linear)]
    assert list(groups) == linear and len(linear) == 87
    for name, of in groups.items():
        assert len(of) in (1, 2) and all(g.startswith(of[0]) for g in of), name
    assert {group for of in groups.values() for group in of} == set(GROUPS)
    for group in GROUPS:
        assert find_targets(vlm.model, group) == [
            n for n in linear if group in groups[n]
        ]
    assert find_targets(vlm.model, "all") == [
        n for n in linear if "head" not in groups[n]
    ]


def test_text_and_vision_are_told_apart(vlm):
    layers = vlm.config.text.cross_attention_layers
    for name in find_targets(vlm.model, "cross"):
        assert int(name.split(".")[3]) in layers
    for name in find_targets(vlm.model, ["self", "mlp"]):
        assert int(name.split(".")[3]) not in layers


@pytest.mark.parametrize(
    "targets, message",
    [
        ("nothing.*", "'nothing.\\*' matches no layer"),
        (["self", "selff"], "'selff' matches no layer"),
        ("vision_model.*", "patch_embedding, a Conv2d"),
        ("*embed_tokens", "embed_tokens, a Embedding"),
        ([], "There are no targets"),
    ],
)
def test_targets_that_cannot_be(vlm, targets, message):
    with pytest.raises(InputError, match=message):
        add_adapter(vlm.model, targets, report=None)
    assert not lora_layers(vlm.model)


@pytest.mark.parametrize(
    "setting",
    [{"rank": 0}, {"rank": 2.0}, {"alpha": 0}, {"alpha": float("nan")}]
    + [{"dropout": 1.0}, {"dropout": -0.1}, {"name": "a b"}, {"name": ""}],
)
def test_settings_that_cannot_be(vlm, setting):
    (value,) = setting.values()
    with pytest.raises(InputError, match=f"is {value!r}"):
        add_adapter(vlm.model, report=None, **setting)
    assert not lora_layers(vlm.model)


def test_what_is_taken_is_said_and_nothing_else_is_trained(vlm, capsys):
    returned = add_adapter(vlm.model, ["self.q", "projector"], rank=3)
    said = capsys.readouterr().out
    assert "self.q            4 layers" in said and "projector         1 layers" in said
    trained = [p for p in vlm.model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in returned}
    count = sum(p.numel() for p in trained)
    assert count == 4 * 3 * (128 + 128) + 3 * (384 + 128) and f"{count:,}" in said


def test_a_fresh_adapter_and_one_switched_off_change_no_bit(vlm, item, proof):
    base, weights = logits(vlm, item), dict(vlm.model.named_parameters())
    before = {name: parameter.clone() for name, parameter in weights.items()}
    parameters = add_adapter(vlm.model, ["all", "head"], report=None)
    different = int((logits(vlm, item) != base).sum())
    moved(parameters)
    changed = logits(vlm, item)
    assert (changed - base).abs().max() > 0.1
    with adapters_used(vlm.model):
        different += int((logits(vlm, item) != base).sum())
    assert torch.equal(logits(vlm, item), changed)
    proof(
        "Adapter that is fresh, or switched off",
        "the model without, to the bit",
        "all 87 layers",
        different,
        0,
    )
    remove_adapters(vlm.model)
    after = dict(vlm.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_merging_is_a_sum_and_is_taken_back_to_the_bit(vlm, item, proof):
    for seed, name in enumerate(("one", "two")):
        moved(add_adapter(vlm.model, "all", 4, name=name, seed=seed, report=None), 0.02)
    use_adapters(vlm.model, "one", "two")
    apart = logits(vlm, item)
    stored = {n: m.weight.clone() for n, m in lora_layers(vlm.model).items()}
    merge(vlm.model)
    for name, layer in lora_layers(vlm.model).items():
        wanted = stored[name] + sum(p.product() for p in layer.adapters.values())
        assert (layer.weight - wanted).abs().max() < 1e-6
    together = logits(vlm, item)
    worst = ((together - apart).abs().max() / apart.abs().max()).item()
    proof(
        "Adapters merged into the weights (relative)",
        "beside the weights",
        "two at once, 86 layers",
        worst,
        2e-6,
    )
    with pytest.raises(InputError, match="merged into the weights"):
        use_adapters(vlm.model, "one")
    unmerge(vlm.model)
    for name, layer in lora_layers(vlm.model).items():
        assert torch.equal(layer.weight, stored[name])
    assert torch.equal(logits(vlm, item), apart)


def test_merging_again_adds_nothing(vlm):
    """Who merges before every save has the change in the weights once."""
    moved(add_adapter(vlm.model, ("self", "head"), 4, report=None), 0.02)
    stored = {n: m.weight.clone() for n, m in lora_layers(vlm.model).items()}
    merge(vlm.model)
    once = {n: m.weight.clone() for n, m in lora_layers(vlm.model).items()}
    merge(vlm.model)
    for name, layer in lora_layers(vlm.model).items():
        assert torch.equal(layer.weight, once[name])
        assert not torch.equal(layer.weight, stored[name])
    unmerge(vlm.model)
    for name, layer in lora_layers(vlm.model).items():
        assert torch.equal(layer.weight, stored[name])


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_alpha_follows_the_rank(vlm, rank):
    """Without one that is given, an adapter is as strong at every rank."""
    add_adapter(vlm.model, "self.q", rank, report=None)
    for layer in lora_layers(vlm.model).values():
        assert layer.adapters["default"].scale == 2


def test_one_layer_merged_differs_by_rounding(vlm):
    moved(add_adapter(vlm.model, "all", 8, report=None), 0.02)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(vlm.model).values():
        x = torch.randn(50, layer.weight.shape[1], generator=generator)
        with torch.no_grad():
            apart = layer(x)
            layer.merge()
            largest = apart.abs().max().clamp(min=1)
            assert ((layer(x) - apart) / largest).abs().max() < 5e-6


def test_names_go_to_the_hub_and_back(vlm):
    hub = {n for n, m in hub_base().named_modules() if isinstance(m, nn.Linear)}
    ours = [n for n, m in vlm.model.named_modules() if isinstance(m, nn.Linear)]
    assert {hub_name(name) for name in ours} == hub
    assert [our_name(hub_name(name)) for name in ours] == ours
    assert [our_name(name) for name in ours] == ours  # transformers before 4.52


def test_peft_reads_what_is_written_here(vlm, item, tmp_path, proof):
    moved(add_adapter(vlm.model, ["all", "head"], 4, 6, report=None))
    save_adapter(vlm.model, tmp_path)
    theirs = PeftModel.from_pretrained(hub_base(), tmp_path)
    worst = (hub_logits(theirs, vlm, item) - logits(vlm, item)).abs().max().item()
    proof(
        "Adapter written here, logits",
        "PEFT on transformers, corrected",
        "all 87 layers",
        worst,
        5e-5,
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes_is_read_here(vlm, item, tmp_path, rslora, proof):
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "fc1", "multi_modal_projector", "lm_head"],
        rank_pattern={"fc1": 2},
        alpha_pattern={"fc1": 7},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    theirs = get_peft_model(hub_base(), config)
    theirs.save_pretrained(tmp_path)
    base = logits(vlm, item)
    load_adapter(vlm.model, tmp_path)
    mine = logits(vlm, item)
    worst = (hub_logits(theirs, vlm, item) - mine).abs().max().item()
    proof(
        f"Adapter written by PEFT, {'rsLoRA' if rslora else 'LoRA'}, logits",
        "PEFT on transformers, corrected",
        "own ranks and alphas, head and vision",
        worst,
        5e-5,
    )
    assert (mine - base).abs().max() > 0.1


@pytest.fixture
def saved(vlm, tmp_path):
    moved(add_adapter(vlm.model, "self.q", 2, report=None))
    save_adapter(vlm.model, tmp_path / "adapter")
    remove_adapters(vlm.model)
    return tmp_path / "adapter"


def test_a_read_adapter_trains_and_is_written_the_same(vlm, saved, tmp_path):
    parameters = load_adapter(vlm.model, saved, "again")
    assert adapter_names(vlm.model) == ["again"] and len(parameters) == 8
    assert [p for p in vlm.model.parameters() if p.requires_grad] == parameters
    save_adapter(vlm.model, tmp_path / "copy", "again")
    for file in saved.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "setting, value",
    [("use_dora", True), ("bias", "all"), ("peft_type", "IA3")]
    + [("modules_to_save", ["lm_head"]), ("lora_bias", True)],
)
def test_what_is_not_plain_lora_is_refused(vlm, saved, setting, value):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(InputError, match=f"has {setting} "):
        load_adapter(vlm.model, saved)
    assert not lora_layers(vlm.model)


@pytest.mark.parametrize("content", ["{}", '{"lora_alpha": "8"}'])
def test_a_configuration_without_alpha_is_refused(vlm, saved, content):
    (saved / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match="lora_alpha.*expected a number"):
        load_adapter(vlm.model, saved)


def drop(tensors):
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def widen(tensors):
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.zeros(2, 130)


def add(name):
    return lambda tensors: tensors.update({name: torch.zeros(2, 128)})


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, "only one of the two matrices"),
        (widen, r"expected \[128, 2\] and \[2, 128\]"),
        (dict.clear, "holds no matrices"),
        (
            add("base_model.model.lm_head.weight"),
            "holds base_model.model.lm_head.weight",
        ),
        (add("base_model.model.model.none.lora_A.weight"), "an adapter for model.none"),
    ],
)
def test_files_that_do_not_fit_are_refused(vlm, saved, change, message):
    tensors = load_file(saved / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, saved / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        load_adapter(vlm.model, saved)
    assert not lora_layers(vlm.model)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_and_damaged_files_are_refused(vlm, saved, file):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_adapter(vlm.model, saved)
    (saved / file).unlink()
    with pytest.raises(InputError, match=f"has no {file}"):
        load_adapter(vlm.model, saved)


def test_a_name_is_taken_once(vlm):
    add_adapter(vlm.model, "self.q", report=None)
    with pytest.raises(InputError, match="named 'default' already"):
        add_adapter(vlm.model, "self.v", report=None)
    with pytest.raises(InputError, match="no adapter named 'other'"):
        use_adapters(vlm.model, "other")


def test_a_target_may_have_a_rank_of_its_own(tmp_path):
    model = load(dtype="float32", device="cpu").model
    add_adapter(model, ("self", "self.v:3", "head:64"), 2, 8, report=None)
    pairs = {n: m.adapters["default"] for n, m in lora_layers(model).items()}
    for name, pair in pairs.items():
        rank = 64 if "lm_head" in name else 3 if "v_proj" in name else 2
        assert pair.rank == rank and pair.scale == 4, name
    save_adapter(model, tmp_path)
    other = load(dtype="float32", device="cpu").model
    load_adapter(other, tmp_path)
    for name, layer in lora_layers(other).items():
        assert torch.equal(layer.adapters["default"].A, pairs[name].A), name
        assert layer.adapters["default"].scale == 4
    for bad in ("head:0", "head:x", "head:"):
        with pytest.raises(InputError, match="expected its rank"):
            add_adapter(other, (bad,), 2, name="other", report=None)
