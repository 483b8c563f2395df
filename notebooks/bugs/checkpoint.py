"""Chapter 9: bugs of checkpoints, and what notices them."""

from dataclasses import replace
from functools import cache

import torch
from PIL import Image

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints.configs import config_from_meta
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.checkpoints.loading import load_model
from mllama_lite.checkpoints.names import meta_conversions
from mllama_lite.model import empty_model
from mllama_lite.rope import to_half_split, to_interleaved
from mllama_lite.tokenizer import Tokenizer
from mllama_lite.vlm import VLM

PARAMS = {  # of 11B-Vision-Instruct, as Meta writes them
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
    "vision_chunk_size": 560,
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 8,
}


@a_bug(
    "rows-in-the-inverse-order",
    "The rows of queries and keys are put from Meta's order into the half-split one by "
    "the inverse permutation.",
    "tests/test_parts.py::test_layouts_are_a_permutation_apart",
)
def rows_in_the_inverse_order():
    there, back = to_half_split, to_interleaved
    with (
        replaced(there, lambda weight, num_heads: back(weight, num_heads)),
        replaced(back, lambda weight, num_heads: there(weight, num_heads)),
    ):
        yield


@a_bug(
    "cross-attention-one-place-late",
    "From Meta's sizes, every cross-attention layer is placed behind the self-attention "
    "layer that it stands before.",
    "tests/test_checkpoint.py::test_full_size_meta_layout",
)
def cross_attention_one_place_late():
    right = config_from_meta

    def wrong(params, where="params.json"):
        config = right(params, where)
        late = tuple(i + 1 for i in config.text.cross_attention_layers)
        return replace(config, text=replace(config.text, cross_attention_layers=late))

    with replaced(config_from_meta, wrong):
        yield


@a_check("there and back: the rows are where they were")
def there_and_back():
    weight = torch.randn(64, 8)
    for heads in (1, 2, 4):
        assert torch.equal(to_interleaved(to_half_split(weight, heads), heads), weight)


@a_check("two heads of four rows, by hand")
def heads_of_four():
    order = to_half_split(torch.arange(8)[:, None], 2).flatten()
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@a_check("a head of eight rows, by hand")
def a_head_of_eight():
    order = to_half_split(torch.arange(8)[:, None], 1).flatten()
    assert order.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@a_check("11B from Meta's sizes: parameters, names in Meta's files")
def names_and_shapes():
    config = config_from_meta(PARAMS)
    shapes = {n: tuple(p.shape) for n, p in empty_model(config).named_parameters()}
    assert (
        sum(map(torch.Size.numel, map(torch.Size, shapes.values()))) == 10_670_220_835
    )
    stored = [s for c in meta_conversions(shapes, config).values() for s in c.sources]
    names = {name for name, _ in stored}
    assert len(names) == 907
    for stack, count in (("layers", 32), ("cross_attention_layers", 8)):
        wanted = {f"text_model.{stack}.{i}.attention.wq.weight" for i in range(count)}
        assert wanted <= names


@a_check("11B from Meta's sizes: where cross-attention stands")
def where_cross_attention_stands():
    places = config_from_meta(PARAMS).text.cross_attention_layers
    assert places == (3, 8, 13, 18, 23, 28, 33, 38)


@cache
def picture():
    with Image.open(find_folder() / "pictures" / "digits.png") as image:
        return image.convert("RGB")


@a_check("the shipped model, loaded and asked")
def the_shipped_model():
    folder = find_folder()
    model, report = load_model(folder, dtype="float32")
    assert not report.missing and not report.unexpected
    vlm = VLM(model, Tokenizer.from_file(folder / "tokenizer.model"))
    assert vlm.ask("Which digit is green?", picture()) == "1"
