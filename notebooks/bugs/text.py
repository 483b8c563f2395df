"""Chapter 16: bugs of experts, chunks and their training, and what notices them."""

import torch
import torch.nn.functional as F

import reference_llama4
from bugs import a_bug, a_check, replaced
from mllama_lite.attention import KVCache
from mllama_lite.families.experts import (
    MixtureOfExperts,
    balance_loss,
    expert_load,
)
from mllama_lite.families.llama4 import Llama4, Llama4Config, Llama4Model

CONFIG = Llama4Config(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=96,
    intermediate_size_mlp=96,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rope_theta=10000.0,
    rope_scaling=None,
    attention_chunk_size=8,
    floor_scale=4.0,
    num_local_experts=4,
    interleave_moe_layer_step=2,
)


@a_bug(
    "score-on-the-output",
    "Llama 4's sigmoid multiplies what comes out of an expert, as Mixtral's weights do, and not "
    "what goes in.",
    "tests/test_llama4.py::test_the_whole_model",
)
def score_on_the_output():
    right = MixtureOfExperts.forward

    def wrong(self, x):
        if self.shared_expert is None:
            return right(self, x)
        tokens = x.flatten(0, -2)
        chosen, weights = self.choose(self.router(tokens))
        out = self.shared_expert(tokens)
        for k in range(self.num_chosen):
            for expert in range(len(self.choice_bias)):
                mine = chosen[:, k] == expert
                counts = [0] * len(self.choice_bias)
                counts[expert] = int(mine.sum())
                made = self.experts(tokens[mine], counts) * weights[mine, k, None]
                out = out.index_add(0, mine.nonzero()[:, 0], made)
        return out.view_as(x)

    with replaced(MixtureOfExperts.forward, wrong):
        yield


@a_bug(
    "a-step-sees-past-its-chunk",
    "A step of one token gets no mask, so that layers in chunks read the whole cache, as in "
    "Meta's code.",
    "tests/test_llama4.py::test_the_cache",
)
def a_step_sees_past_its_chunk():
    right = Llama4Model.step

    def wrong(self, hidden, cache, positions):
        step = right(self, hidden, cache, positions)
        if hidden.shape[1] == 1:
            step.near = step.far
        return step

    with replaced(Llama4Model.step, wrong):
        yield


@a_bug(
    "balance-over-all-layers",
    "The experts' use is added up over all layers before it is balanced, so that layers may be "
    "uneven in opposite ways.",
    "tests/test_experts.py::test_layers_are_balanced_one_by_one",
)
def balance_over_all_layers():
    from mllama_lite.pretraining import training

    def wrong(seen):
        logits = torch.cat([logits for logits, _ in seen.values()])
        return balance_loss(logits, torch.cat([chosen for _, chosen in seen.values()]))

    with replaced(training.unevenness, wrong):
        yield


def small(seed=0):
    """Meta's model, ours with its parameters, and tokens."""
    meta = reference_llama4.meta_model(CONFIG, seed=seed)
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(seed))
    return meta, reference_llama4.ours_from_meta(meta, CONFIG), tokens


@a_check("shapes, and every token gets K experts")
def shapes():
    moe = MixtureOfExperts(16, 24, 8, 2, shared=True)
    x = torch.randn(2, 9, 16)
    assert moe(x).shape == x.shape
    chosen, weights = moe.choose(moe.router(x.flatten(0, 1)))
    assert chosen.shape == weights.shape == (18, 2)
    assert (chosen[:, 0] != chosen[:, 1]).all()


@a_check("a whole pass, and Meta's")
@torch.no_grad()
def whole_pass():
    meta, ours, tokens = small()
    wanted = reference_llama4.meta_logits(meta, tokens)
    assert (ours(tokens) - wanted).abs().max() < 2e-5


@a_check("step by step within the first chunk, and the whole pass")
@torch.no_grad()
def first_chunk():
    _, ours, tokens = small()
    cache = KVCache(8)
    steps = [ours(tokens[:, i : i + 1], cache) for i in range(8)]
    assert (torch.cat(steps, dim=1) - ours(tokens[:, :8])).abs().max() < 2e-5


@a_check("step by step over three chunks, and the whole pass")
@torch.no_grad()
def three_chunks():
    _, ours, tokens = small()
    cache = KVCache(20)
    steps = [ours(tokens[:, i : i + 1], cache) for i in range(20)]
    assert (torch.cat(steps, dim=1) - ours(tokens)).abs().max() < 2e-5


@a_check("the loss falls in training")
@torch.enable_grad()
def loss_falls():
    torch.manual_seed(0)
    model, losses = Llama4(CONFIG), []
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    tokens = torch.randint(97, (4, 17), generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        logits = model(tokens[:, :-1]).flatten(0, 1)
        losses.append(F.cross_entropy(logits, tokens[:, 1:].flatten()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


@a_check("the mean load of all layers together is even, and the loss is 1 or more")
def even_together():
    from mllama_lite.pretraining import training

    seen = opposite_layers()
    logits = torch.cat([logits for logits, _ in seen.values()])
    chosen = torch.cat([chosen for _, chosen in seen.values()])
    assert expert_load(logits, chosen).allclose(torch.ones(2))
    assert training.unevenness(seen).item() >= 1 - 1e-6


@a_check("two layers that are uneven in opposite ways cost more than even ones")
def one_by_one():
    from mllama_lite.pretraining import training

    assert training.unevenness(opposite_layers()).item() > 1.5


def opposite_layers():
    """Two layers with two experts; in each all tokens go to one, in the second to the other."""
    first = torch.tensor([[5.0, 0]]).repeat(10, 1)
    layers = {"first": first, "second": first.flip(-1)}
    return {name: (logits, logits.topk(1).indices) for name, logits in layers.items()}
