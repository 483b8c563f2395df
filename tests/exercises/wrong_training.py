"""Wrong answers to chapter 11's exercises."""

RIGHT = {"gates-recall": "b", "guess-count": 9 / 32, "enough-questions": 1830}


def everything(tokens, tokenizer):
    return tokens[1:] + [-100]


def not_shifted(tokens, tokenizer):
    return [-100, *answers(tokens, tokenizer)][: len(tokens)]


def answers(tokens, tokenizer, end=True, ends_only=False):
    """The right labels, or nearly."""
    header = tokenizer.encode_header("assistant")
    stop, labels = tokenizer.special["<|eot_id|>"], [-100] * len(tokens)
    inside = False
    for i in range(1, len(tokens)):
        if tokens[i - len(header) : i] == header:
            inside = True
        if inside and (end or tokens[i] != stop):
            if not ends_only or tokens[i] == stop:
                labels[i - 1] = tokens[i]
        if tokens[i] == stop:
            inside = False
    return labels


def without_the_end(tokens, tokenizer):
    return answers(tokens, tokenizer, end=False)


def the_first_answer_alone(tokens, tokenizer):
    labels = answers(tokens, tokenizer)
    end = labels.index(tokenizer.special["<|eot_id|>"]) + 1
    return labels[:end] + [-100] * (len(tokens) - end)


def numbers(rng, scene):
    kinds = [int(thing.kind) for thing in scene.digits]
    return ({}, max(kinds)) if kinds else None


def of_everything(rng, scene):
    kinds = [thing.kind for thing in scene.things]
    return ({}, max(kinds)) if kinds else None


def the_leftmost(rng, scene):
    return ({}, scene.digits[0].kind) if scene.digits else None


def the_widest(rng, scene):
    size = lambda thing: thing.box[2] - thing.box[0]
    return ({}, max(scene.digits, key=size).kind) if scene.digits else None


def where_there_is_none(rng, scene):
    return {}, max((thing.kind for thing in scene.digits), default="none")


WRONG = {
    "gates-recall": ["a", "c", "d"],
    "guess-count": [
        1 / 4,  # one of four, everywhere
        9 / 16,  # 1 or 2
        7 / 32,  # the crowded pictures alone
        1 / 2,
    ],
    "enough-questions": [
        456,  # for .02 to either side
        9604,  # as if the share were one half
        500,  # as many as there are in a row
        5500,  # all there are
    ],
    "which-labels": [
        everything,
        not_shifted,
        without_the_end,
        the_first_answer_alone,
    ],
    "new-kind": [numbers, of_everything, the_leftmost, the_widest, where_there_is_none],
}
