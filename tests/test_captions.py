"""Captions and conversations of several kinds of files, and what is wrong with them."""

import json
import os

import pytest
from PIL import Image

from mllama_lite.alignment.captions import (
    LONGEST_TEXT,
    PLACE,
    find_records,
    read_captions,
)
from mllama_lite.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def written(folder, name, value):
    text = (
        "".join(json.dumps(line) + "\n" for line in value)
        if name.endswith("l")
        else json.dumps(value)
    )
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def turns(*texts):
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]


CONVERSATIONS = [
    {"id": "7", "image": "a.png", "conversations": turns("<image>\nWhat?", "A cat.")},
    {
        "image": ["a.png", "in/b.png"],
        "conversations": turns(
            "Is <image> as <image>?", "No.", "Why?", "One is a dog."
        ),
    },
    {"conversations": turns("Hello", "Hello.")},
]


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_conversations_as_llava_writes_them(folder, name):
    first, second, third = read_captions(written(folder, name, CONVERSATIONS))
    assert first.images == (folder / "a.png",) and first.about == {
        "id": "7",
        "image": "a.png",
    }
    assert first.messages == (
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat."},
    )
    assert second.images == (folder / "a.png", folder / "in/b.png")
    assert [m["role"] for m in second.messages] == ["user", "assistant"] * 2
    assert third.images == () and third.caption == "Hello."
    assert name in first.where and first.where.endswith(" 1")


def test_captions_as_coco_writes_them(folder):
    file = written(
        folder,
        "coco.json",
        {
            "info": {"year": 2017},
            "images": [
                {"id": 5, "file_name": "in/b.png", "height": 4},
                {"id": 3, "file_name": "a.png"},
            ],
            "annotations": [
                {"id": 1, "image_id": 3, "caption": "a cat"},
                {"id": 2, "image_id": 5, "caption": "a dog"},
                {"id": 3, "image_id": 3, "caption": "an animal"},
            ],
        },
    )
    records = read_captions(file)
    assert [(r.images[0].name, r.caption) for r in records] == [
        ("a.png", "a cat"),
        ("b.png", "a dog"),
        ("a.png", "an animal"),
    ]
    assert records[0].messages[0] == {"role": "user", "content": PLACE}


def test_captions_of_make_pictures(folder):
    line = {
        "id": "x",
        "file": "a.png",
        "caption": "cat",
        "concept": "cat",
        "split": "seen",
    }
    (record,) = read_captions(written(folder, "captions.jsonl", [line]))
    assert record.about["split"] == "seen" and record.caption == "cat"


def test_every_bad_line_is_listed_and_nothing_lost(folder):
    good = {"file": "a.png", "caption": "cat"}
    bad = [
        ({"file": "a.png"}, "its caption is None"),
        ({"file": "a.png", "caption": " "}, "its caption is ' '"),
        ({"file": "../a.png", "caption": "x"}, "not a path inside"),
        ({"file": str(folder / "a.png"), "caption": "x"}, "not a path inside"),
        ({"file": "no.png", "caption": "x"}, "no.png cannot be read"),
        ({"file": "in", "caption": "x"}, "is a folder"),
        ({"file": "a.png", "caption": "x" * (LONGEST_TEXT + 1)}, "characters"),
        ([1], "not a JSON object"),
        ({"conversations": turns("<image>?", "x")}, "1 times <image> for 0 images"),
        (
            {"image": "a.png", "conversations": turns("What?", "x")},
            "0 times <image> for 1 images",
        ),
        (
            {"image": "a.png", "conversations": turns("?", "x <image>")},
            "<image> in what gpt says",
        ),
        ({"conversations": turns("What?")}, "the assistant's last"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "a turn is"),
        ({"conversations": 3}, "a turn is 3"),
        ({"image": 3, "conversations": turns("?", "x")}, "its images are 3"),
        ({"conversations": turns("?", "\ud800")}, "surrogate"),
    ]
    lines = [good, *(line for line, _ in bad), good]
    file = written(folder, "mixed.jsonl", lines)
    with open(file, "ab") as opened:
        opened.write(b'\n{"file": "a.png", "file": "a.png", "caption": "x"}\n\xff\n')
    bad += [(None, "stands in it twice"), (None, "not a JSON object")]
    found = find_records(file, folder)
    assert len(found.records) == 2 and found.num_bad == len(bad)
    numbers = [2 + i for i in range(len(bad) - 2)] + [len(lines) + 2, len(lines) + 3]
    for number, (_, reason) in zip(numbers, bad):
        told = [
            p for p in found.problems if p.startswith(f"mixed.jsonl line {number}: ")
        ]
        assert any(reason in text for text in told), (number, reason, told)
    with pytest.raises(InputError, match=f"bad entries, {len(bad)} of them") as error:
        read_captions(file)
    assert len(error.value.args) == 1 + len(found.problems)
    told = []
    assert len(read_captions(file, skip_bad=True, report=told.append)) == 2
    assert "line 2: its caption" in told[0]


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("other") / "c.png"
    Image.new("RGB", (4, 4)).save(outside)
    try:
        os.symlink(outside, folder / "link.png")
    except OSError:
        pytest.skip("no links here")
    file = written(folder, "x.jsonl", [{"file": "link.png", "caption": "x"}])
    with pytest.raises(InputError, match="leads out of"):
        read_captions(file)


def test_coco_whose_numbers_do_not_fit(folder):
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "a.png"}, 4],
        "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": [2]}, 7],
    }
    found = find_records(written(folder, "coco.json", document), folder)
    assert len(found.records) == 1 and found.num_bad == 4
    assert "coco.json annotation 2: its image_id is [2]" in found.problems[2]


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "not a JSON object"),
        ("[1, 2", "not a JSON object"),
        ("[] ", "holds no captions"),
        ('{"a": 1}', "expected COCO's images"),
        ('{"annotations": []}', "has|have images None"),
        ("[NaN]", "not a JSON object"),
        ("[" * 100000, "nested|not a JSON"),
    ],
)
def test_files_that_hold_none(folder, text, told):
    (folder / "x.json").write_text(text)
    with pytest.raises(InputError, match=told):
        read_captions(folder / "x.json")
