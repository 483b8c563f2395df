"""What a program can hand in wrongly: each gets one sentence, and nothing is lost by it."""

import pytest
import torch
from PIL import Image

from mllama_lite import (
    VLM,
    InputError,
    Sampling,
    Tokenizer,
    image_to_tiles,
    load,
    open_image,
    save_model,
)
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.errors import MOST_DETAILS, shown

QUESTION = "Read the digits from left to right."
PICTURE = find_folder() / "pictures" / "digits.png"


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


# Errors themselves.


def test_an_error_is_one_line_whatever_is_in_it():
    text = str(InputError("The file a\x1b[2J\nall is well\r\u202e\udc80 is bad."))
    assert text.isprintable() and "\\x1b[2J\\nall" in text
    assert len(str(InputError("x" * 10**6))) < 1300
    many = str(InputError("There are bad lines:", *[f"line {i}\n" for i in range(999)]))
    assert many.count("\n") == MOST_DETAILS + 1 and many.endswith("and 979 more")


def test_values_are_shown_short():
    deep = []
    for _ in range(10**5):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**6)), 10**10000, deep, {"a": "b" * 9999}):
        assert len(shown(value)) < 200
    assert shown("photo.jpg") == "'photo.jpg'"


# Asking.


@pytest.mark.parametrize(
    "question, images, says",
    [
        ("photo.jpg", None, "the name of a picture"),
        ("some/folder/Photo.PNG", "What is this?", "the name of a picture"),
        (PICTURE, None, "expected text first"),
        (PICTURE, QUESTION, "expected text first"),
        (Image.new("RGB", (9, 9)), QUESTION, "expected text first"),
        ([PICTURE], QUESTION, "expected text first"),
        (None, PICTURE, "expected text first"),
        (b"What?", None, "expected text first"),
        (" \n", PICTURE, "expected some text"),
    ],
)
def test_text_is_asked_first(vlm, question, images, says):
    for ask in (vlm.ask, vlm.stream, vlm.conversation().ask):
        with pytest.raises(InputError, match=says):
            ask(question, images)


def test_a_question_may_speak_of_a_picture(vlm):
    assert vlm.ask("What is in photo.jpg", max_new_tokens=3) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": True},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": None},
        {"min_p": 2},
        {"seed": True},
        {"seed": -1},
        {"seed": 2**64},
        {"max_new_tokens": True},
        {"max_new_tokens": 1.0},
        {"max_new_tokens": 10**400},
        {"stop": [1]},
    ],
    ids=str,
)
def test_settings_of_the_wrong_kind(vlm, settings):
    with pytest.raises(InputError):
        vlm.ask(QUESTION, PICTURE, **settings)


def test_ids_of_the_wrong_kind(vlm):
    for ids in (5, None, "hello", [1.0], [True], [None], [[1]], {"a": 1}, object()):
        with pytest.raises(InputError):
            vlm.logits(ids)
        with pytest.raises(InputError):
            vlm.generate(ids)
    for stops in (5, "a", [1.5], [None]):
        with pytest.raises(InputError):
            vlm.generate([1, 2], stop_ids=stops)


def test_a_refused_question_ends_nothing(vlm):
    """The answer in progress goes on, and is what it would have been."""
    chat, other = vlm.conversation(), vlm.conversation()
    want = list(other.stream(QUESTION, PICTURE))
    stream = chat.stream(QUESTION, PICTURE)
    got = [next(stream)]
    for question, images in (
        ("photo.jpg", None),
        ("", None),
        ("And this?", "nowhere.png"),
        ("word " * 2000, None),
    ):
        with pytest.raises(InputError):
            chat.stream(question, images)
    assert got + list(stream) == want and chat.tokens == other.tokens
    assert chat.ask("How many digits are there?") == other.ask(
        "How many digits are there?"
    )


# Models, devices, pictures, tokenizers.


def test_what_is_no_model():
    for model in (5, b"small", ["small"], object(), "", "no such folder", "a/b/c"):
        with pytest.raises(InputError):
            load(model)


def test_what_is_no_device_or_dtype():
    for device in (5.5, object(), "hpu", "privateuseone", "cuda:99", "", -7):
        with pytest.raises(InputError):
            load(device=device)
    for dtype in (5, "int8", torch.int64, torch.complex64, object(), ""):
        with pytest.raises(InputError):
            load(device="cpu", dtype=dtype)


def test_what_is_no_tokenizer(vlm):
    for ranks in (
        None,
        {},
        5,
        {"a": 1},
        {b"a": 0},
        {bytes([i]): 0 for i in range(256)},
    ):
        with pytest.raises(InputError):
            Tokenizer(ranks)
    for ids in (None, 5, "text", [1.5], ["a"], [None], [True], [-1], [10**6]):
        with pytest.raises(InputError):
            vlm.tokenizer.decode(ids)
    assert vlm.tokenizer.decode(torch.tensor(vlm.tokenizer.encode("is"))) == "is"
    with pytest.raises(InputError):
        VLM(vlm.model, Tokenizer({bytes([i]): i for i in range(256)}))


def test_what_is_no_picture(vlm, tmp_path):
    closed = Image.open(PICTURE)
    closed.close()
    for picture in (closed, Image.new("RGB", (0, 0)), 5, object(), tmp_path, "no.png"):
        with pytest.raises(InputError):
            vlm.ask(QUESTION, picture)


def test_numbers_that_are_none_are_not_answered(tmp_path):
    """A head or an embedding with a NaN in it: said, instead of NUL characters."""
    for settings in ({}, {"temperature": 1.0, "seed": 0}):
        for value in (float("nan"), float("inf")):
            vlm = load(device="cpu", dtype="float32")
            with torch.no_grad():
                vlm.model.language_model.lm_head.weight[3] = value
            with pytest.raises(InputError, match="logits are not finite"):
                vlm.ask(QUESTION, PICTURE, **settings)


def test_a_model_is_not_saved_over_a_file(vlm, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError):
        save_model(vlm.model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_tiles_are_made_on_the_cpu_whatever_the_default_is(vlm):
    picture = open_image(PICTURE)
    want = image_to_tiles(picture, 56).pixel_values
    try:
        torch.set_default_device("meta")
        made = image_to_tiles(picture, 56).pixel_values
    finally:
        torch.set_default_device(None)
    with torch.autocast("cpu", torch.bfloat16):
        cast = image_to_tiles(picture, 56).pixel_values
    assert torch.equal(made, want) and torch.equal(cast, want)


def test_a_sampling_is_checked_when_it_is_made():
    assert Sampling(temperature=0.5).temperature == 0.5
    with pytest.raises(InputError, match="temperature is -1"):
        Sampling(temperature=-1)
