"""What is done to the model from outside: each seam, used as a small stranger would use it.

Quantised layers, compiled and sharded models, embeddings instead of tokens, layers of
another kind. The model's own code knows of none of them.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import cases
import reference
from mllama_lite import VLM, InputError, load, open_checkpoint
from mllama_lite.adapters.lora import add_adapter, find_targets, lora_layers, merge
from mllama_lite.attention import KVCache
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.decoder import DecoderLayer, LanguageModel, TextConfig
from mllama_lite.generation import Session
from mllama_lite.model import Mllama
from mllama_lite.rope import RopeScaling
from mllama_lite.tokenizer import ImagePart

QUESTION = "Read the digits from left to right."
PICTURE = find_folder() / "pictures" / "digits.png"
TEXT = TextConfig(
    vocab_size=100,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_scaling=RopeScaling(),
    max_position_embeddings=64,
    cross_attention_layers=(),
    num_extra_embeddings=0,
)


@pytest.fixture
def vlm():
    return load(device="cpu", dtype="float32")


# Quantised: layers whose weight is no parameter, and no float.


class Int8Linear(nn.Module):
    """A Linear with rows of 8-bit numbers, each row with a scale of its own."""

    def __init__(self, base):
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        scale = base.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("rounded", (base.weight / scale).round().to(torch.int8))
        self.bias = base.bias

    def forward(self, x):
        return nn.functional.linear(
            x, self.rounded.to(x.dtype) * self.scale.to(x.dtype), self.bias
        )


def quantise(model):
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, module in linear.items():
        model.set_submodule(name, Int8Linear(module))
    return model


def test_every_matrix_can_be_quantised_the_head_too(vlm):
    want = vlm.ask(QUESTION, PICTURE)
    quantise(vlm.model)
    assert not any(isinstance(module, nn.Linear) for module in vlm.model.modules())
    assert vlm.model.dtype == torch.float32
    assert vlm.ask(QUESTION, PICTURE) == want == "3 1 9"


# Compiled: a Session that runs another callable, with steps of fixed shapes.


def test_a_conversation_can_run_a_compiled_model(vlm):
    calls = []

    class Compiled:
        """Stands for torch.compile(model): called as it is, all else is the model's."""

        def __init__(self, model):
            self.model = model

        def __getattr__(self, name):
            return getattr(self.model, name)

        def __call__(self, *args, **kwargs):
            calls.append(args[0].shape)
            return self.model(*args, **kwargs)

    def session(model, batch, capacity):
        return Session(Compiled(model), batch, capacity, static=True)

    want = vlm.ask(QUESTION, PICTURE)
    other = VLM(vlm.model, vlm.tokenizer, session=session)
    assert other.ask(QUESTION, PICTURE) == want
    assert calls[0][1] > 1 and set(calls[1:]) == {(1, 1)}
    chat = other.conversation()
    chat.ask(QUESTION, PICTURE)
    calls.clear()
    assert chat.ask("How many digits are there?") and len(calls) > 1


# In parts on several processes.


def tensor_parallel(rank, folder):
    """One of two processes: half of the heads of every attention, half of every MLP."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    config = reference.random_config(1)
    model = reference.fill(Mllama(config)).eval()
    rows, images = cases.batch(1, config)
    tiles = cases.tiles_of(config, images)
    session = Session(model, len(rows), 32)
    with torch.no_grad():
        want = [session.extend(rows, tiles), session.step(torch.arange(len(rows)))]
    into = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")
    plan = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "projector" not in name:
            if name.endswith("lm_head"):
                plan[name] = ColwiseParallel(output_layouts=Replicate())
            else:
                inward = name.endswith(into)
                plan[name] = ColwiseParallel() if inward else RowwiseParallel()
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    session = Session(model, len(rows), 32)
    with torch.no_grad():
        got = [session.extend(rows, tiles), session.step(torch.arange(len(rows)))]
    stored = next(iter(session.cache.keys.values()))
    largest = max((a - b).abs().max().item() for a, b in zip(got, want))
    torch.save((largest, stored.shape, config), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.witness
def test_tensor_parallel_on_two_processes(tmp_path):
    """The same logits, with half of the key heads in each process's cache."""
    torch.multiprocessing.spawn(tensor_parallel, (tmp_path,), nprocs=2)
    for rank in range(2):
        largest, shape, config = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert 2 * shape[1] == config.text.num_key_value_heads
        assert largest < 2e-5


