"""Code for exercises that are written in the page: the same text runs there and in Python.

Each label has right answers and wrong ones of the kind that people give. Right ones that
`SOLVED` names are those of the notebook's solution, as it stands.
"""

SOLVED = [
    "merge-few-look-ups",
    "blockwise",
    "count-parameters",
    "antialiased-row",
    "patchify-and-back",
    "projector-for-blocks",
    "share-of-each-state",
    "draft-and-keep",
    "which-labels",
    "merge-two",
    "longest-text",
]

HEAD = """
def softmax(x):
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)


def one_head(x, w_q, w_k, w_v, w_o):
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    scores = q @ k.transpose(1, 2) * k.shape[-1] ** -0.5
    sees = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    return softmax(scores.masked_fill(~sees, -torch.inf)) @ v @ w_o.T
"""

PEAK = """
def query_for(key, frequencies, distance):
    half = len(key) // 2
    a, b = key[:half], key[half:]
    cos, sin = torch.cos(distance * frequencies), torch.sin(distance * frequencies)
    return torch.cat([a * cos + b * sin, b * cos - a * sin])
"""

BLOCKWISE = """
def blockwise(query, key, value, block):
    most = torch.full((len(query), 1), -torch.inf)
    total, mixed = torch.zeros(len(query), 1), torch.zeros(len(query), value.shape[1])
    for start in range(0, len(key), block):
        k, v = key[start : start + block], value[start : start + block]
        scores = query @ k.T * query.shape[1] ** -0.5
        new = torch.maximum(most, scores.max(dim=1, keepdim=True).values)
        weights, shrink = (scores - new).exp(), (most - new).exp()
        total = total * shrink + weights.sum(dim=1, keepdim=True)
        mixed = mixed * shrink + weights @ v
        most = new
    return mixed / total
"""

COUNT = """
def count_parameters(config):
    width, size = config.hidden_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    attention = 2 * heads * size * width + 2 * groups * size * width
    layer = attention + 3 * config.intermediate_size * width + 2 * width
    rows = config.vocab_size + config.num_extra_embeddings
    head = 0 if config.tie_word_embeddings else config.vocab_size
    return (rows + head) * width + config.num_hidden_layers * layer + width
"""

SHRINK = """
def antialiased_row(row, count):
    factor = len(row) / count
    result = []
    for i in range(count):
        weights = [max(0, 1 - abs(j + 0.5 - (i + 0.5) * factor) / factor) for j in range(len(row))]
        result.append(sum(w * p for w, p in zip(weights, row)) / sum(weights))
    return torch.stack(result)
"""

PATCHES = """
def patchify(pixels, size):
    n, c, side, _ = pixels.shape
    g = side // size
    return pixels.reshape(n, c, g, size, g, size).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)


def unpatchify(patches, channels, size):
    n, g = len(patches), round(patches.shape[1] ** 0.5)
    cut = patches.reshape(n, g, g, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(n, channels, g * size, g * size)
"""

REGISTER = """
def with_register(query, key, value, register, content, count):
    keys = torch.cat([key, register[None]])
    scores = query @ keys.T / query.shape[1] ** 0.5
    scores[:, -1] += math.log(count)
    weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights @ torch.cat([value, content[None]])
"""

BLOCKS = """
def for_blocks(weight, width):
    kept = weight.shape[1] // width - 1
    order = list(range(width))
    for j in range(kept):
        order += [width + c * kept + j for c in range(width)]
    return weight[:, order]
"""

SHARES = """
def shares(features, weight, width):
    kept = features.shape[1] // width - 1
    features = features - features.mean(dim=0)
    y = features @ weight.T
    state = torch.arange(features.shape[1])
    state = torch.where(state < width, 0, 1 + (state - width) % kept)
    result = []
    for j in range(kept + 1):
        part = features[:, state == j] @ weight[:, state == j].T
        result.append((part * y).sum() / (y * y).sum())
    return torch.stack(result)
"""

ATTEND = """
def attend(query, key, value, sees):
    some = sees.any(dim=1, keepdim=True)
    scores = query @ key.T * query.shape[1] ** -0.5
    scores = scores.masked_fill(~(sees | ~some), -torch.inf)
    weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
    return weights / weights.sum(dim=1, keepdim=True) @ value * some
"""

