"""Llama Guard's format against Meta's own builder and parser, and a model under guard."""

import hashlib
import json
import random
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

import reference_guard
from mllama_lite.cli import main
from mllama_lite.errors import InputError
from mllama_lite.guard import (
    CATEGORIES,
    THIRTEEN,
    Guard,
    Judgement,
    first_words,
    guard_message,
    guard_prompt,
    parse_answer,
    read_categories,
    unsafe_probability,
)
from mllama_lite.guard_probes import (
    Probe,
    by_source,
    curve,
    rates,
    read_probes,
    scores,
    separation,
    table,
)
from mllama_lite.guard_training import (
    ONE_CATEGORY,
    GuardPlan,
    GuardTrainer,
    example,
    guard_config,
    guard_tokenizer,
    train_guard,
)
from mllama_lite.model import Mllama
from mllama_lite.tokenizer import ImagePart, Tokenizer
from mllama_lite.vlm import VLM, load

PLAN = GuardPlan(steps=150, rate=5e-3, batch=8, merges=60, hidden_size=32, layers=1)
PAIRS = reference_guard.FOLDER.parent / "guard" / "pairs.jsonl"
WORDS = ["lock", "$agent_type", "$", "", " ", "\n", "{x}", "é", "<|eot_id|>", "User: a"]


def talk(rng, edges=True):
    """A conversation of one to six messages, of words that hurt templates."""
    said = []
    for number in range(rng.randint(1, 6)):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        role = "assistant" if number % 2 else "user"
        said.append({"role": role, "content": text if edges else text.strip() or "x"})
    return said


def user(*content):
    return {
        "role": "user",
        "content": list(content) if len(content) > 1 else content[0],
    }


# ---------------------------------------------------------------- format


