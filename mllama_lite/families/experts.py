# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""A mixture of experts: many MLPs in a layer, of which every token uses a few.

Built in chapter 16, notebooks/16_text.ipynb. Two ways stand side by side: Llama 4's, where
a token goes to one expert and to one that all tokens share, and Mixtral's, where it goes
to two. Parameter names are those of the hub's Llama 4.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.decoder import MLP


class Experts(nn.Module):
    """N SwiGLU MLPs with their matrices side by side.

    Args:
        num_experts: N.
        hidden_size: D.
        intermediate_size: F, of one expert.

    Source: llama_models/llama4/moe.py, `Experts`, whose w1 and w3 stand side by side here.
    """

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int
    ) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(
            torch.empty(num_experts, hidden_size, 2 * intermediate_size)
        )
        self.down_proj = nn.Parameter(
            torch.empty(num_experts, intermediate_size, hidden_size)
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Each expert's MLP on the rows that are its own.

        Args:
            x: [n, D], the rows of expert 0 first, then those of expert 1, and so on.
            counts: how many rows each expert has; N numbers with the sum n.

        Returns:
            [n, D], in the same order.
        """
        made = []
        for rows, enter, leave in zip(
            x.split(counts), self.gate_up_proj, self.down_proj
        ):
            gate, up = (rows @ enter).chunk(2, dim=-1)  # each [rows, F]
            made.append((F.silu(gate) * up) @ leave)
        return torch.cat(made)


class MixtureOfExperts(nn.Module):
    """In the place of an MLP: a router sends every token to K of N experts.

    Args:
        hidden_size: D.
        intermediate_size: F, of one expert.
        num_experts: N.
        num_chosen: K.
        shared: Llama 4's way: one more expert takes every token, and a chosen expert's
            *input* is multiplied by the sigmoid of its logit. Without it Mixtral's: the
            *outputs* are weighted, by a softmax over the chosen logits.

    Attributes:
        choice_bias: [N], added to the logits for choosing alone; 0 unless a training
            balances by it, see `balance_by_bias`.

    Source: llama_models/llama4/moe.py, `MoE`; Jiang et al. 2024; Wang et al. 2024.
    """

    choice_bias: torch.Tensor

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        num_chosen: int,
        shared: bool,
    ) -> None:
        super().__init__()
        self.num_chosen = num_chosen
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = Experts(num_experts, hidden_size, intermediate_size)
        self.shared_expert = MLP(hidden_size, intermediate_size) if shared else None
        self.register_buffer("choice_bias", torch.zeros(num_experts))

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which experts take each token, and how much each counts.

        Args:
            logits: [n, N], the router's.

        Returns:
            (experts int [n, K], weights fp32 [n, K]).
        """
        chosen = (logits + self.choice_bias).topk(self.num_chosen, dim=-1).indices
        picked = logits.gather(-1, chosen).float()
        weights = picked.softmax(-1) if self.shared_expert is None else picked.sigmoid()
        return chosen, weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]: every token's rows are gathered by expert and added up."""
        tokens = x.flatten(0, -2)  # [n, D]
        chosen, weights = self.choose(self.router(tokens))
        order = chosen.flatten().argsort(stable=True)  # n·K places, by expert
        source = order // self.num_chosen  # the token of each place
        counts = chosen.flatten().bincount(minlength=len(self.choice_bias)).tolist()
        rows = tokens[source]  # [n·K, D]
        weight = weights.flatten()[order, None].to(x.dtype)
        if self.shared_expert is not None:
            out = self.shared_expert(tokens)
            made = self.experts(rows * weight, counts)
        else:
            out = torch.zeros_like(tokens)
            made = self.experts(rows, counts) * weight
        return out.index_add(0, source, made.to(out.dtype)).view_as(x)


def expert_load(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Each expert's share of all places, times N: 1 for all if they are used alike.

    Args:
        logits: [n, N], the router's.
        chosen: int [n, K].

    Returns:
        fp32 [N].
    """
    places = chosen.flatten().bincount(minlength=logits.shape[-1])
    return places.float() * (len(places) / places.sum())


def balance_loss(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """What to add to the loss so that a layer's experts are used alike.

    The share of tokens that an expert gets has no gradient, but its mean probability
    has: it falls where the share is large.

    Args:
        logits: [n, N], the router's, of one layer.
        chosen: int [n, K].

    Returns:
        fp32 scalar; K where all experts are used alike, up to N where all tokens take
        the same, with probability 1.

    Source: Fedus et al. 2022; transformers' `load_balancing_loss_func`, for one layer.
    """
    share = expert_load(logits, chosen) * chosen.shape[-1]  # [N], mean K
    return (share * logits.float().softmax(-1).mean(0)).sum()


@torch.no_grad()
def balance_by_bias(
    moe: MixtureOfExperts, logits: torch.Tensor, chosen: torch.Tensor, rate: float
) -> None:
    """After a step: make experts that had too few tokens a little easier to choose.

    Args:
        moe: MixtureOfExperts; its `choice_bias` moves by the rate, up or down.
        logits, chosen: of the step, see `balance_loss`.
        rate: how far.

    Source: Wang et al. 2024, without a loss that pulls at the weights.
    """
    moe.choice_bias += rate * (1 - expert_load(logits, chosen)).sign()
