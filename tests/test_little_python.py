"""The page's small part of Python against Python and NumPy: the same values, kinds and refusals."""

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from little_python import LittlePython


@pytest.fixture(scope="module")
def page():
    page = LittlePython()
    yield page
    page.close()


def told(value):
    """A value as tests/little_python.js tells it."""
    if isinstance(value, (np.ndarray, np.generic)):
        kind = {"b": "bool", "i": "int", "f": "float"}[value.dtype.kind]
        return [kind, list(value.shape), [float(v) for v in np.ravel(value)]]
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return [kind, [told(one) for one in value]]
    if isinstance(value, dict):
        return [kind, [[told(k), told(v)] for k, v in value.items()]]
    if isinstance(value, (bool, str)) or value is None:
        return [kind, value]
    return [kind, str(value) if isinstance(value, int) else value]


def near(a, b):
    """Whether two numbers are one, but for the last digits that rounding decides."""
    a, b = float(a), float(b)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if a == 0 and b == 0:
        return math.copysign(1, a) == math.copysign(1, b)
    return a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)


def equal(got, want):
    if got[0] != want[0]:
        return False
    if len(want) == 3:
        return got[1] == want[1] and all(map(near, got[2], want[2]))
    if want[0] == "float":
        return near(got[1], want[1])
    if want[0] in ("list", "tuple"):
        return len(got[1]) == len(want[1]) and all(map(equal, got[1], want[1]))
    if want[0] == "dict":
        pairs = [[x for pair in told[1] for x in pair] for told in (got, want)]
        return len(pairs[0]) == len(pairs[1]) and all(map(equal, *pairs))
    return got == want


def python(source):
    """The result of real Python, or its exception."""
    names = {"np": np, "math": math}
    try:
        with np.errstate(all="ignore"):
            exec(source, names)
    except Exception as error:
        return error
    return names["result"]


def differences(page, sources, several=False):
    """What the page says otherwise: (source, said by the page, said by Python).

    `several`: of several errors at once, either may be told.
    """
    found = []
    for source, got in zip(sources, page.results(sources), strict=True):
        want = python(source)
        if isinstance(want, Exception):
            kinds = [kind.__name__ for kind in type(want).__mro__]
            if "kind" not in got if several else got.get("kind") not in kinds:
                found.append((source, got, repr(want)))
        elif "result" not in got or not equal(got["result"], told(want)):
            found.append((source, got, told(want)))
    return found


EXPRESSIONS = (Path(__file__).parent / "little_python.txt").read_text("utf-8")


@pytest.mark.filterwarnings("ignore")
def test_expressions_are_what_python_and_numpy_say(page):
    """Each line of little_python.txt, also those that Python refuses."""
    sources = [f"result = {line}" for line in EXPRESSIONS.splitlines()]
    assert len(sources) > 300
    assert differences(page, sources) == []


def some_slice(rng):
    parts = [rng.choice(["", "", str(rng.randint(-5, 5))]) for _ in range(3)]
    return f"{parts[0]}:{parts[1]}" + rng.choice(["", f":{parts[2]}"])


def some_index(rng, shape):
    """An index that mostly fits an array of this shape."""
    whole = lambda n: str(rng.randint(-n - (rng.random() < 0.05), n - 1))
    items = []
    for length in shape[: rng.randint(0, len(shape))]:
        kind = rng.random()
        if kind < 0.45:
            items.append(some_slice(rng))
        elif kind < 0.7:
            items.append(whole(length))
        elif kind < 0.85:
            items.append(f"[{', '.join(whole(length) for _ in range(2))}]")
        else:
            mask = [rng.random() < 0.5 for _ in range(length)]
            items.append(f"np.array({mask}, dtype=bool)")
    for extra in ("None", "..."):
        if rng.random() < 0.2:
            items.insert(rng.randint(0, len(items)), extra)
    return ", ".join(items) or ":"


def some_shape(rng):
    return [rng.choice([1, 2, 3, 4]) for _ in range(rng.randint(1, 3))]