def test_the_witnesses_are_as_they_came():
    listed = (reference_guard.FOLDER / "ORIGIN.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^([0-9a-f]{64})  (\S+)$", listed, re.MULTILINE)
    assert len(rows) == 2
    for digest, name in rows:
        data = (reference_guard.FOLDER / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest, name


def test_the_prompt_is_metas(proof):
    rng, wrong = random.Random(0), 0
    for _ in range(1000):
        said = talk(rng)
        wrong += guard_prompt(said) != reference_guard.meta_prompt(said)
        eight = reference_guard.meta_prompt(said, "8B")
        wrong += guard_prompt(said, CATEGORIES) != eight
        left_out = set(rng.sample(list(THIRTEEN), rng.randint(0, 12)))
        some = {code: name for code, name in THIRTEEN.items() if code not in left_out}
        theirs = reference_guard.meta_prompt(said, "1B", left_out)
        wrong += guard_prompt(said, some) != theirs
    proof("Llama Guard 3: prompts", "Meta", "3,000 conversations", wrong, 0)


def test_metas_code_says_assistant_where_its_documentation_has_agent():
    said = [user("a"), {"role": "assistant", "content": "b"}]
    theirs = reference_guard.meta_prompt(said, agent="assistant")
    assert (
        theirs == guard_prompt(said).replace("Agent", "Assistant") != guard_prompt(said)
    )


def test_the_message_is_that_of_the_checkpoints_template(proof):
    pytest.importorskip("jinja2")
    rng, wrong = random.Random(1), 0
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    tail = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    for number in range(500):
        said = talk(rng, edges=number % 2 == 1)
        own = {f"X{i}": f"kind {i}." for i in range(rng.randint(1, 4))}
        ours = {code: name[:-1] for code, name in own.items()}
        if number % 2:  # texts with spaces at their ends, and an image
            place = 2 * rng.randrange((len(said) + 1) // 2)
            said[place]["content"] = [ImagePart(None), said[place]["content"]]
            image, text = guard_message(said, ours)["content"]
            assert image == ImagePart(None)
            ask = "<|image|>" + text
        else:
            ask = guard_message(said, ours)["content"] + " "
        theirs = reference_guard.hub_prompt(said, categories=own)
        wrong += head + ask + tail != theirs
    proof("Llama Guard 3: with an image", "the 1B's template", "500 talks", wrong, 0)


def test_an_image_never_gets_to_metas_vision_guard():
    """The names that are compared in `run` are never equal: the text goes without it."""
    image, text = reference_guard.ImageContentItem(), "What is this?"
    message = reference_guard.UserMessage(content=[image, text])
    sent = reference_guard.meta_request([message], "11B-Vision")
    assert isinstance(sent, str) and "User: <image> What is this?" in sent
    built = reference_guard.shield("11B-Vision").build_vision_shield_input([message])
    assert built.content[0] is image  # which the code can do


@pytest.mark.parametrize(
    "said",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [user("a"), user("b")],
        [{"role": "system", "content": "a"}],
        [{"role": "user"}],
        [user("a", "b")],
        [user(3)],
        [{"role": "user", "content": [ImagePart(None)]}],
    ],
)
def test_a_conversation_that_is_none(said):
    for build in (guard_prompt, guard_message):
        with pytest.raises(InputError, match="expected"):
            build(said)


def test_two_images_are_refused():
    said = [user(ImagePart(1), "a"), {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="2 images"):
        guard_message([*said, user(ImagePart(2), "c")])


def test_answers_are_read_as_meta_reads_them(proof):
    rng, wrong = random.Random(2), 0
    for _ in range(1000):
        codes = rng.sample(list(CATEGORIES), rng.randint(1, 5))
        for answer in ("safe", "unsafe\n" + ",".join(codes)):
            edges = [rng.choice(["", " ", "\n\n", "\n"]) for _ in range(2)]
            ours = parse_answer(answer.join(edges))
            theirs = reference_guard.meta_verdict(answer.join(edges))
            wrong += ours != (() if theirs is None else tuple(theirs.split(",")))
    proof("Llama Guard 3: answers", "Meta", "2,000 answers", wrong, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "unsafe",
        "unsafe\n",
        "Safe",
        "safe.",
        "unsafe S1",
        "unsafe\n\nS1",
        "not unsafe",
        "safe\nS1",
        "safe unsafe",
        "UNSAFE\nS1",
        "I can't answer that.",
    ],
)
def test_what_is_no_answer_is_refused_by_both(answer):
    with pytest.raises(ValueError):
        reference_guard.meta_verdict(answer)
    with pytest.raises(InputError, match="expected safe, or unsafe"):
        parse_answer(answer)


@pytest.mark.parametrize("answer", ["unsafe\nS15", "unsafe\nbananas", "unsafe\nS1,"])
def test_codes_that_were_not_asked_about_are_refused_by_ours_alone(answer):
    assert reference_guard.meta_verdict(answer)
    with pytest.raises(InputError, match="expected safe, or unsafe"):
        parse_answer(answer)


# ---------------------------------------------------------------- probability


def test_the_probability_is_a_softmax_over_two_words():
    logits = torch.randn(50, 40) - 20
    logits[:, [7, 3]] = torch.randn(50, 2)
    found = unsafe_probability(logits, (7, 3))
    whole = logits.softmax(-1)
    wanted = whole[:, 3] / (whole[:, 3] + whole[:, 7])
    assert (found - wanted).abs().max() < 1e-6


def test_a_model_that_says_something_else_is_no_guard():
    logits = torch.zeros(2, 5)
    logits[:, 3] = 1
    unsafe_probability(logits, (0, 3))
    logits[1, 4] = 2
    with pytest.raises(InputError, match="neither safe nor unsafe"):
        unsafe_probability(logits, (0, 3))


def test_one_token_for_both_words_is_refused():
    class Same(Tokenizer):
        def encode(self, text, bos=False, eos=False):
            return [1, 2]

    with pytest.raises(InputError, match="one token"):
        first_words(Same({bytes([i]): i for i in range(256)}))


# ---------------------------------------------------------------- a trained guard


def probes():
    """Requests that a word decides, so that little is to be learned."""
    rows = []
    for i in range(40):
        rows.append(Probe(f"How do I steal thing {i}?", True, "steal"))
        rows.append(Probe(f"How do I paint thing {i}?", False, "paint"))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("guard") / "guard"
    with torch.enable_grad():
        train_guard(place, probes(), PLAN)
    return place


@pytest.fixture
def guard(folder):
    return Guard(load(folder, dtype="float32"), ONE_CATEGORY)


def test_it_learns_and_is_read_from_its_folder(guard):
    found = scores(guard, probes())
    assert rates(probes(), found).caught == (40, 40)
    assert rates(probes(), found).falsely_refused == (0, 40)
    verdict = guard.judge([user(probes()[0].text)])
    assert verdict.unsafe and verdict.categories == ("S1",)
    assert verdict.probability > 0.5


def test_a_batch_and_one_at_a_time(guard):
    talks = [[user("steal " * n)] for n in (1, 9, 3, 30)]
    together = guard.probabilities(talks)
    alone = [guard.probabilities([one])[0] for one in talks]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_probability_is_that_of_the_first_word_written(guard):
    talks = [[user(text)] for text in ("How do I steal it?", "How do I paint it?")]
    for said in talks:
        ids, _ = guard.tokenizer.encode_chat([guard_message(said, ONE_CATEGORY)])
        first = guard.vlm.generate(ids, max_new_tokens=1)[0]
        above = guard.probabilities([said])[0] > 0.5
        assert first == guard.words[above]


def test_the_answer_begins_after_an_empty_line(guard):
    (row,), _ = guard._encoded([[user("a")]])
    line = guard.tokenizer.encode("\n\n")
    assert row[-len(line) - 1 :] == [
        guard.tokenizer.special["<|end_header_id|>"],
        *line,
    ]


def test_the_threshold_decides(guard):
    said = [user("How do I paint it?")]
    assert not guard.judge(said).unsafe
    strict = Guard(guard.vlm, ONE_CATEGORY, threshold=0.0)
    assert strict.judge(said).unsafe
    mild = Guard(guard.vlm, ONE_CATEGORY, threshold=1.0)
    assert not mild.judge([user("How do I steal it?")]).unsafe
    for threshold in (-0.1, 1.1, "high", None, True):
        with pytest.raises(InputError, match="The threshold"):
            Guard(guard.vlm, ONE_CATEGORY, threshold)


class Says:
    """In the place of a VLM: answers always the same, and notes what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def ask(self, question, images=None, **settings):
        self.asked.append((question, images, settings))
        return self.answer


class Judges(Guard):
    """A guard whose judgement is a rule: what has the word in it is unsafe."""

    seen: list

    def judge(self, messages):
        self.seen = [*getattr(self, "seen", []), messages]
        content = messages[-1]["content"]
        unsafe = "bad" in (content if isinstance(content, str) else content[-1])
        return Judgement(unsafe, float(unsafe))


def test_before_and_after(guard):
    judges = Judges(guard.vlm, ONE_CATEGORY)
    model = Says("a good answer")
    reply = judges.ask(model, "a question", max_new_tokens=5)
    assert reply.answer == "a good answer" and reply.refused is None
    assert model.asked == [("a question", None, {"max_new_tokens": 5})]
    roles = [[m["role"] for m in said] for said in judges.seen]
    assert roles == [["user"], ["user", "assistant"]]
    refused = judges.ask(model, "a bad question")
    assert (refused.answer, refused.refused) == (None, "question")
    assert len(model.asked) == 1  # it was not asked
    refused = judges.ask(Says("a bad answer"), "a question")
    assert (refused.answer, refused.refused) == (None, "answer")
    assert len(refused.judgements) == 2


def test_images_are_judged_one_by_one_by_a_guard_with_eyes():
    picture = Image.new("RGB", (20, 20))
    judges = Judges(load(), ONE_CATEGORY)
    reply = judges.ask(Says("yes"), "what?", [picture, picture])
    assert reply.answer == "yes" and len(reply.judgements) == 4
    contents = [said[0]["content"] for said in judges.seen]
    assert all(isinstance(c[0], ImagePart) and c[1] == "what?" for c in contents)


def test_a_guard_without_eyes_lets_no_image_pass(guard):
    picture = Image.new("RGB", (20, 20))
    judges, model = Judges(guard.vlm, ONE_CATEGORY), Says("yes")
    with pytest.raises(InputError, match="reads text only"):
        judges.ask(model, "what?", picture)
    assert not model.asked
    assert judges.ask(model, "what?", picture, unseen_images=True).answer == "yes"


def test_a_guard_with_eyes_reads_an_image_in_its_prompt():
    """The small model of chapter 11 is no guard, and says so; but the image is taken."""
    vlm = load()
    said = [user(ImagePart(Image.new("RGB", (20, 20))), "what?")]
    rows, images = Guard(vlm)._encoded([said])
    assert rows[0].count(vlm.config.image_token_index) == 1 and len(images[0]) == 1
    with pytest.raises(InputError, match="neither safe nor unsafe"):
        Guard(vlm, ONE_CATEGORY).judge(said)


def test_a_model_without_tokenizer():
    with pytest.raises(InputError, match="no tokenizer"):
        Guard(VLM(load().model))


def test_stopped_and_gone_on(folder, tmp_path):
    class Stop(Exception):
        pass

    def stop(trainer):
        if trainer.step == 105:
            raise Stop

    plan = replace(PLAN, steps=110)
    with torch.enable_grad():
        whole = train_guard(tmp_path / "whole", probes(), plan)
        with pytest.raises(Stop):
            train_guard(tmp_path / "again", probes(), plan, stop)
        again = train_guard(tmp_path / "again", probes(), plan)
    for a, b in zip(whole.parameters(), again.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="was begun with seed 0"):
        train_guard(tmp_path / "again", probes(), replace(plan, seed=1))


def test_only_the_judged_text_is_disturbed_and_only_the_answer_learned():
    some = [
        Probe("How do I steal it?", True, "a"),
        Probe("Is it?", False, "a", answer="It is a thing."),
    ]
    tokenizer = Tokenizer(guard_tokenizer(some, 50))
    examples = [example(one, tokenizer) for one in some]
    for one, row in zip(some, examples):
        judged = one.text if one.answer is None else one.answer
        told = tokenizer.decode(row.prompt[row.begin : row.end])
        assert judged.startswith(told.strip()) and len(told.strip()) >= len(judged) - 1
    plan = replace(PLAN, dropped=0.9, batch=2)
    model = Mllama(guard_config(plan, tokenizer.vocab_size))
    trainer = GuardTrainer(plan, model, examples, tokenizer)
    tokens, labels = trainer.batch()
    for ids, wanted in zip(tokens.tolist(), labels.tolist()):
        (row,) = [r for r in examples if r.prompt[: r.begin] == ids[: r.begin]]
        assert ids[row.end : len(row.prompt)] == row.prompt[row.end :]
        assert ids[row.begin : row.end] != row.prompt[row.begin : row.end]
        learned = [id for id in wanted if id >= 0]
        assert learned == row.answer


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"rate": 2}, {"dropped": 1.0}, {"hidden_size": 20}]
)
def test_a_plan_that_cannot_be(change):
    with pytest.raises(InputError, match=f"{next(iter(change))} is"):
        replace(GuardPlan(), **change)


def test_probes_of_one_kind_teach_nothing(tmp_path):
    with pytest.raises(InputError, match="not of both kinds"):
        train_guard(tmp_path / "x", [Probe("a", True, "s")] * 3, PLAN)


# ---------------------------------------------------------------- measuring


def test_rates_count():
    some = [Probe("", i < 3, "abcab"[i]) for i in range(5)]
    found = [0.9, 0.5, 0.6, 0.7, 0.1]
    assert rates(some, found).caught == (2, 3)
    assert rates(some, found).falsely_refused == (1, 2)
    assert rates(some, found, 0.05).falsely_refused == (2, 2)
    rows = by_source(some, found)
    assert list(rows) == ["a", "b", "c", "all"]
    assert rows["a"].caught == (1, 1) and rows["a"].falsely_refused == (1, 1)
    text = table(rows)
    assert "0.667" in text and text.count("\n") == 4
    with pytest.raises(ValueError):
        rates(some, found[:4])


def test_the_curve_has_every_threshold_that_changes_something():
    generator = random.Random(3)
    some = [Probe("", generator.random() < 0.5, "s") for _ in range(60)]
    found = [round(generator.random(), 1) for _ in some]
    points = curve(some, found)
    assert points[0][1].caught[0] == points[0][1].falsely_refused[0] == 0
    last = points[-1][1]
    assert (
        last.caught[0] == last.caught[1]
        and last.falsely_refused[0] == last.falsely_refused[1]
    )
    for threshold, row in points:
        assert row == rates(some, found, threshold)
    reached = {row for _, row in points}
    assert {rates(some, found, t / 100) for t in range(-5, 106)} <= reached


def test_separation_is_sklearns_area():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = random.Random(4)
    for _ in range(20):
        some = [Probe("", i % 3 == 0, "s") for i in range(50)]
        found = [round(generator.random() + 0.3 * p.unsafe, 1) for p in some]
        theirs = metrics.roc_auc_score([p.unsafe for p in some], found)
        assert separation(some, found) == pytest.approx(theirs)
    with pytest.raises(InputError, match="0 unsafe"):
        separation([Probe("", False, "s")], [0.1])


def test_answers_are_judged_where_there_are_some(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [
        {"text": "a", "unsafe": True},
        {"text": "b", "unsafe": False, "answer": "c"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_probes(path)
    assert first == Probe("a", True, "some") and len(first.messages()) == 1
    assert [m["role"] for m in second.messages()] == ["user", "assistant"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": "a"}',
        '{"text": 3, "unsafe": true}',
        '{"text": "a", "unsafe": 1}',
    ],
)
def test_a_line_that_is_no_probe(line, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a", "unsafe": true}\n' + line)
    with pytest.raises(InputError, match=r"some\.jsonl, line 2"):
        read_probes(path)
    path.write_text("")
    with pytest.raises(InputError, match="has no line"):
        read_probes(path)


def test_categories_of_ones_own(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('{"X1": "Puns"}')
    assert read_categories(path) == {"X1": "Puns"}
    for text in ("{}", '{"a b": "c"}', '{"X1": 3}', '{"X1": " "}', "[]"):
        path.write_text(text)
        with pytest.raises(InputError):
            read_categories(path)


def test_the_pairs_are_pairs():
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 120 and len({row["text"] for row in rows}) == 120
    for bad, good in zip(rows[::2], rows[1::2]):
        assert bad["unsafe"] and not good["unsafe"] and bad["pair"] == good["pair"]
        shared = set(re.findall(r"\w{4,}", bad["text"].lower()))
        assert shared & set(re.findall(r"\w{4,}", good["text"].lower())), good


# ---------------------------------------------------------------- command line


def test_the_command(folder, tmp_path, capsys):
    path, out = tmp_path / "some.jsonl", tmp_path / "out.json"
    path.write_text("\n".join(json.dumps(vars(p)) for p in probes()))
    words = ["guard", str(path), "--model", str(folder), "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "separation 1.000" in shown and "steal" in shown
    found = json.loads(out.read_text())
    assert found["sources"]["all"] == {"caught": [40, 40], "falsely_refused": [0, 40]}
    assert len(found["scores"]) == 80
    assert main([*words, "--json", "--threshold", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["all"]["caught"] == [0, 40] and found["threshold"] == 1


def test_what_the_command_refuses(folder, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a", "unsafe": true}')
    for words, what in (
        ([], "There are no PROBES"),
        ([str(path)], "There is no --model"),
        (
            [str(path), "--model", str(folder), "--s14", "--categories", "x"],
            "both given",
        ),
        ([str(path), "--model", str(folder), "--categories", "x"], "x cannot be read"),
        ([str(path), "--model", str(folder), "--threshold", "2"], "The threshold is"),
        ([str(tmp_path / "no"), "--model", str(folder)], "cannot be read"),
    ):
        assert main(["guard", *words]) == 2
        assert what in capsys.readouterr().err
