"""A model for the checks of several chapters."""

import torch

from mllama_lite.decoder import TextConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tokenizer import Tokenizer


def random_text_model(tokenizer: Tokenizer, context: int) -> Mllama:
    """A small text model whose answers are noise.

    Args:
        tokenizer: whose tokens it has.
        context: the most tokens of a text.
    """
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        cross_attention_layers=(),
    )
    model = Mllama(MllamaConfig(text, None, tokenizer.image_id))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        random = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(0.3 * random)
    return model