DRAFT = """
def draft_and_keep(p, q):
    kept = torch.where(q > 0, p / torch.where(q > 0, q, 1.0), 1.0).clamp(max=1.0)
    missing = (p - q).clamp(min=0.0)
    if missing.sum() == 0:
        return kept, p
    return kept, missing / missing.sum()
"""

LABELS = """
def labels_of(tokens, tokenizer):
    header = tokenizer.encode_header("assistant")
    end = tokenizer.special["<|eot_id|>"]
    labels, i = [-100] * len(tokens), 0
    while i < len(tokens):
        if tokens[i : i + len(header)] == header:
            i += len(header)
            while True:
                labels[i - 1] = tokens[i]
                if tokens[i] == end:
                    break
                i += 1
        i += 1
    return labels
"""

PAIR = """
def one_pair(first, second):
    a = torch.cat([first.A, second.A], dim=0)
    b = torch.cat([first.B * first.scale, second.B * second.scale], dim=1)
    return a, b
"""

PLACE = """
def place(i, count, seed):
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = i >> half, i % 2**half
        for turn in range(6):
            mixed = (right + 1) * 6364136223846793005 + (seed * 97 + turn + 1) * 1442695040888963407
            mixed = (mixed ^ (mixed >> 29)) * 3202034522624059733
            left, right = right, left ^ ((mixed >> 24) % 2**half)
        i = (left << half) + right
        if i < count:
            return i
"""

LONGEST = """
def longest(cost_of, room):
    short, long = cost_of(200), cost_of(500)
    return 200 + (room - short) * 300 // (long - short)
"""

TIMES = """
def times(right, other, asked):
    low, high = sorted([right, other])
    factor = 1
    while interval(low * factor, asked * factor)[1] >= interval(high * factor, asked * factor)[0]:
        factor += 1
    return factor
"""

MERGE = """
def merge_few(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    found = [ranks.get(parts[i] + parts[i + 1]) for i in range(len(parts) - 1)]
    while True:
        best = None
        for i, rank in enumerate(found):
            if rank is not None and (best is None or rank < found[best]):
                best = i
        if best is None:
            break
        parts = parts[:best] + [parts[best] + parts[best + 1]] + parts[best + 2 :]
        found.pop(best)
        if best > 0:
            found[best - 1] = ranks.get(parts[best - 1] + parts[best])
        if best < len(found):
            found[best] = ranks.get(parts[best] + parts[best + 1])
    return [ranks[part] for part in parts]
"""