def some_array(rng, shape=None):
    """Numbers of one of the three kinds; the text of an expression."""
    shape = some_shape(rng) if shape is None else shape
    size = math.prod(shape)
    kind = rng.choice(["bool", "int", "float", "float"])
    numbers = {
        "bool": lambda: rng.random() < 0.5,
        "int": lambda: rng.randint(-5, 5),
        "float": lambda: rng.choice([0.5 * rng.randint(-9, 9), rng.gauss(0, 1)]),
    }[kind]
    return f"np.array({[numbers() for _ in range(size)]}).reshape({tuple(shape)})"


def indexed(rng):
    shape = some_shape(rng)
    turned = rng.choice(["", ".T", "[::-1]", "[..., ::2]"])
    source = f"np.arange({math.prod(shape)}).reshape({tuple(shape)}){turned}"
    index = some_index(rng, eval(source, {"np": np}).shape)
    return f"result = {source}[{index}]"


def assigned(rng):
    """A slice, what is put into it, and the array whose numbers it may share."""
    shape = some_shape(rng)
    index = some_index(rng, shape)
    value = rng.choice(["7", "2.5", "-x[0]", "np.arange(2)", "x[:1]", "True", "[9]"])
    step = rng.choice(["", "", "+", "*", "-"])
    return (
        f"x = {some_array(rng, shape)}\ny = x[{some_index(rng, shape[:1])}]\n"
        f"x[{index}] {step}= {value}\nresult = (x, y)"
    )


def operated(rng):
    shape = some_shape(rng)
    other = [rng.choice([1, n]) for n in shape][rng.randint(0, len(shape) - 1) :]
    sides = [some_array(rng, shape), rng.choice([some_array(rng, other), "2", "-1.5"])]
    rng.shuffle(sides)
    operators = "+ - * / // % ** < <= > >= == != & | ^".split()
    return f"result = {sides[0]} {rng.choice(operators)} {sides[1]}"


def reduced(rng):
    names = "sum mean max min argmax argmin any all prod cumsum".split()
    name, shape = rng.choice(names), some_shape(rng)
    given = [rng.choice(["", f"axis={rng.randint(-len(shape), len(shape))}"])]
    if rng.random() < 0.5 and name != "cumsum":
        given.append("keepdims=True")
    if len(shape) > 1 and name in ("sum", "mean", "max", "any") and rng.random() < 0.2:
        given[0] = "axis=(0, -1)"
    return f"result = {some_array(rng, shape)}.{name}({', '.join(filter(None, given))})"


def multiplied(rng):
    inner, shapes = rng.randint(1, 4), [some_shape(rng), some_shape(rng)]
    shapes[0][-1] = inner
    shapes[1][-min(2, len(shapes[1]))] = inner + (rng.random() < 0.1)
    return f"result = {' @ '.join(some_array(rng, shape) for shape in shapes)}"


def calculated(rng, depth=0):
    """A Python expression of numbers, in which much may go wrong."""
    if depth > 3 or rng.random() < 0.2:
        numbers = ["0", "1", "2", "-3", "7", "10**12", "0.5", "2.0", "1e-3", "True"]
        return rng.choice(numbers)
    left, right = calculated(rng, depth + 1), calculated(rng, depth + 1)
    operators = "+ - * / // % < <= == != and or".split()
    return rng.choice(
        [
            f"({left} {rng.choice(operators)} {right})",
            f"({left} {rng.choice(operators)} {right})",
            f"({left} if {right} else 3)",
            f"(not {left})",
            f"abs({left})",
            f"round({left})",
            f"({left} < {right} <= 2)",
            f"max({left}, {right})",
            f"[{left}, {right}]",
            f"[{left}, {right}][{rng.choice(['0', '-1', '1:', '::-1', '2'])}]",
            f"sum([{left}, {right}])",
            f"(-{left}) ** 2",
        ]
    )


GENERATORS = [indexed, assigned, operated, reduced, multiplied]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("generate", [*GENERATORS, calculated])
def test_random_lines_are_what_python_and_numpy_say(page, generate):
    rng = random.Random(0)
    sources = [generate(rng) for _ in range(400)]
    if generate is calculated:
        sources = [f"result = {source}" for source in sources]
    assert differences(page, sources, several=generate is assigned) == []
    refused = sum("kind" in got for got in page.results(sources))
    assert refused < 200  # most of them mean something


