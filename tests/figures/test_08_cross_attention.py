"""The figures of chapter 8 against the package."""

import itertools

import pytest

from mllama_lite.cross_attention import visible_ranges

REFERENCE, META, ALL = (
    "the reference's",
    "Meta's code while it writes",
    "all stay visible",
)
ROWS = ["a b I I c I d", "I I I", "a b c", "I a I b", "x I", "I I a b I c I I d e f g"]


def matrix(ranges, length):
    """Rows of tokens, columns of images."""
    return [
        [start <= t and (end is None or t < end) for start, end in ranges]
        for t in range(length)
    ]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("answer", [0, 3])
def test_image_prompt(figure, row, answer):
    shown = figure("image_prompt")
    shown.set("Prompt, I is an image", row)
    shown.set("Tokens of the answer", answer)
    tokens = row.split() + [f"+{i + 1}" for i in range(answer)]
    got, want = shown.values(), visible_ranges(tokens, "I")
    assert got["tokens"] == tokens
    assert [tuple(r) for r in got["ranges"]] == want
    assert got["matrix"] == matrix(want, len(tokens))
    shown.set("Rule", ALL)
    want = [(start, None) for start, _ in want]
    assert shown.values()["matrix"] == matrix(want, len(tokens))


@pytest.mark.witness
def test_image_prompt_as_meta_writes(figure):
    from llama_models.llama3.chat_format import create_vision_mask

    shown = figure("image_prompt")
    shown.set("Rule", META)
    shown.set("Tokens of the answer", 2)
    for row in itertools.product("aI", repeat=4):
        shown.set("Prompt, I is an image", " ".join(row))
        theirs = [
            (start, None if end == -1 else end)
            for start, end in create_vision_mask(row, "I")
        ]
        assert shown.values()["matrix"] == matrix(theirs, 6), row


def test_image_prompt_goes_dark(figure):
    shown = figure("image_prompt")
    assert "“+2”, sees image 2. Image 1 has been dark since token 4" in shown.words()
    shown.set("Token that looks", 3)
    assert "Token 3 of 8, “b”, sees image 1." in shown.words()
    assert "dark" not in shown.words()
    shown.set("Rule", META)
    shown.set("Token that looks", 7)
    assert "“+1”, sees no image" in shown.words()
    assert "2 of 8 tokens see no image" in shown.words()
    shown.set("Example", "text only")
    assert "is skipped" in shown.words()


def test_image_prompt_is_edited_and_dragged(figure):
    shown = figure("image_prompt")
    shown.press("Add an image")
    assert shown.values()["tokens"] == ["I", *"abIcdI", "+1", "+2"]
    shown.press("Take the last away")
    second = shown.root.locator("rect[data-drag='3']").bounding_box()
    x, y = (
        second["x"] + second["width"] / 2,
        second["y"] + second["height"] / 2,
    )
    step = second["width"] / 14.5 * 16.5
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x - 2 * step, y, steps=4)
    shown.page.mouse.up()
    typed = shown.control("Prompt, I is an image").input_value()
    assert typed == "I I a b c d"
    assert shown.values()["ranges"] == [[0, None], [1, None]]
    assert "sees images 1 and 2" in shown.words()