# label: (chapter, right, wrong); a wrong answer is a change of the right one, or code.
ANSWERS = {
    "merge-few-look-ups": (
        "tokenizer",
        MERGE,
        [
            ("rank < found[best]", "i < best"),  # the leftmost known pair
            ("rank < found[best]", "rank <= found[best]"),  # the last of equals
            ("if best > 0:", "if best > 1:"),  # a neighbour forgotten
            ("[ranks[part] for part in parts]", "parts"),
            (
                "        if best > 0:",
                "        found = [ranks.get(a + b) for a, b in zip(parts, parts[1:])]\n"
                "        if best > 0:",
            ),  # asks for all pairs again
        ],
    ),
    "peak-at-a-distance": (
        "rope",
        PEAK,
        [
            (
                "a * cos + b * sin, b * cos - a * sin",
                "a * cos - b * sin, b * cos + a * sin",
            ),
            ("a, b = key[:half], key[half:]", "a, b = key[::2], key[1::2]"),  # Meta's
            ("return torch.cat", "return 2 * torch.cat"),
            ("    return torch.cat", "    return key\n    return torch.cat"),
            ("distance * frequencies), torch", "frequencies), torch"),
        ],
    ),
    "one-head": (
        "attention",
        HEAD,
        [
            (".masked_fill(~sees, -torch.inf)", ""),  # no mask
            (" * k.shape[-1] ** -0.5", ""),  # no scale
            ("k.shape[-1] ** -0.5", "x.shape[-1] ** -0.5"),  # by the width
            (" @ v @ w_o.T", " @ v"),  # no output projection
            ("~sees", "sees"),
            ("dim=-1", "dim=1"),  # softmax over the queries
            (".tril()", ".tril(-1)"),  # not itself
        ],
    ),
    "blockwise": (
        "attention",
        BLOCKWISE,
        [
            ("total * shrink + weights.sum", "total + weights.sum"),
            ("mixed = mixed * shrink", "mixed = mixed"),
            ("new = torch.maximum(most,", "new = torch.maximum(0 * total,"),
            ("return mixed / total", "return mixed"),
            ("range(0, len(key), block)", "range(0, len(key) - block + 1, block)"),
            ("for start in", "block = len(key)\n    for start in"),  # all at once
        ],
    ),
    "count-parameters": (
        "decoder",
        COUNT,
        [
            (" * layer + width", " * layer"),  # no final norm
            ("2 * groups * size * width", "2 * heads * size * width"),
            ("2 * heads * size * width +", "2 * width * width +"),  # H · E for D
            ("0 if config.tie_word_embeddings else config.vocab_size", "rows"),
            ("3 * config.intermediate_size", "2 * config.intermediate_size"),
        ],
    ),
    "antialiased-row": (
        "tiles",
        SHRINK,
        [
            ("abs(j + 0.5 - (i + 0.5) * factor)", "abs(j - i * factor)"),  # corners
            ("/ factor) for j", ") for j"),  # no antialiasing
            ("/ sum(weights)", "/ factor"),  # the ends too dark
            ("max(0, 1 - abs", "max(0, 2 - abs"),
            ("max(0, 1 -", "float(0.5 >"),  # a box
        ],
    ),
    "patchify-and-back": (
        "local_vision",
        PATCHES,
        [
            (".permute(0, 2, 4, 1, 3, 5)", ""),  # rows of pixels, not patches
            ("(0, 2, 4, 1, 3, 5)", "(0, 4, 2, 1, 3, 5)"),  # columns first
            ("(0, 2, 4, 1, 3, 5)", "(0, 2, 4, 3, 5, 1)"),  # channels last
            ("(0, 3, 1, 4, 2, 5)", "(0, 3, 1, 2, 4, 5)"),  # the way back
            ("reshape(n, g * g, -1)", "reshape(n, g, -1)"),
        ],
    ),
    "one-register": (
        "local_vision",
        REGISTER,
        [
            ("scores[:, -1] += math.log(count)", "scores[:, -1] *= count"),
            ("math.log(count)", "count"),
            ("    scores[:, -1] += math.log(count)\n", ""),  # one copy
            (" / query.shape[1] ** 0.5", ""),
            ("(scores - scores.amax(dim=1, keepdim=True)).exp()", "scores.exp()"),
            (
                "torch.cat([key, register[None]])",
                "torch.cat([key, register.expand(count, -1)])",
            ),  # makes the copies
        ],
    ),
    "projector-for-blocks": (
        "global_vision",
        BLOCKS,
        [
            ("width + c * kept + j", "width + j * width + c"),  # as it was
            (
                "    return weight[:, order]",
                "    back = [order.index(i) for i in range(len(order))]\n"
                "    return weight[:, back]",
            ),  # the inverse
            ("weight[:, order]", "weight[:, order[width:] + order[:width]]"),
            ("- 1\n", "\n"),  # counts the final state too
        ],
    ),
    "share-of-each-state": (
        "global_vision",
        SHARES,
        [
            ("    features = features - features.mean(dim=0)\n", ""),
            ("1 + (state - width) % kept", "1 + (state - width) // width"),  # blocks
            ("(part * y).sum()", "(part * part).sum()"),  # their sum is not 1
            ("features.mean(dim=0)", "features.mean()"),
        ],
    ),
    "nothing-to-see": (
        "cross_attention",
        ATTEND,
        [
            ("~(sees | ~some)", "~sees"),  # NaN
            (" * some", ""),  # the mean of everything
            ("~(sees | ~some), -torch.inf", "~sees, -1e30", " * some", ""),
            (
                "~(sees | ~some)",
                "~sees",
                "    return weights / weights.sum(dim=1, keepdim=True) @ value * some",
                "    got = weights / weights.sum(dim=1, keepdim=True) @ value\n"
                "    return torch.where(some, got, 0.0)",
            ),  # hides the NaN that it made
            ("(scores - scores.amax(dim=1, keepdim=True)).exp()", "scores.exp()"),
            (" * query.shape[1] ** -0.5", ""),
        ],
    ),
    "draft-and-keep": (
        "inference",
        DRAFT,
        [
            (".clamp(max=1.0)", ""),
            ("return kept, missing / missing.sum()", "return kept, p"),
            ("missing / missing.sum()", "missing"),
            (
                "torch.where(q > 0, p / torch.where(q > 0, q, 1.0), 1.0)",
                "p",
            ),
            (
                "torch.where(q > 0, p / torch.where(q > 0, q, 1.0), 1.0)",
                "(p / q)",
            ),  # nan where both are 0
            ("kept = ", "kept = 0.5 * "),  # right, and keeps fewer
            ("if missing.sum() == 0:", "if False:"),
        ],
    ),
    "which-labels": (
        "training",
        LABELS,
        [
            ("labels[i - 1] = tokens[i]", "labels[i] = tokens[i]"),  # not shifted
            (
                "labels[i - 1] = tokens[i]\n                if tokens[i] == end:\n",
                "if tokens[i] == end:\n",
            ),
            (
                "                labels[i - 1] = tokens[i]\n"
                "                if tokens[i] == end:\n                    break\n",
                "                if tokens[i] == end:\n                    break\n"
                "                labels[i - 1] = tokens[i]\n",
            ),  # no end of turn
            ('"assistant"', '"user"'),
            ("labels, i = [-100] * len(tokens), 0", "labels, i = tokens[1:] + [-100], 0"),
        ],
    ),
    "merge-two": (
        "lora",
        PAIR,
        [
            ("first.B * first.scale, second.B * second.scale", "first.B, second.B"),
            ("[first.A, second.A]", "[first.scale * first.A, second.scale * second.A]"),
            (
                "a = torch.cat([first.A, second.A], dim=0)",
                "n = min(len(first.A), len(second.A))\n"
                "    a = first.A[:n] + second.A[:n]\n"
                "    return a, first.B[:, :n] + second.B[:, :n]",
            ),
            (
                "    return a, b",
                "    return torch.eye(a.shape[1]), b @ a",
            ),  # a larger rank than it has to be
        ],
    ),
    "order-without-a-list": (
        "finetuning",
        PLACE,
        [
            ("for turn in range(6)", "for turn in range(0)"),
            ("    while True:", "    return (i + seed) % count\n    while True:"),
            ("seed * 97", "0 * seed"),  # the same for every seed
            ("        if i < count:\n            return i", "        return i % count"),
            ("left ^ (", "0 * left + ("),
        ],
    ),
    "longest-text": (
        "skill",
        LONGEST,
        [
            ("(room - short) * 300", "room * 300"),
            ("cost_of(500)", "cost_of(5000)"),
            ("return 200 + (room - short) * 300 // (long - short)", "return room * 500 // long"),
            ("return 200 +", "return 0.5 + 200 +"),
            ("return 200 +", "return"),
            ("200", "40", "300", "460"),  # too short to be on the line
            ("    short, long", "    [cost_of(n) for n in (20, 40, 60)]\n    short, long"),
        ],
    ),
    "questions-to-tell": (
        "skill",
        TIMES,
        [
            (  # which of the two is better?
                "low, high = sorted([right, other])",
                "low, high = other, right",
                "factor += 1",
                "factor += 1\n        if factor > 50:\n            return 50",
            ),
            ("factor += 1", "factor *= 2"),
            ("    return factor", "    return factor - 1"),
            ("    low, high", "    return 4\n    low, high"),
            (")[1] >=", ")[0] >="),
        ],
    ),
}  # fmt: skip


def wrong_code(label):
    """The wrong answers to an exercise, as code."""
    _, right, changes = ANSWERS[label]
    for change in changes:
        code = right
        for before, after in zip(change[::2], change[1::2]):
            assert before in code, (label, before)
            code = code.replace(before, after)
        yield code
