# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""The files beside the weights that transformers' processor reads.

Built in chapter 11, notebooks/11_training.ipynb. `mllama_lite` itself needs none of them
but the tokenizer's ranks.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from mllama_lite.model import MllamaConfig
from mllama_lite.tiles import CLIP_MEAN, CLIP_STD
from mllama_lite.tokenizer import (
    SPLIT_PATTERN,
    bpe_merge,
    printable_bytes,
    special_tokens,
    write_tokenizer_model,
)


CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n\
{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content %}\
{% if part.type == "image" %}<|image|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n\
{% endif %}"""


def hub_tokenizer(ranks: dict[bytes, int]) -> dict[str, Any]:
    """A vocabulary in the hub's format: the inverse of `read_tokenizer_json`.

    Args:
        ranks: dict from a token's bytes to its rank.

    Returns:
        dict for a `tokenizer.json`. As in the published one, the name `<|image|>` has
        the model's id, one beyond the vocabulary.
    """
    letter = {byte: character for character, byte in printable_bytes().items()}

    def printable(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            earlier = {other: r for other, r in ranks.items() if r < rank}
            parts = bpe_merge(token, earlier)
            if len(parts) == 2:  # else it can only be looked up whole
                names = {r: other for other, r in earlier.items()}
                merges.append([printable(names[part]) for part in parts])
    special = special_tokens(len(ranks))
    special["<|reserved_special_token_246|>"] = special.pop("<|image|>")
    special["<|image|>"] = len(ranks) + len(special)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    as_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id, "content": name, "special": True} | flags
            for name, id in sorted(special.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, as_bytes]},
        "decoder": as_bytes | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {printable(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def write_processor_files(
    folder: str | PathLike, ranks: dict[bytes, int], config: MllamaConfig
) -> None:
    """Write tokenizer, chat template and image settings into a model's folder.

    Args:
        folder: path, with the weights in it or not.
        ranks: dict from a token's bytes to its rank.
        config: MllamaConfig.
    """
    folder, first = Path(folder), len(ranks)
    write_tokenizer_model(ranks, folder / "tokenizer.model")
    assert config.vision is not None
    side = config.vision.image_size
    documents = {
        "tokenizer.json": hub_tokenizer(ranks),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.text.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": {
            "image_processor_type": "MllamaImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "resample": 2,  # bilinear
            "rescale_factor": 1 / 255,
            "max_image_tiles": config.vision.max_num_tiles,
            "size": {"height": side, "width": side},
        },
        "generation_config.json": {
            "bos_token_id": first,
            "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": first + 4,
            "do_sample": False,
        },
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
