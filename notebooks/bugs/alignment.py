"""Chapter 20: bugs of aligning an encoder with a language model, and what notices them."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bugs import a_bug, a_check, replaced
from mllama_lite.alignment import examples, features, measuring
from mllama_lite.alignment.captions import PLACE, Record
from mllama_lite.alignment.speakers import Speaker, new_projector
from mllama_lite.alignment.training import AlignmentTrainer, AlignPlan
from mllama_lite.families.efficientnet import EfficientNet, EfficientNetConfig
from mllama_lite.families.llama4 import Llama4
from mllama_lite.families.vit import ViT, ViTConfig
from mllama_lite.pretraining.training import first_values, small_text_config
from mllama_lite.tokenizer import Tokenizer

TESTS = "tests/test_alignment.py::"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (40, 60, 220)}


@a_bug(
    "question-learned-too",
    "The labels are the next tokens of all that stands there, of the question too.",
    TESTS + "test_where_a_picture_stands",
)
def question_learned_too():
    right = examples.encode_record

    def wrong(record, tokenizer, length=256):
        found = right(record, tokenizer, length)
        after = [*found.tokens[1:], found.labels[-1]]
        labels = [t if t != examples.IMAGE else -100 for t in after]
        return replace(found, labels=labels)

    with replaced(examples.encode_record, wrong):
        yield


@a_bug(
    "imagenets-pixels",
    "Every encoder gets pixels with ImageNet's mean and deviation, whatever it was trained with.",
    TESTS + "test_features_are_what_the_encoder_sees",
)
def imagenets_pixels():
    right = features.load_encoder

    def wrong(path):
        return replace(right(path), mean=IMAGENET[0], std=IMAGENET[1])

    with replaced(features.load_encoder, wrong):
        yield


@a_bug(
    "wrong-picture-shows-the-same",
    "A wrong picture is that of any other record, which may show the same thing.",
    TESTS + "test_wrong_pictures_show_something_else",
)
def wrong_picture_shows_the_same():
    def wrong(records, seed):
        order = np.random.default_rng([seed, 3]).permutation(len(records))
        other = dict(zip(order.tolist(), np.roll(order, 1).tolist()))
        return [records[other[i]].images[0] for i in range(len(records))]

    with replaced(measuring.wrong_pictures, wrong):
        yield


def said(path, question, answer, **about):
    messages = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    )
    return Record(path.name, (path,), messages, about)


def pictures(folder):
    """Records of four pictures of each colour, in a folder."""
    records = []
    for name, colour in COLOURS.items():
        for number in range(4):
            path = Path(folder) / f"{name}{number}.png"
            Image.new("RGB", (16, 16 - number), colour).save(path)
            question = f"{PLACE}Which colour?"
            records.append(said(path, question, name, concept=name))
    return records


def small_encoder(folder):
    """A vision transformer with random numbers, read from a file."""
    torch.manual_seed(0)
    path = Path(folder) / "encoder.safetensors"
    save_file(ViT(ViTConfig(16, 8, 3, 24, 1, 2, 48)).state_dict(), path)
    return features.load_encoder(path)


def small_speaker(folder, records):
    """A random language model that reads bytes, and what the encoder saw."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)})
    rows = max(tokenizer.special.values()) + 1
    sizes = dict(hidden_size=32, num_hidden_layers=1, intermediate_size_mlp=48)
    sizes |= dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    model = Llama4(replace(small_text_config(rows, "dense"), **sizes))
    with torch.no_grad():
        first_values(model, 0)
    paths = [record.images[0] for record in records]
    seen = features.encode(paths, small_encoder(folder), Path(folder) / "features")
    return Speaker(model, new_projector("patches", 24, 32, 0), seen, tokenizer)


@a_check("shapes of features and of a batch")
@torch.no_grad()
def shapes():
    with tempfile.TemporaryDirectory() as folder:
        records = pictures(folder)
        speaker = small_speaker(folder, records)
        images = speaker.see([record.images[0] for record in records])
        assert images.shape == (12, 4, 32)
        told = [examples.encode_record(r, speaker.tokenizer) for r in records]
        batch = examples.make_batch(told, speaker.model.model.embed_tokens, images)
        assert batch.embeddings.shape[:2] == batch.labels.shape


@a_check("the loss falls in training, all parts together")
@torch.enable_grad()
def loss_falls():
    with tempfile.TemporaryDirectory() as folder:
        records = pictures(folder)
        plan = AlignPlan(steps=30, batch=6, rate=5e-3, warmup=5, learns="all")
        trainer = AlignmentTrainer(plan, small_speaker(folder, records), records)
        losses = [trainer.train_step().item() for _ in range(plan.steps)]
        assert losses[-1] < 0.7 * losses[0]


@a_check("labels of a question with its answer, by hand")
def labels_by_hand():
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)})
    record = said(Path("x"), f"{PLACE}Why?", "no")
    labels = examples.encode_record(record, tokenizer).labels
    learned = [label for label in labels if label != -100]
    assert learned == [*b" no", tokenizer.special["<|end_of_text|>"]]


@a_check("white and black, as EfficientNet-Lite0 and timm's ViT want them")
def white_and_black():
    white, black = (Image.new("RGB", (9, 9), name) for name in ("white", "black"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lite.pth"
        with torch.device("meta"):
            model = EfficientNet(EfficientNetConfig())
        theirs = {ours: torch.ones(t.shape) for ours, t in model.state_dict().items()}
        torch.save({package_name(name): t for name, t in theirs.items()}, path)
        lite, vit = features.load_encoder(path), small_encoder(folder)
    for encoder, image, value in (
        (lite, white, 1.0),
        (lite, black, -127 / 128),
        (vit, white, 1.0),
        (vit, black, -1.0),
    ):
        pixels = encoder.pixels(image)
        middle = pixels[:, encoder.image_size // 2, encoder.image_size // 2]
        assert (middle - value).abs().max() < 1e-6


def package_name(name):
    """The package's name of one of EfficientNet's tensors."""
    from mllama_lite.families import efficientnet

    first, _, rest = name.partition(".")
    if first != "blocks":
        table, start = efficientnet._PARTS, ""
    else:
        number, _, name = rest.partition(".")
        table, start = efficientnet._BLOCK_PARTS, f"_blocks.{number}."
    part, _, end = name.rpartition(".")
    theirs = {mine: their for their, mine in table.items()}
    return f"{start}{theirs[part]}.{end}"


@a_check("no wrong picture shows what the right one shows")
def wrong_is_wrong():
    with tempfile.TemporaryDirectory() as folder:
        records = pictures(folder)
    concept = {record.images[0]: record.about["concept"] for record in records}
    for seed in range(3):
        others = measuring.wrong_pictures(records, seed)
        for record, other in zip(records, others):
            assert concept[other] != record.about["concept"]
