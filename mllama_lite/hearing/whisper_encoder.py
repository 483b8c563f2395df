# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""Whisper's encoder: a log-mel spectrogram to states, 50 a second.

Built in chapter 18, notebooks/18_hearing.ipynb. Parameter names are those of the encoder
of the hub's `WhisperModel`, so that a state dict fits without renaming.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.checkpoints.tensor_files import StoredTensor, read_safetensors_header
from mllama_lite.errors import InputError
from mllama_lite.files import check_fields, read_json, whole


WHISPER_FIELDS = {
    "num_mel_bins": whole(1, 512),
    "d_model": whole(4, 2**16),
    "encoder_layers": whole(1, 512),
    "encoder_attention_heads": whole(1, 1024),
    "encoder_ffn_dim": whole(1, 2**18),
    "max_source_positions": whole(1, 2**16),
}


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of the encoder; the defaults are tiny.en's, names are `config.json`'s."""

    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    max_source_positions: int = 1500

    def __post_init__(self) -> None:
        if self.d_model % self.encoder_attention_heads or self.d_model % 2:
            raise InputError(
                f"The encoder has d_model {self.d_model} for "
                f"{self.encoder_attention_heads} heads: expected an even multiple; "
                "correct it."
            )


def sinusoids(length: int, size: int) -> torch.Tensor:
    """Positions as sines, then cosines, of wavelengths from 2π to 10,000 · 2π.

    Returns:
        fp32 [length, size].

    Source: Vaswani et al. 2017; whisper/model.py, `sinusoids`.
    """
    half = size // 2
    slower = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    angles = torch.arange(length)[:, None] * slower  # [length, size / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WhisperAttention(nn.Module):
    """Attention from every frame to every frame; keys have no bias.

    Args:
        config: WhisperConfig.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        size = config.d_model
        self.head_dim = size // config.encoder_attention_heads
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, D] to [B, S, D]."""
        query, key, value = (
            part(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, S, E]
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # [B, S, D]


class WhisperLayer(nn.Module):
    """Norm, attention, residual; norm, MLP, residual.

    Args:
        config: WhisperConfig.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        size = config.d_model
        self.self_attn = WhisperAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, size)
        self.final_layer_norm = nn.LayerNorm(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, D] to [B, S, D]."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Two convolutions, positions, layers, a norm.

    Args:
        config: WhisperConfig.

    Source: Radford et al. 2022; whisper/model.py, `AudioEncoder`.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        size = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(size, size, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, size)
        with torch.no_grad():
            positions = sinusoids(config.max_source_positions, size)
            self.embed_positions.weight.copy_(positions)
        self.layers = nn.ModuleList(
            WhisperLayer(config) for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(size)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Two frames of the spectrogram become one state.

        Args:
            mel: fp32 [B, M, 2·S] from `log_mel`: 30 seconds as in Whisper's training, or
                fewer.

        Returns:
            [B, S, D].

        Raises:
            InputError: there are more frames than positions.
        """
        x = F.gelu(self.conv1(mel))  # [B, D, 2·S]
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # [B, S, D]
        if x.shape[1] > self.config.max_source_positions:
            raise InputError(
                f"A spectrogram has {mel.shape[-1]} frames: expected at most "
                f"{2 * self.config.max_source_positions}, 30 seconds; cut the sound."
            )
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


def load_encoder(folder: str | PathLike) -> WhisperEncoder:
    """The encoder out of a folder in the hub's layout, of a whole Whisper or alone.

    Args:
        folder: path, with `config.json` and `model.safetensors`.

    Returns:
        WhisperEncoder in fp32, frozen.

    Raises:
        InputError: a file is missing or damaged, or is of another model.
    """
    config, path = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    given = check_fields(read_json(config), WHISPER_FIELDS, config)
    stored = read_safetensors_header(path)
    tensors = {
        name.split("encoder.")[-1]: tensor
        for name, tensor in stored.items()
        if "decoder." not in name and name != "proj_out.weight"
    }
    with torch.device("meta"):
        encoder = WhisperEncoder(WhisperConfig(**given))
    fill(encoder, tensors, path)
    return encoder


def fill(module: nn.Module, tensors: Mapping[str, StoredTensor], path: Path) -> None:
    """Give a module of the meta device its numbers out of a file, fp32 and frozen.

    Args:
        module: Module.
        tensors: dict from name to StoredTensor.
        path: of the file, for an error.

    Raises:
        InputError: names or shapes are others; nothing was taken from memory yet.
    """
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    there = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [n for n in {**wanted, **there} if wanted.get(n) != there.get(n)]
    if wrong:
        raise InputError(
            f"{path} has {wrong[0]} {there.get(wrong[0])}: expected "
            f"{wanted.get(wrong[0])}, as its config.json says; get both files anew."
        )
    module.to_empty(device="cpu")
    for name, tensor in module.state_dict().items():
        tensors[name].read_into(tensor)
    module.requires_grad_(False).eval()
