"""The figures of chapter 13 against the package."""

import pytest

from mllama_lite import load
from mllama_lite.adapters.data import encode_sample, indices_of_step
from mllama_lite.adapters.recipe import Recipe, learning_rate


@pytest.fixture(scope="module")
def tokenizer():
    return load(dtype="float32", device="cpu").tokenizer


@pytest.fixture
def turn(figure):
    """The figure with a question, an answer and images, once the tokenizer is there."""

    def opened(question, answer, images):
        shown = figure("learned_tokens")
        shown.page.wait_for_function("document.querySelector('[data-place]')")
        shown.set("Question", question)
        shown.set("Answer", answer)
        shown.set("Images", images)
        return shown

    return opened


def built(tokenizer, question, answer, images):
    roles = (("user", question), ("assistant", answer))
    messages = [{"role": role, "content": text} for role, text in roles]
    return encode_sample(tokenizer, messages, images)


@pytest.mark.parametrize(
    "question, answer, images",
    [
        ("Which digit is red?", "4", 1),
        ("validate.exe", "\u2014 llama is now fine tuned!", 0),
        ("Größe  of 12345?", "naïve 日本", 2),
    ],
)
def test_learned_tokens(turn, tokenizer, question, answer, images):
    shown = turn(question, answer, images)
    tokens, labels = built(tokenizer, question, answer, images)
    assert shown.values()["tokens"] == tokens
    assert shown.values()["labels"] == labels
    learned = sum(label >= 0 for label in labels)
    assert f"{learned} are learned (orange), the answer and its end" in shown.words()
    first = next(i for i, label in enumerate(labels) if label >= 0)
    shown.set("Place", first)
    assert f"At place {first} (blue) the last token read is “↵↵”" in shown.words()
    shown.set("Place", first - 1)
    assert f"At place {first - 1} (blue) nothing is learned" in shown.words()


def test_learned_tokens_without_end_of_turn(turn, tokenizer):
    shown = turn("Which digit is red?", "4", 1)
    shown.set("Without end of turn", True)
    _, labels = built(tokenizer, "Which digit is red?", "4", 1)
    end = tokenizer.special["<|eot_id|>"]
    wanted = [-100 if label == end else label for label in labels]
    assert shown.values()["labels"] == wanted
    assert "1 is learned (orange), the answer." in shown.words()
    assert "the model goes on" in shown.words()


def test_learned_tokens_with_the_mistakes_of_the_chapter(turn, tokenizer):
    shown = turn("Which digit is red?", "4", 1)
    tokens, labels = built(tokenizer, "Which digit is red?", "4", 1)
    shown.set("Forget the shift", True)
    assert shown.values()["labels"] == [-100, *labels[:-1]]
    assert "to repeat it" in shown.words()
    shown.set("Place", len(tokens) - 2)
    assert "read is “4”, and its label says that “4” follows" in shown.words()
    shown.set("Forget the shift", False)
    assert "read is “4”, and its label says that “eot_id” follows" in shown.words()
    shown.set("Learn the question too", True)
    assert shown.values()["labels"] == [*tokens[1:], -100]
    share = round(100 * 2 / (len(tokens) - 1))
    assert f"the answer and its end are {share} %" in shown.words()
    assert f"a label, {tokenizer.image_id}, one past the head" in shown.words()
    shown.set("Images", 0)
    assert "one past" not in shown.words()


def test_learned_tokens_of_what_a_folder_may_not_hold(turn):
    shown = turn("Which digit is red?", " ", 0)
    assert "The answer is empty" in shown.words()
    shown.set("Answer", "4<|eot_id|>")
    assert "A special token is spelled in the answer" in shown.words()
    shown.set("Answer", "4<|no_token|>")
    assert "refused" not in shown.words()
    shown.root.locator("[data-place='3']").click()
    assert "At place 3 (blue)" in shown.words()


def planned(shown, count, batch, accumulate, epochs, warmup, seed):
    """What the figure plans and what a Trainer would do."""
    for label, value in (
        ("Samples", count),
        ("Batch", batch),
        ("Batches a step", accumulate),
        ("Epochs", epochs),
        ("Warm-up", warmup),
        ("Seed", seed),
    ):
        shown.set(label, value)
    size = min(batch * accumulate, count)
    steps = -(-epochs * count // size)
    recipe = Recipe(lr=1.0, warmup=warmup)
    return shown.values(), [
        {
            "samples": indices_of_step(i, size, count, seed, epochs),
            "rate": pytest.approx(learning_rate(recipe, i, steps), abs=1e-12),
        }
        for i in range(steps)
    ]


def test_steps_of_a_training_begins_with_the_steps_of_the_cell(figure):
    shown = figure("steps_of_a_training")
    steps = [step["samples"] for step in shown.values()]
    assert steps == [indices_of_step(i, 3, 7, seed=0, epochs=2) for i in range(5)]
    assert "5 steps, the last with 2 samples" in shown.words()
    assert "of epochs 1 (solid) and 2 (dashed)" in shown.words()
    assert "Sample 6 is in it twice." in shown.words()


@pytest.mark.parametrize(
    "setting",
    [
        (11, 4, 1, 3, 0.05, 0),
        (40, 8, 4, 6, 0.25, 9),
        (5, 8, 2, 4, 0.5, 3),
        (1, 1, 1, 1, 0.0, 0),
        (33, 5, 3, 5, 0.5, 7),
        (10, 1, 1, 5, 0.05, 2),  # 2.5 steps of warm-up are 2
        (7, 2, 1, 2, 0.5, 1),  # 3.5 are 4
    ],
)
def test_steps_of_a_training(figure, setting):
    shown = figure("steps_of_a_training")
    values, wanted = planned(shown, *setting)
    assert values == wanted
    together = sum(step["rate"] for step in values)
    assert f"All rates together are {together:.1f} times the highest" in shown.words()
    shown.set("Step", len(wanted))
    last = ", ".join(map(str, wanted[-1]["samples"]))
    assert f"learns from {last} of epoch {setting[3]}, at" in shown.words()


def test_steps_of_a_training_twice_the_batch_goes_about_half_as_far(figure):
    shown = figure("steps_of_a_training")
    far = [
        sum(step["rate"] for step in planned(shown, 40, 4, n, 6, 0.1, 0)[0])
        for n in (1, 2, 4)
    ]
    assert far[1] == pytest.approx(far[0] / 2, rel=0.1)
    assert far[2] == pytest.approx(far[0] / 4, rel=0.1)
    assert "15 steps, the last with 16 samples" in shown.words()
