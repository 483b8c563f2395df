"""Wrong answers to chapter 4's exercises."""

import math

import torch

from mllama_lite.decoder import RMSNorm

RIGHT = {"untrained-and-tied": "c", "rows-for-one-fetch": 296}


def parts(config):
    """Rows of the embedding and the head, and numbers of a layer's three parts."""
    head_dim, size = config.head_dim, config.hidden_size
    query = config.num_attention_heads * head_dim * size
    key = config.num_key_value_heads * head_dim * size
    mlp = 3 * size * config.intermediate_size
    rows = config.vocab_size + config.num_extra_embeddings
    head = 0 if config.tie_word_embeddings else config.vocab_size * size
    return rows * size, head, 2 * query + 2 * key, mlp, 2 * size


def total(embedding, head, attention, mlp, norms, config):
    layers = config.num_hidden_layers * (attention + mlp + norms)
    return embedding + head + layers + config.hidden_size


def no_final_norm(config):
    return total(*parts(config), config) - config.hidden_size


def every_head_its_own_keys(config):
    embedding, head, _, mlp, norms = parts(config)
    heads = config.num_attention_heads * config.head_dim
    return total(embedding, head, 4 * heads * config.hidden_size, mlp, norms, config)


def square_attention(config):  # takes H · E for D
    embedding, head, _, mlp, norms = parts(config)
    key = config.num_key_value_heads * config.head_dim * config.hidden_size
    attention = 2 * config.hidden_size**2 + 2 * key
    return total(embedding, head, attention, mlp, norms, config)


def tied_counted_twice(config):
    embedding, _, *rest = parts(config)
    return total(embedding, config.vocab_size * config.hidden_size, *rest, config)


def two_matrices_in_the_mlp(config):
    embedding, head, attention, mlp, norms = parts(config)
    return total(embedding, head, attention, mlp * 2 // 3, norms, config)


def circle(shift, size=10.0):
    """Token t at angle t - shift, in eighths of a turn."""
    angles = 2 * math.pi * (torch.arange(8) - shift) / 8
    return size * torch.stack([angles.cos(), angles.sin()], dim=1)


def readers(model):
    """Each norm with the matrices that read it."""
    for layer in model.model.layers:
        attention = layer.self_attn
        reading = [attention.q_proj, attention.k_proj, attention.v_proj]
        yield layer.input_layernorm, reading
        yield layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]
    yield model.model.norm, [model.lm_head]


def norms_set_to_one(model):
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1)


def final_norm_forgotten(model):
    for norm, matrices in list(readers(model))[:-1]:
        for matrix in matrices:
            matrix.weight *= norm.weight
        norm.weight.fill_(1)


def values_forgotten(model):
    for norm, matrices in readers(model):
        for matrix in matrices[:2]:
            matrix.weight *= norm.weight
        norm.weight.fill_(1)


def into_what_writes(model):  # the norm's weight on the stream's side
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            layer.mlp.down_proj.weight *= norm.weight[:, None]
            norm.weight.fill_(1)
    model.lm_head.weight *= model.model.norm.weight
    model.model.norm.weight.fill_(1)


def turned(model, turn, write):
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
    for _, matrices in readers(model):
        for matrix in matrices:
            matrix.weight.copy_(matrix.weight @ turn)
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.copy_(write @ matrix.weight)


def both_ends_only(model, turn):
    for table in (model.model.embed_tokens, model.lm_head):
        table.weight.copy_(table.weight @ turn)


def writers_not_turned(model, turn):
    turned(model, turn, torch.eye(len(turn)))


def writers_turned_back(model, turn):
    turned(model, turn, turn)


def nothing(model, turn):
    pass


def the_other_way(model, turn):  # the model is right, the stream is turned by turn.T
    turned(model, turn.T, turn)


WRONG = {
    "untrained-and-tied": ["a", "b", "d"],
    "rows-for-one-fetch": [
        148,  # a byte a weight
        590,  # one operation a weight
        1,
        989,
    ],
    "count-parameters": [
        no_final_norm,
        every_head_its_own_keys,
        square_attention,
        tied_counted_twice,
        two_matrices_in_the_mlp,
    ],
    "ring-of-tokens": [
        (circle(0), circle(0)),  # a tied head: every token says itself
        (circle(0), circle(-1)),  # the one before
        (circle(0), circle(1, size=1.0)),  # unsure
        (circle(0, size=1000.0), circle(1, size=1.0)),  # long in the wrong place
        (torch.eye(8), torch.eye(8).roll(1, dims=0)),
    ],
    "fold-the-norms": [
        norms_set_to_one,
        final_norm_forgotten,
        values_forgotten,
        into_what_writes,
    ],
    "rotate-the-stream": [
        both_ends_only,
        writers_not_turned,
        writers_turned_back,
        nothing,
        the_other_way,
    ],
}