PROGRAMS = (Path(__file__).parent / "little_python_programs.txt").read_text("utf-8")


def test_programs_give_what_python_gives(page):
    programs = PROGRAMS.split("----\n")
    assert len(programs) > 20
    assert differences(page, programs) == []


def refusal(page, source):
    (got,) = page.results([source])
    return got["sentence"]


def test_an_error_is_one_sentence_with_its_line(page):
    source = "def f(x):\n    y = x\n    return y + z\n\n\nf(1)"
    assert refusal(page, source) == "line 3: NameError: name 'z' is not defined"


@pytest.mark.parametrize(
    "source, what",
    [
        ("class A:\n    pass", "class"),
        ("def f():\n    yield 1", "yield"),
        ("with x as y:\n    pass", "with"),
        ("try:\n    pass\nexcept:\n    pass", "try"),
        ("from math import sqrt", "from"),
        ("import os", "the module os"),
        ("x = f'{1}'", "strings with f before them"),
        ("x = 1j", "complex numbers"),
        ("x = (-1) ** 0.5", "complex numbers"),
        ("x = {1, 2}", "sets"),
        ("x = np.einsum('ij', 1)", "numpy.einsum"),
        ("x = np.ones(2).softmax(0)", "softmax, which is for you to write here"),
        ("x = np.ones((2, 2)).max(1)", ".max with a number alone"),
        ("x = np.ones(2).repeat(2)", "x.repeat"),
        ("x = np.arange(3).size", "x.size"),
        ("x = np.array([2**53]) + 1", "whole numbers from 2**53 on in arrays"),
        ("x = 'a'.upper()", ".upper of a str"),
        ("def f(*x):\n    pass", "* in a signature"),
    ],
)
def test_what_is_not_there_is_said(page, source, what):
    said = refusal(page, source)
    assert f"the page knows only a small part of Python, without {what}" in said
    assert said.endswith("; the notebook takes everything") and said.startswith("line ")


@pytest.mark.parametrize(
    "source, kind",
    [
        ("while True:\n    pass", "TimeoutError"),
        ("x = [0]\nfor i in x:\n    x.append(i)", "(Timeout|Memory)Error"),
        ("x = list(range(10**12))", "(Timeout|Memory)Error"),
        ("x = sum(range(10**12))", "TimeoutError"),
        ("x = [1] * 10**9", "MemoryError"),
        ("x = 'a' * 10**9", "MemoryError"),
        ("x = [0]\nwhile True:\n    x = x + x", "(Timeout|Memory)Error"),
        ("x = [0]\nwhile True:\n    x += x", "(Timeout|Memory)Error"),
        ("x = 10 ** 10 ** 10", "MemoryError"),
        ("x = 1 << 10**9", "MemoryError"),
        ("x = 3\nwhile True:\n    x = x * x", "MemoryError"),
        ("x = np.zeros((10**6, 2))", "MemoryError"),
        ("x = np.ones(10**4)\ny = np.outer(x, x)", "MemoryError"),
        ("x = np.ones((10**3, 10**3))\nwhile True:\n    x = x @ x", "TimeoutError"),
        ("x = np.broadcast_to(np.ones(1), (10**9,)) + 1", "MemoryError"),
        ("x = np.broadcast_to(np.ones(1), (10**9,)).sum()", "MemoryError"),
        ("x = np.ones(10**6)\nwhile True:\n    x.sum()", "TimeoutError"),
        ("x = np.ones(10**6)\nwhile True:\n    x[::2] = x[1::2]", "TimeoutError"),
        ("x = 'a' * 10**6\nwhile True:\n    x[0]", "TimeoutError"),
        ("x = [1] * 10**6\nwhile True:\n    x[1:2] = [0]", "TimeoutError"),
        ("x = [1] * 10**6\nwhile True:\n    del x[0]", "TimeoutError"),
        ("x = [1] * 10**6\nwhile True:\n    str(x)", "TimeoutError"),
        ("def f(x):\n    return f(x)\nf(1)", "RecursionError"),
        ("x = " + "(" * 20000 + "1" + ")" * 20000, "RecursionError"),
        ("x = []\nx.append(x)\ny = x == [x]\nz = str(x)", "RecursionError"),
    ],
)
def test_nothing_runs_for_ever_or_grows_without_end(page, source, kind):
    assert re.search(kind, refusal(page, source))


