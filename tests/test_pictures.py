"""The names and the split of make pictures, without fetching anything."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import pictures as fetching  # tools/pictures.py

NOUNS = "dog|teddy_bear|bear|bow|box|berry|glass|bus|man|banana|kitten|leaf|horse|cat"


@pytest.fixture
def words(tmp_path):
    lists = tmp_path / "usr/share/wordnet"
    lists.mkdir(parents=True)
    for kind, found in {
        "noun": NOUNS,
        "verb": "sing|ride|bore",
        "adj": "red|bored|simple",
        "adv": "slowly",
    }.items():
        lines = "".join(f"{word} n 1 0 0 0\n" for word in found.split("|"))
        (lists / f"index.{kind}").write_text("  1 licence\n" + lines)
    (lists / "noun.exc").write_text("men man\nleaves leaf\n")
    return fetching.Words(tmp_path)


def test_what_is_shown_is_the_last_noun_before_with_and_of(words):
    for caption, concept in {
        "bored dog": "dog",
        "simple teddy bear with bow": "bear",
        "boxes": "box",
        "red berries": "berry",
        "glass of banana": "glass",
        "two men": "man",
        "leaves": "leaf",
        "bus": "bus",
        "cavallo": None,
        "red": None,
        "with": None,
        "": None,
    }.items():
        assert words.concept(caption) == concept, caption


def test_english_words(words):
    assert all(map(words.is_english, "dog dogs singing bored riding with men".split()))
    assert not any(map(words.is_english, "cavallo ours dogx".split()))


def test_titles_become_captions():
    for title, caption in {
        "Bored dog": "bored dog",
        "A man&#39;s hat (2)": "man hat",
        "PointingHand2": "pointing hand",
        "heart-ballons_03": "heart ballons",
        "The fountain": "fountain",
        "A.J. 45": "j",
    }.items():
        assert fetching.plain(title) == caption


def picture(caption, concept, source="a", maker="m"):
    return fetching.Picture(
        caption, caption, caption, concept, source, "", maker, Path()
    )


def test_no_held_out_concept_is_shown_or_named_in_training(words, monkeypatch):
    monkeypatch.setattr(
        fetching,
        "chosen",
        lambda text: text == "concept banana" or text.endswith("other red dog"),
    )
    pictures = [
        picture("banana", "banana"),
        picture("dog with bananas", "dog"),
        picture("dog", "dog"),
        picture("red dog", "dog", maker="other"),
        picture("red dog", "dog", maker="other"),
        picture("red cat", "cat", maker="other"),
        picture("dog", "dog", "tuxpaint"),
    ]
    counts = Counter()
    kept = fetching.divide(pictures, words, counts)
    assert [(p.caption, p.split) for p in kept] == [
        ("banana", "unseen"),
        ("dog", "train"),
        ("red dog", "seen"),
        ("red dog", "seen"),
        ("red cat", "train"),
        ("dog", "outside"),
    ]
    assert counts["names a concept that is held out"] == 1


def test_the_only_ones_of_a_concept_are_learned(words, monkeypatch):
    monkeypatch.setattr(fetching, "chosen", lambda text: not text.startswith("concept"))
    kept = fetching.divide([picture("dog", "dog")], words, Counter())
    assert [p.split for p in kept] == ["train"]


def test_one_in_eight_is_chosen():
    names = [f"concept {i}" for i in range(4000)]
    assert 400 < sum(map(fetching.chosen, names)) < 600


def test_pictures_stand_on_white_in_a_square(tmp_path):
    image = Image.new("RGBA", (100, 50), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (50, 0, 100, 50))
    image.save(tmp_path / "x.png")
    found = fetching.square(tmp_path / "x.png")
    assert found.size == (224, 224) and found.mode == "RGB"
    assert found.getpixel((10, 10)) == found.getpixel((30, 112)) == (255, 255, 255)
    assert found.getpixel((200, 112)) == (255, 0, 0)
    other = image.copy()
    other.paste((250, 4, 0, 255), (50, 0, 100, 50))
    other.save(tmp_path / "y.png")
    assert fetching.look(found) == fetching.look(fetching.square(tmp_path / "y.png"))
    Image.new("RGB", (100, 50)).save(tmp_path / "z.png")
    assert fetching.look(found) != fetching.look(fetching.square(tmp_path / "z.png"))