def fully_sharded(rank, folder):
    """One of two processes that hold half of every parameter each."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    vlm = load(device="cpu", dtype="float32")
    want = vlm.ask(QUESTION, PICTURE)
    vision = vlm.model.vision_model
    layers = [*vision.transformer.layers, *vision.global_transformer.layers]
    mesh = init_device_mesh("cpu", (2,))
    for layer in [*layers, *vlm.model.language_model.model.layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(vlm.model, mesh=mesh)
    for layer in vlm.model.cross_attention_layers:
        register_fsdp_forward_method(layer, "keys_and_values")
    register_fsdp_forward_method(vlm.model, "encode_images")
    local = sum(p.to_local().numel() for p in vlm.model.parameters())
    whole = sum(p.numel() for p in vlm.model.parameters())
    torch.save((want, vlm.ask(QUESTION, PICTURE), local, whole), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.witness
def test_fully_sharded_on_two_processes(tmp_path):
    """Answers without a gradient, keys and values of images made inside the layers."""
    torch.multiprocessing.spawn(fully_sharded, (tmp_path,), nprocs=2)
    for rank in range(2):
        want, got, local, whole = torch.load(tmp_path / f"{rank}.pt")
        assert got == want == "3 1 9" and local < 0.52 * whole


# Other inputs and other layers.


def test_embeddings_instead_of_tokens():
    """The embedding's own rows give the same bits; with a cache they may be mixed."""
    model = reference.fill(LanguageModel(TEXT)).eval()
    tokens = torch.randint(0, 100, (2, 9))
    given = model.model.embed_tokens(tokens)
    with torch.no_grad():
        whole = model(tokens)
        assert torch.equal(model(None, embeddings=given), whole)
        cache = KVCache(12)
        first = model(None, cache, embeddings=given[:, :4])
        rest = model(tokens[:, 4:], cache)
    assert (torch.cat([first, rest], dim=1) - whole).abs().max() < 1e-5
    changed = given.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        assert (model(None, embeddings=changed) - whole).abs().max() > 1e-3


class WithoutPositions(DecoderLayer):
    """A layer that turns nothing, as every fourth of Llama 4 is."""

    def forward(self, hidden, step):
        even = torch.ones_like(step.cos), torch.zeros_like(step.sin)
        attention = partial(self.self_attn, cache=step.cache, mask=step.mask)
        hidden = hidden + attention(self.input_layernorm(hidden), *even)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


def test_layers_of_another_kind():
    """Every layer is called the same way, so that one model can hold several kinds."""

    def make_layer(config, index):
        return (WithoutPositions if index == 1 else DecoderLayer)(config, index)

    mixed = reference.fill(LanguageModel(TEXT, make_layer)).eval()
    plain = LanguageModel(TEXT).eval()
    plain.load_state_dict(mixed.state_dict())
    tokens = torch.randint(0, 100, (1, 10))
    with torch.no_grad():
        whole, cache = mixed(tokens), KVCache(10)
        parts = [mixed(tokens[:, :6], cache)]
        parts += [mixed(tokens[:, i : i + 1], cache) for i in range(6, 10)]
        assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5
        assert (plain(tokens) - whole).abs().max() > 1e-3


def test_a_cache_takes_the_dtype_of_what_is_stored():
    model = reference.fill(LanguageModel(TEXT)).eval()
    cache = KVCache(8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
    assert {key.dtype for key in cache.keys.values()} == {torch.bfloat16}


# Contents of messages, and what is opened already.


def test_parts_of_a_message(vlm):
    tokenizer, image = vlm.tokenizer, object()
    ours = [ImagePart(image), "What is it?"]
    theirs = [
        {"type": "image", "image": image},
        {"type": "text", "text": "What is it?"},
    ]
    ids, images = tokenizer.encode_message("user", ours)
    assert (ids, images) == tokenizer.encode_message("user", theirs)
    assert images == [image] and ids.count(tokenizer.image_id) == 1
    for part in (
        None,
        5,
        b"\x89PNG",
        image,
        {"type": "text"},
        {"type": "audio", "audio": b""},
        ["nested"],
    ):
        with pytest.raises(InputError, match="A part of a message is"):
            tokenizer.encode_message("user", ["Hello", part])


def test_an_opened_checkpoint_can_be_loaded():
    checkpoint = open_checkpoint(find_folder())
    vlm = load(checkpoint, device="cpu")
    assert vlm.report is checkpoint.report and vlm.ask(QUESTION, PICTURE) == "3 1 9"


def test_the_model_asks_its_norm_what_it_is():
    """Not its head, which may be quantised; nor its embedding."""
    model = Mllama(reference.random_config(0))
    assert model.dtype == torch.float32
    model.language_model.model.norm.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16


# Adapters on layers that are no Linear.


def test_adapters_on_quantised_layers(vlm):
    """As many layers as on the plain model; only merging is refused, and said."""
    plain = find_targets(vlm.model, ["self", "cross", "head"])
    quantise(vlm.model)
    parameters = add_adapter(vlm.model, ["self", "cross", "head"], rank=2, report=None)
    assert list(lora_layers(vlm.model)) == plain and len(parameters) == 2 * len(plain)
    want = vlm.ask(QUESTION, PICTURE)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.5)
    assert vlm.ask(QUESTION, PICTURE) != want == "3 1 9"
    with pytest.raises(InputError, match="cannot be merged into a Int8Linear"):
        merge(vlm.model)


def test_a_layer_that_is_no_matrix_is_not_left_out_in_silence(vlm):
    class Opaque(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.run = [base]

        def forward(self, x):
            return self.run[0](x)

    layer = vlm.model.language_model.model.layers[0].self_attn
    layer.q_proj = Opaque(layer.q_proj)
    with pytest.raises(
        InputError, match=r"q_proj, a Opaque: expected layers with in_f"
    ):
        find_targets(vlm.model, "self")