@pytest.mark.parametrize(
    "source",
    [
        "constructor",
        "mllama",
        "globalThis",
        "__proto__",
        "np.constructor",
        "np.__proto__",
        "[].constructor",
        "(lambda: 1).constructor",
        "{}.constructor",
        "{}.clear",
        "'a'.constructor",
        "np.ones(2).constructor",
        "np.ones(2).data",
        "(1).toString",
        "{}['constructor']",
        "np.zeros(2, dtype=len)",
        "np.get('zeros')",
        "None.constructor",
    ],
)
def test_nothing_of_the_page_can_be_reached(page, source):
    (got,) = page.results([f"result = {source}"])
    assert "sentence" in got


TORCH = """
torch.zeros(2, 3) + torch.ones((2, 1))
torch.arange(6).view(2, 3).max(dim=1).values
torch.arange(6).view(2, 3).max(dim=1)
torch.max(torch.arange(6).view(2, 3), 0)
torch.max(torch.arange(3), torch.tensor([2, 0, 1]))
torch.tensor([[1.0, 2], [3, 4]]).min(dim=1, keepdim=True).indices
torch.arange(6.0).view(2, 3).mean(dim=1, keepdim=True)
torch.arange(6.0).view(2, 3).sum(1)
torch.arange(6).view(2, 3).amax(dim=0)
torch.cat([torch.zeros(1, 2), torch.ones(2, 2)], dim=0)
torch.stack([torch.arange(2), torch.arange(2)], dim=1)
torch.arange(4).repeat_interleave(2)
torch.repeat_interleave(torch.arange(4).view(2, 2), 3, dim=1)
torch.arange(24).view(2, 3, 4).transpose(1, 2)
torch.arange(24).view(2, 3, 4).permute(2, 0, 1)
torch.arange(24).view(2, 3, 4).flatten(1, 2)
torch.arange(24).view(2, 3, 4).flatten(0, 1)
torch.arange(24).view(2, 12).unflatten(1, (3, -1))
torch.arange(3).unsqueeze(1) * torch.arange(2)[None]
torch.ones(1, 3, 1).squeeze(0)
torch.arange(3).expand(2, -1)
torch.ones(3, 3, dtype=torch.bool).tril()
torch.ones(2, 3).triu(diagonal=1)
torch.arange(4.0).masked_fill(torch.arange(4) > 2, -torch.inf)
torch.arange(10).split(4)
torch.arange(10).chunk(3)
torch.arange(8).view(4, 2).split(3, dim=0)
torch.arange(5).roll(2)
torch.arange(6).view(3, 2).roll(1, dims=0)
torch.eye(3)[[0, 2]]
torch.arange(4).float().clamp(min=1, max=2)
torch.full((2, 2), 0.5)
torch.tensor([1.0, 4]).sqrt()[1].item()
torch.arange(3).tolist()
torch.arange(3).numel() + torch.ones(2, 2).dim()
torch.arange(3).square().cumsum(0)
torch.arange(3).double().exp().log()
torch.tensor([1.5, -1.5]).long()
torch.where(torch.arange(3) > 1, torch.tensor(5.0), torch.tensor(0.0))
torch.arange(4).view(2, 2).T @ torch.arange(4).view(2, 2)
torch.arange(4).view(2, 2).argmax(dim=1)
torch.tensor([True, False]).any(), torch.tensor([True, False]).all()
torch.outer(torch.arange(2), torch.arange(3))
torch.linspace(0, 1, 5)
"""


def test_torchs_names_do_what_torch_does(page):
    lines = TORCH.strip().splitlines()
    for line, got in zip(lines, page.results([f"result = {x}" for x in lines])):
        torch.set_default_dtype(torch.float64)
        try:
            want = eval(line, {"torch": torch})
        finally:
            torch.set_default_dtype(torch.float32)
        as_arrays = lambda x: x.numpy() if torch.is_tensor(x) else x
        if isinstance(want, tuple):
            want = tuple(map(as_arrays, want))
        assert "result" in got and equal(got["result"], told(as_arrays(want))), line
