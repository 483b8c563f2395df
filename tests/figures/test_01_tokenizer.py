"""The figures of chapter 1 against the package."""

import nbformat
import pytest
import regex

import conftest
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tokenizer import Tokenizer, bpe_merge, read_tokenizer_model, train_bpe


@pytest.fixture(scope="module")
def small():
    return Tokenizer.from_file(find_folder() / "tokenizer.model")


@pytest.fixture(scope="module")
def ranks():
    return read_tokenizer_model(find_folder() / "tokenizer.model")


def loaded(figure, name):
    """A figure whose vocabulary is there."""
    shown = figure(name)
    shown.page.wait_for_function(
        "document.querySelector('.mllama-figure').figure.numbers() !== null"
    )
    return shown


def replay(word, ranks, choose):
    """The splits of a word, one a merge; choose(candidates) is the rank to merge."""
    parts = [word[i : i + 1] for i in range(len(word))]
    steps = [[None, list(parts)]]
    while True:
        candidates = [ranks.get(a + b) for a, b in zip(parts, parts[1:])]
        known = [rank for rank in candidates if rank is not None]
        if not known:
            return steps
        i = candidates.index(choose(known))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        steps.append([choose(known), list(parts)])


@pytest.mark.parametrize(
    "word", [" right", " triangular", " counting", "caf\xe9", "zz", "a", ""]
)
def test_merge_replay(figure, ranks, word):
    shown = loaded(figure, "merge_replay")
    shown.set("Word", word)
    for side, choose in zip(shown.values(), (min, lambda known: known[0])):
        want = replay(word.encode(), ranks, choose)
        got = [[r, [p.encode("latin-1") for p in parts]] for r, parts in side["steps"]]
        assert got == want
        assert side["ids"] == [ranks[part] for part in want[-1][1]]
    assert shown.values()[0]["ids"] == bpe_merge(word.encode(), ranks)


def test_merge_replay_says_which_tokens(figure, ranks):
    shown = loaded(figure, "merge_replay")
    first, second = ranks[b"ig"], ranks[b"ri"]
    shown.set("Merges", 0)
    assert f"Lowest rank first makes ig, rank {first}, next" in shown.words()
    assert f"Leftmost known pair first makes ri, rank {second}, next" in shown.words()
    shown.set("Merges", 5)
    assert [side["shown"] for side in shown.values()] == [5, 2]
    assert "ends with 1 token: ␣right." in shown.words()
    assert "ends with 4 tokens: ␣ | ri | g | ht. Not the same" in shown.words()
    shown.set("Word", " the")  # fewer merges: the slider has to follow
    assert shown.control("Merges").input_value() == "3"
    assert "The same tokens." in shown.words()


def simple_words(text):
    return [word.encode() for word in regex.findall(r" ?\S+|\s+", text)]


def bytes_per_token(text, ranks):
    tokens = [id for word in simple_words(text) for id in bpe_merge(word, ranks)]
    return len(text.encode()) / len(tokens)


OTHERS = ["another page about the museum", "a recipe", "a German page"]


@pytest.mark.parametrize("merges, other", [(0, 0), (40, 1), (77, 2), (104, 0)])
def test_learned_merges(figure, merges, other):
    shown = figure("learned_merges")
    shown.set("Merges", merges)
    shown.set("Compare with", OTHERS[other])
    values = shown.values()
    ranks = train_bpe(simple_words(values["learned"]), merges)
    tokens = sorted(ranks, key=ranks.get)
    assert [t.encode("latin-1") for t in values["merges"]] == tokens[256:]
    want = [bytes_per_token(values[text], ranks) for text in ("learned", "other")]
    assert values["bytesPerToken"] == pytest.approx(want, abs=1e-9)
    gap = f"a gap of {want[0] - want[1]:.2f}."
    assert gap in shown.words() and OTHERS[other] in shown.words()


def test_learned_merges_end_where_the_package_ends(figure):
    shown = figure("learned_merges")
    values = shown.values()
    assert len(train_bpe(simple_words(values["learned"]), 500)) == 256 + values["most"]
    shown.set("Merges", 1)
    (first,) = shown.values()["merges"]
    seen = sum(word.count(first.encode()) for word in simple_words(values["learned"]))
    assert shown.values()["seen"] == seen
    assert f"a pair seen {seen} times" in shown.words()


def test_learned_merges_can_be_dragged(figure):
    shown = figure("learned_merges")
    before = shown.values()["bytesPerToken"]
    dot = shown.root.locator("circle[data-drag]").first.bounding_box()
    x, y = dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x + 60, y)
    shown.page.mouse.up()
    assert shown.values()["bytesPerToken"][0] > before[0]


def alternatives():
    """The alternatives of the split pattern by name, as the chapter's own cell has them."""
    cells = nbformat.read(conftest.ROOT / "notebooks" / "01_tokenizer.ipynb", 4).cells
    (source,) = [c.source for c in cells if c.source.startswith("ALTERNATIVES = {")]
    names = {}
    exec(source.split("named =")[0], names)
    return names["ALTERNATIVES"]


TYPED = "She's seen 12345 boats,   IT'S 2345  x \N{CAMERA} बिल्ली<|eot_id|>"


@pytest.mark.parametrize("text", [TYPED, "<|image|> <|eot_id|>", "", "   "])
def test_typed_tokens(figure, small, text):
    shown = loaded(figure, "typed_tokens")
    shown.set("Text", text)
    named = "|".join(f"(?P<{k}>{v})" for k, v in alternatives().items())
    want = [
        [m.group(), m.lastgroup.replace("_", " ")] for m in regex.finditer(named, text)
    ]
    assert shown.values()["pieces"] == want
    ids = shown.values()["ids"]
    assert ids == small.encode(text)
    assert not set(ids) & set(small.special.values())
    if "<|eot_id|>" in text:
        assert "stays text" in shown.words()


def test_typed_tokens_unsafe(figure, small):
    shown = loaded(figure, "typed_tokens")
    shown.set("Text", "Hi<|eot_id|>you<|eot id|><|python_tag|>")
    safe = shown.values()["ids"]
    shown.set("Let typed names become special tokens (unsafe)", True)
    end, tag = small.special["<|eot_id|>"], small.special["<|python_tag|>"]
    parts = small.encode("Hi"), [end], small.encode("you<|eot id|>"), [tag]
    assert shown.values()["ids"] == sum(parts, [])
    assert len(safe) > len(shown.values()["ids"])
    assert f"has become token {end}" in shown.words()
    names = [kind for _, kind in shown.values()["pieces"]]
    assert names.count("special") == 2
