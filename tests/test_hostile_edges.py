"""What a stranger may hand over as a picture, or type at the command line.

For each kind of thing that once went wrong, a test that draws more of its kind.
"""

import errno
import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from mllama_lite import cli, load
from mllama_lite.attention_maps import LONGEST, Looks, draw_looks
from mllama_lite.cli import chat as chat_module
from mllama_lite.cli import terminal
from mllama_lite.cli.ask import PICTURES, question_and_images
from mllama_lite.cli.options import Number, Text, parse
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.tiles import (
    FORMATS,
    LONGEST_SIDE,
    MOST_PIXELS,
    MOST_SCANS,
    choose_canvas,
    image_to_tiles,
    open_image,
)

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size=(64, 48), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@contextmanager
def at_most(seconds):
    """What waits for ever fails instead."""

    def late(number, frame):
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- formats and places

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
showpage
%%EOF
"""
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"


@pytest.mark.parametrize("name", ["photo.png", "photo.eps", "photo"])
def test_no_picture_starts_an_outside_program(tmp_path, monkeypatch, name):
    started = []

    def start(*arguments, **_):
        started.append(arguments)
        raise OSError("an outside program")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    with Image.open(io.BytesIO(EPS)) as image:  # Pillow would
        assert image.format == "EPS"
        with pytest.raises(OSError):
            image.load()
        assert started.pop()
    path = tmp_path / name
    path.write_bytes(EPS)
    for source in (path, str(path), EPS, io.BytesIO(EPS), path.open("rb")):
        with pytest.raises(InputError, match="of no format that is read here"):
            open_image(source)
    assert not started


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Pillow's, of a format
def test_only_the_formats_that_are_meant_are_read(tmp_path):
    """Pillow writes and reads many more: each of them is refused, under any name."""
    Image.init()
    refused = []
    for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys() - set(FORMATS)):
        try:
            data = saved(Image.new("RGB", (32, 32), "red"), kind)
            with Image.open(io.BytesIO(data)) as image:
                own = image.format in FORMATS or image.format == "MPO"
        except Exception:  # it cannot hold such a picture
            continue
        if own:  # such as DIB inside BMP, and JPEGs of several pictures
            continue
        (tmp_path / "photo.png").write_bytes(data)
        for source in (data, tmp_path / "photo.png"):
            with pytest.raises(InputError, match="of no format"):
                open_image(source)
        refused.append(kind)
    assert len(refused) > 8
    for data in (b"%PDF-1.7\n", SVG, b"", b"\0" * 4096):
        with pytest.raises(InputError, match="of no format"):
            open_image(data)


def test_the_formats_that_are_meant_are_read():
    Image.init()
    for kind in [kind for kind in FORMATS if kind in Image.SAVE]:
        shown = open_image(saved(noise(), kind))
        assert shown.size == (64, 48) and shown.mode == "RGB"
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= Image.SAVE.keys()


def test_a_lazily_opened_image_is_the_callers_choice():
    with Image.open(io.BytesIO(saved(noise(), "PPM"))) as image:
        assert open_image(image).tobytes() == noise().tobytes()


def places(folder):
    """Paths that are no picture's, by what is wrong with them."""
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "file.png").write_bytes(b"x")
    return {
        folder / "pipe.png": "no regular file",
        "/dev/zero": "no regular file",
        "/dev/null": "no regular file",
        folder: "no regular file",
        folder / "broken.png": "does not exist",
        folder / "loop.png": "cannot be read",
        folder / "file.png" / "a.png": "cannot be read",
        folder / ("n" * 300 + ".png"): "cannot be read",
        "/".join(["d" * 200] * 30): "cannot be read",
        "nul\0.png": "nul",
        "lone\udc80 surrogate \ud800.png": "lone",
        "": "does not exist",
    }


def test_places_that_hold_no_picture(tmp_path):
    for path, says in places(tmp_path).items():
        with at_most(20), pytest.raises(InputError, match=says) as caught:
            open_image(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1500


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_the_system_refuses_is_said(tmp_path, monkeypatch, number):
    (tmp_path / "a.png").write_bytes(saved(noise(), "PNG"))

    def refuse(*_):
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=os.strerror(number)):
        open_image(tmp_path / "a.png")


def test_images_that_are_none():
    closed = noise()
    closed.close()
    lazy = Image.open(io.BytesIO(saved(noise(), "PNG")))
    lazy.close()
    with open(os.devnull) as text:
        for source in (
            closed,
            lazy,
            Image.new("RGB", (0, 0)),
            Image.new("L", (0, 9)),
            Image.Image(),
            text,
            io.StringIO("a"),
            None,
            5,
            1.5,
            [],
            {},
            object(),
        ):
            with pytest.raises(InputError):
                open_image(source)


# ---------------------------------------------------------------- bounds


def png(width, height, chunks=(), depth=8, kind=2, data=None):
    """A PNG whose header says what it likes."""

    def chunk(name, body):
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000) if data is None else data
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bmp(width, height):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + b"\0" * 100


def gif(width, height):
    screen = b"GIF89a" + struct.pack("<HHBBB", width % 2**16, height % 2**16, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width % 2**16, height % 2**16, 0)
    return screen + frame + b"\x02\x02\x4c\x01\x00;"


def tiff(width, height, tags=()):
    """One strip of nothing; tags may be added or changed."""
    entries = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1}
    entries |= {278: height, 279: 20} | dict(tags)
    body = zlib.compress(b"\0" * 1000)[:20].ljust(20, b"\0")
    directory = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, 4, 1, value % 2**32)
    return b"II*\0" + struct.pack("<I", 28) + body + directory + b"\0" * 4


def webp(width, height):
    """The header of an animation: its canvas, and nothing on it."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0"
    body += struct.pack("<I", (width - 1) % 2**24)[:3]
    body += struct.pack("<I", (height - 1) % 2**24)[:3]
    return b"RIFF" + struct.pack("<I", len(body)) + body


side = st.one_of(
    st.integers(0, 2**31 - 1),
    st.sampled_from([1, 2**16]),
    st.sampled_from([0, 1, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 9400, 8192, 8193]),
)


@few
@given(st.sampled_from([png, bmp, gif, tiff, webp]), side, side)
def test_no_header_makes_more_than_a_sentence(make, width, height):
    """Sizes of every kind: too large, empty, or a file that holds less than it says."""
    if make is not png and 2**20 < width * height <= MOST_PIXELS:
        width = 1  # what is allowed takes time
    with at_most(60):
        try:
            image = open_image(make(width, height))
        except InputError as error:
            assert str(error).isprintable()
        else:
            assert 0 < image.width * image.height <= MOST_PIXELS
            assert max(image.size) <= LONGEST_SIDE


@few
@given(
    st.integers(0, 10**6),
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"]),
)
def test_mutated_files_make_no_more_than_a_sentence(seed, kind):
    if kind not in Image.SAVE:
        return
    rng = np.random.default_rng(seed)
    data = bytearray(saved(noise((24, 16)), kind))
    for place in rng.integers(min(len(data), 400), size=1 + seed % 4):
        data[place] = rng.integers(256)
    with at_most(60):
        try:
            assert open_image(bytes(data)).mode == "RGB"
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 1500


MEASURE = """
import io, resource, sys, zlib
sys.path.insert(0, {tests!r})
from PIL import Image
from test_hostile_edges import *

def size():
    pages = int(open("/proc/self/statm").read().split()[0])
    return pages * resource.getpagesize()

files = {{}}
Image.MAX_IMAGE_PIXELS = None
rows = zlib.compressobj(1)
one_row = b"\\0" * (8192 * 4 + 1)
body = b"".join(rows.compress(one_row) for _ in range(8192)) + rows.flush()
exif = b"Exif\\0\\0" + b"II*\\0" + struct.pack("<IHHHIII", 8, 1, 0x112, 3, 1, 6, 0)
files["largest"] = png(8192, 8192, [(b"eXIf", exif[6:])], kind=6, data=body)
files["square"] = png(9400, 9400)
files["line"] = png(1, 80_000_000)
files["tile"] = tiff(1, 1, {{322: 60000, 323: 60000, 324: 8, 325: 20}}.items())
files["strip"] = tiff(1, 1, [(278, 2**31 - 1)])
files["canvas"] = webp(16384, 16384)
text = b"a\\0\\0" + zlib.compress(b"\\0" * 2**28)
files["text"] = png(9, 9, [(b"zTXt", text)])
files["texts"] = png(9, 9, [(b"zTXt", b"a\\0\\0" + zlib.compress(b"\\0" * 2**20))] * 999)
Image.MAX_IMAGE_PIXELS = 2**28 // 3
limit = size() + {room}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, data in files.items():
    try:
        print(name, *open_image(data).size, flush=True)
    except InputError as error:
        print(name, error, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded():
    """The largest picture that is allowed, turned, fits; what is larger is refused first."""
    code = MEASURE.format(tests=str(Path(__file__).parent), room=5 * 2**28)  # 1.25 GiB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["largest"] == "8192 8192"
    assert f"at most {MOST_PIXELS} pixels" in said["square"]
    assert f"{LONGEST_SIDE} on a side" in said["line"]
    for name in ("tile", "strip", "canvas", "text", "texts"):
        assert said[name].startswith("The image ") or said[name] == "1 1", said[name]


def test_of_an_animation_no_later_frame_is_read():
    """They may be many, damaged, or missing: a viewer shows the first at once."""
    frames = [Image.new("RGB", (9, 9), (i % 256, 255 - i % 256, 0)) for i in range(300)]
    for kind in ("GIF", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        want = open_image(data).tobytes()
        damaged = bytearray(data)
        damaged[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
        assert open_image(bytes(damaged)).tobytes() == want


def scans(count):
    """A progressive JPEG whose last scan comes so often."""
    data = saved(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_many_scans_is_refused():
    assert open_image(scans(20)).size == (64, 48)
    with pytest.raises(InputError, match=f"more than {MOST_SCANS} scans"):
        open_image(scans(MOST_SCANS + 1))


def test_a_file_is_read_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("mllama_lite.tiles.MOST_BYTES", 2**20)
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.write(saved(noise(), "PNG"))
        file.truncate(2**40)
    for source in (path, path.open("rb"), bytes(2**20 + 1)):
        with pytest.raises(InputError, match="more than 1 MiB"):
            open_image(source)


def test_pillows_own_warnings_do_not_come_before_ours():
    odd = Image.Exif()
    odd[0x0112] = 6
    exif = odd.tobytes()[:-9] + b"\xff" * 9
    files = [png(9400, 9400), png(20000, 20000), saved(noise(), "PNG", exif=exif)]
    files += [saved(noise(), "WEBP")[:-30], tiff(9, 9, [(258, 3)]), EPS]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in files:
            try:
                open_image(data)
            except InputError:
                pass
    assert caught == []


# ---------------------------------------------------------------- where tiles are made


@pytest.mark.parametrize("way", ["device", "context", "dtype", "autocast"])
def test_tiles_are_made_on_the_cpu_in_fp32(way):
    want = image_to_tiles(noise(), 28)
    try:
        if way == "device":
            torch.set_default_device("meta")
            got = image_to_tiles(noise(), 28)
        elif way == "context":
            with torch.device("meta"):
                got = image_to_tiles(noise(), 28)
        elif way == "dtype":
            torch.set_default_dtype(torch.bfloat16)
            got = image_to_tiles(noise(), 28)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                got = image_to_tiles(noise(), 28)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert got.pixel_values.device.type == "cpu"
    assert got.pixel_values.dtype == torch.float32
    assert torch.equal(got.pixel_values, want.pixel_values)


# ---------------------------------------------------------------- drawings


def looks_of(size, tokens=2, images=1, layers=(1, 3)):
    weights = torch.full((tokens, 1, 4, 17), 0.1)
    pictures = [Image.new("RGB", size, "grey")] * images
    each = [{layer: weights for layer in layers} for _ in pictures]
    return Looks("a" * tokens, ["a"] * tokens, pictures, each)


@few
@given(
    st.tuples(st.integers(1, 30_000), st.integers(1, 30_000)).filter(
        lambda size: min(size) < 60
    ),
    st.integers(0, 900),
    st.integers(1, 250),
)
def test_drawings_are_bounded(size, tokens, images):
    """By panels, by the length of an answer, and by the number of images."""
    config = VisionConfig(image_size=56, patch_size=14)
    if tokens * images > 900:
        tokens = 900 // images
    looks = looks_of(size, tokens, images)
    looks.weights = [
        {n: w[:, :, : choose_tiles(size)] for n, w in one.items()}
        for one in looks.weights
    ]
    drawn = draw_looks(looks, config)
    assert max(drawn.size) <= LONGEST
    column = (drawn.width - 62) / max(1, min(tokens, 354))
    assert column <= 4 * 110 + 6


def choose_tiles(size):
    rows, columns = choose_canvas(size[1], size[0], 56)
    return rows * columns


def test_more_images_than_can_be_drawn_are_refused():
    with pytest.raises(InputError, match="There are 900 images with 2 layers"):
        draw_looks(looks_of((9, 9), 1, 900), VisionConfig(image_size=56))


# ---------------------------------------------------------------- words and options


def options_of(command):
    """The actions of a command's options, by option."""
    found = {}

    class Collector:
        def add_argument(self, *names, **given):
            found[names[0]] = given

    cli.COMMANDS[command].add_options(Collector())
    return found


def refused(capsys, *words):
    """The one sentence that a command ends with."""
    capsys.readouterr()
    assert cli.main(list(map(str, words))) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("mllama-lite: ")
    assert shown.err.count("\n") == 1 and len(shown.err) < 1500
    assert shown.err[:-1].isprintable()
    return shown.err


WORDS = ["What is it?", "a.png", "b.JPG", "dir/c d.webp.gif"]
PAIRS = [
    ["--top-k", "5"],
    ["--temperature=.5"],
    ["--json"],
    ["--model", "m"],
    ["--seed", "-3"],
]


@few
@given(st.permutations([[word] for word in WORDS] + PAIRS))
def test_words_and_options_come_in_any_order(order):
    words = [word for part in order for word in part]
    options = parse("ask", cli.COMMANDS["ask"], words)
    given = (options.top_k, options.temperature, options.json, options.model)
    assert given == (5, 0.5, True, "m") and options.seed == -3
    images = [part[0] for part in order if part[0] in WORDS[1:3]]
    options.words.remove(WORDS[3])
    assert question_and_images(options.words) == (WORDS[0], images)


def test_what_names_a_file_is_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("with space.png", "no ending", "What?"):
        Path(name).write_bytes(b"")
    os.mkdir("folder")
    assert question_and_images(["no ending", "Why?", "with space.png"]) == (
        "Why?",
        ["no ending", "with space.png"],
    )
    assert question_and_images(["folder"]) == ("folder", [])
    for words in (["What?"], ["folder", "Why?"]):
        with pytest.raises(InputError):
            question_and_images(words)


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "ask has no question: expected one in quotes"),
        (["digits.png"], "ask has no question, only 'digits.png'"),
        (["a.png", "b.png"], "only 'a.png', 'b.png'"),
        (["What", "is", "it?"], "ask has 3 words that name no file: 'What', 'is'"),
        (["my phot.png", "What?"], "name no file: 'my phot.png', 'What?'"),
        (["/", "What?"], "'/' (a folder)"),
        ([""], "The question is ''"),
        (["", "What?"], "A word of ask is ''"),
        (["a.png", " "], "A word of ask is ' '"),
        (["phot.png", "What?"], "phot.png does not exist"),
        (["What?", "phot.png"], "phot.png does not exist"),
        (["-What?"], "There is no option '-What?' of ask"),
        (["hi", "--tempreature", "1"], "did you mean --temperature?"),
        (["hi", "--temp", "1"], "There is no option '--temp'"),
        (["hi", "--top-k"], "--top-k: expected one argument"),
        (["hi", "--json=1"], "--json"),
        (["hi", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["hi", "--seed", str(2**64)], "seed is 18446744073709551616"),
        (["hi", "--temperature", "-inf"], "temperature is -inf"),
        (["hi", "--temperature", "-1e5"], "temperature is -100000.0"),
        (["hi", "--temperature", "1e999"], "temperature is inf"),
        (["hi", "--top-p", "nan"], "top_p is nan"),
    ],
)
def test_words_that_cannot_be_meant(capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "ask", *words)


def test_commands_that_are_none(capsys):
    assert "did you mean ask?" in refused(capsys, "aks")
    for word in ("", "--json", "x" * 9999, "\x1b[2J\nall is well"):
        assert "There is no command" in refused(capsys, word)
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: mllama-lite {ask,chat,")
    for words in (
        ["info", "a", "b"],
        ["download", "a/b", "c"],
        ["train", "x"],
        ["measure", "x"],
        ["finetune", "a", "b"],
        ["download"],
        ["download", ""],
        ["finetune"],
        ["finetune", "", "--out", "a"],
        ["finetune", "a"],
        ["train"],
        ["info", ""],
        ["chat", "hello"],
    ):
        refused(capsys, *words)


def test_help_and_version(capsys):
    for words in ([], *([name] for name in cli.COMMANDS)):
        assert cli.main([*words, "--help"]) == 0
        shown = capsys.readouterr()
        assert shown.out.startswith("usage: mllama-lite") and shown.err == ""
        for option in options_of(words[0]) if words else cli.COMMANDS:
            assert option in shown.out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "mllama-lite"


EVERY = [(name, option) for name in cli.COMMANDS for option in options_of(name)]


def of_kind(kind):
    return [(n, o) for n, o in EVERY if options_of(n)[o].get("action") is kind]


@pytest.mark.parametrize("name, option", of_kind(Text))
def test_an_empty_option_is_refused(capsys, name, option):
    """A variable that is not set gives one: it is not as if the option were left out."""
    for value in ("", " "):
        assert f"{option} is {value!r}" in refused(capsys, name, option, value)
        assert f"{option} is {value!r}" in refused(capsys, name, f"{option}={value}")


@pytest.mark.parametrize("name, option", of_kind(Number))
def test_an_option_that_is_no_number_is_refused(capsys, name, option):
    whole = options_of(name)[option]["kind"] is int
    for value in ("", "x", "1.5.2", "0x10", "1,5", "9" * 5000, "\x1b[2J"):
        if value[:1] != "9" or whole:
            said = refused(capsys, name, option, value)
            assert f"{option} is " in said and "number" in said
    if whole:
        for value in ("1.5", "-inf", "nan", "1e3"):
            assert "a whole number" in refused(capsys, name, option, value)


@few
@given(st.sampled_from(list(cli.COMMANDS)), st.lists(st.text(max_size=12), max_size=4))
def test_words_of_any_kind_parse_or_are_refused(name, words):
    try:
        options = parse(name, cli.COMMANDS[name], words)
        assert options is None or set(options.words) <= set(words)
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 1500


# ---------------------------------------------------------------- what is written


PHOTO = Path(__file__).parent.parent / "mllama_lite/small/pictures/digits.png"
ASK = ["ask", "How many digits are there?", str(PHOTO), "--max-new-tokens", "2"]


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fails a test in which a model is loaded: what is wrong is said before."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mllama_lite.vlm.load", load)


@pytest.mark.parametrize("ending", PICTURES)
def test_show_writes_what_its_ending_says(tmp_path, capsys, ending):
    name = tmp_path / f"seen{ending.upper()}"
    assert cli.main([*ASK, "--show", str(name)]) == 0
    assert capsys.readouterr().err == "" and list(tmp_path.iterdir()) == [name]
    if ending == ".pdf":
        assert name.read_bytes().startswith(b"%PDF-")
    else:
        with Image.open(name) as image:
            assert image.format == PICTURES[ending] and image.width > 62


def test_show_refuses_every_other_ending(tmp_path, capsys, nothing_is_loaded):
    Image.init()
    others = set(Image.registered_extensions()) - set(PICTURES) | {
        "",
        ".doc",
        ".\x1b[2J",
    }
    assert {".msp", ".xbm", ".palm", ".blp", ".grib", ".hdf", ".wmf"} <= others
    for ending in sorted(others):
        said = refused(capsys, *ASK, "--show", tmp_path / f"a{ending}")
        assert "rename it" in said
    assert not list(tmp_path.iterdir())


def test_show_refuses_places_it_cannot_write_to(
    tmp_path, capsys, monkeypatch, nothing_is_loaded
):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.png")
    os.mkfifo("pipe.png")
    os.symlink("/dev/full", "full.png")
    Path("file.png").write_bytes(b"mine")
    for name, says in (
        ("folder.png", "is a folder or a device"),
        ("pipe.png", "is a folder or a device"),
        ("full.png", "is a folder or a device"),
        ("no/a.png", "in a folder that does not exist"),
        ("file.png/a.png", "in a folder that does not exist"),
        ("n" * 300 + ".png", "File name too long"),
        ("/proc/a.png", "cannot be written"),
        ("nul\0.png", "cannot be written"),
    ):
        assert says in refused(capsys, *ASK, "--show", name)
    assert "no image to show" in refused(capsys, "ask", "Why?", "--show", "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root all is allowed
    assert "must not be written" in refused(capsys, *ASK, "--show", "file.png")
    assert Path("file.png").read_bytes() == b"mine"
    assert sorted(os.listdir()) == ["file.png", "folder.png", "full.png", "pipe.png"]


def test_show_does_not_write_over_what_is_asked_about(
    tmp_path, capsys, monkeypatch, nothing_is_loaded
):
    monkeypatch.chdir(tmp_path)
    before = PHOTO.read_bytes()
    Path("a.png").write_bytes(before)
    os.symlink("a.png", "link.png")
    os.link("a.png", "hard.png")
    for shown in ("a.png", "./a.png", str(tmp_path / "a.png"), "link.png", "hard.png"):
        for asked in ("a.png", "link.png", "hard.png"):
            words = ("ask", "Why?", PHOTO, asked, "--show", shown)
            assert "is a picture that is asked about" in refused(capsys, *words)
    assert Path("a.png").read_bytes() == before


def test_a_disk_that_fills_leaves_the_earlier_picture(tmp_path, capsys, monkeypatch):
    (tmp_path / "seen.png").write_bytes(b"earlier")

    def half(self, part, kind):
        Path(part).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", half)
    assert cli.main([*ASK, "--show", str(tmp_path / "seen.png")]) == 2
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err and shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["seen.png"]
    assert (tmp_path / "seen.png").read_bytes() == b"earlier"


def test_measure_tries_its_place_first(
    tmp_path, capsys, monkeypatch, nothing_is_loaded
):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    for name in (
        "folder",
        "no/counts.json",
        "/dev/full",
        "/proc/counts.json",
        "n" * 300,
    ):
        said = refused(capsys, "measure", "--questions", 1, "--out", name)
        assert "folder" in said or "cannot be written" in said
    assert os.listdir() == ["folder"]


# ---------------------------------------------------------------- streams


def shell(command, **environment):
    """A command line of a shell; PROGRAM stands for the program."""
    command = command.replace("PROGRAM", f"{sys.executable} -m mllama_lite")
    return subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    "command, code, says",
    [
        (
            "PROGRAM --help > /dev/full",
            2,
            "The output cannot be read or written (No sp",
        ),
        ("PROGRAM ask --help > /dev/full", 2, "(No space left on device)"),
        ("PROGRAM --help >&-", 2, "The standard output is closed"),
        ("PROGRAM ask 2> /dev/full", 2, ""),
        ("PROGRAM ask 2>&-", 2, ""),
        ("PROGRAM dance 2> /dev/full > /dev/full", 2, ""),
        ("PROGRAM 2> /dev/full", 2, ""),
        ("PROGRAM --version 2>&-", 0, ""),
        ("PROGRAM --version <&-", 0, ""),
        ("PROGRAM ask '\udcff\u4e2d' b", 2, "\\udcff"),
        ("PROGRAM --help | true; exit ${PIPESTATUS:-0}", 0, ""),
    ],
)
def test_streams_that_cannot_be_used(command, code, says):
    done = shell(command)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert says in done.stderr and done.stderr.count("\n") == bool(says)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_answer_that_cannot_be_written_is_an_error():
    words = f"ask 'How many digits are there?' {PHOTO} --max-new-tokens 2"
    done = shell(f"PROGRAM {words} > /dev/full")
    assert done.returncode == 2 and "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    done = shell(f"PROGRAM {words} 2> /dev/full")
    assert done.returncode == 0 and done.stdout.strip()


def test_terminals_that_know_ascii_only(tmp_path, monkeypatch):
    folder = tmp_path / "Gemälde 中"
    folder.symlink_to(PHOTO.parent.parent)
    for encoding in ("ascii", "latin-1", "cp437"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
        assert cli.main(["info", str(folder)]) == 0
        assert (
            b"2,792,909 parameters" in raw.getvalue() and b"\\u4e2d" in raw.getvalue()
        )
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}):
        done = shell("PROGRAM ask Gemälde 中", **environment)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@few
@given(st.text())
def test_on_a_terminal_an_answer_moves_no_cursor(text):
    shown = terminal.printable(text)
    left = [c for c in shown if unicodedata.category(c) == "Cc"]
    assert set(left) <= {"\n", "\t"}
    if all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in text):
        assert shown == text


def test_control_characters_reach_a_file_but_no_terminal(monkeypatch):
    for kind, want in (
        (Terminal, "\\x1b[2J\\r\tred\n"),
        (io.StringIO, "\x1b[2J\r\tred\n"),
    ):
        monkeypatch.setattr(sys, "stdout", kind())
        terminal.say("\x1b[2J\r\tred\n")
        assert sys.stdout.getvalue() == want


def test_ctrl_c_is_130_without_a_line(capsys, monkeypatch):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    for place in (
        "mllama_lite.tiles.open_image",
        "mllama_lite.vlm.load",
        "mllama_lite.vlm.VLM.stream",
        "mllama_lite.cli.ask.say",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            assert cli.main(ASK) == 130
        assert capsys.readouterr() == ("", "")
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("module", ["numpy", "torch", "mllama_lite.vlm"])
def test_ctrl_c_while_modules_are_imported(module):
    """Python tells of each module when it has been imported; then comes the interrupt."""
    command = [sys.executable, "-X", "importtime", "-m", "mllama_lite", *ASK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = False
    for line in process.stderr:
        begun = begun or line.rstrip().endswith(b" mllama_lite.cli")
        name = line.decode().split("|")[-1].strip()
        if begun and (name.startswith(f"{module}.") or name == module):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    lines = [line for line in err.decode().splitlines() if "import time:" not in line]
    assert (process.returncode, out, lines) == (130, b"", [])


@pytest.mark.parametrize(
    "error, code",
    [
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "model.safetensors"), 2),
        (OSError("odd"), 2),
        (MemoryError(), 2),
        (InputError("a", "b"), 2),
    ],
)
def test_what_ends_a_command(capsys, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mllama_lite.vlm.load", fail)
    assert cli.main(ASK) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == (code == 2) + (
        isinstance(error, InputError)
    )


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("mllama_lite.vlm.load", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(ASK)


# ---------------------------------------------------------------- conversations


def talk(monkeypatch, capsys, lines, *options):
    """What a conversation through a pipe writes: (exit code, answers, the rest)."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    code = cli.main(["chat", "--max-new-tokens", "8", *options])
    return code, *capsys.readouterr()


FIRST, SECOND = "Read the digits from left to right.", "How many digits are there?"


def test_a_conversation_through_a_pipe(monkeypatch, capsys, tmp_path):
    """Answers are those of a Conversation, whatever way a picture is shown."""
    vlm = load(device="cpu")
    chat = vlm.conversation()
    want = chat.ask(FIRST, images=PHOTO, max_new_tokens=8)
    want += "\n" + chat.ask(SECOND, max_new_tokens=8) + "\n"
    spaced = tmp_path / "my photo's.png"
    spaced.write_bytes(PHOTO.read_bytes())
    escaped = str(spaced).replace(" ", "\\ ").replace("'", "\\'")
    for shown in (
        [f"/image {PHOTO}", FIRST],
        [f"/image {spaced}", FIRST],
        [f'/image "{spaced}"', FIRST],
        [str(PHOTO), FIRST],
        [f"{PHOTO} {FIRST}"],
        [f'"{spaced}" ', FIRST],
        [f'"{spaced}" {FIRST}'],
        [escaped, "", FIRST],
    ):
        assert talk(monkeypatch, capsys, [*shown, SECOND]) == (0, want, "")
    lines = [FIRST, SECOND, "/quit", "never read"]
    assert talk(monkeypatch, capsys, lines, str(PHOTO)) == (0, want, "")


def test_reset_forgets_what_was_said_and_shown(monkeypatch, capsys):
    vlm = load(device="cpu")
    blind = vlm.ask(FIRST, max_new_tokens=8)
    seen = vlm.ask(FIRST, images=PHOTO, max_new_tokens=8)
    lines = [f"{PHOTO} {FIRST}", "/reset", FIRST, str(PHOTO), "/reset", FIRST]
    code, out, err = talk(monkeypatch, capsys, lines)
    assert (code, out) == (0, f"{seen}\n{blind}\n{blind}\n") and seen != blind
    assert err.count("A new conversation.") == 2


def test_refused_lines_end_no_conversation(monkeypatch, capsys, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    vlm = load(device="cpu")
    lines = [
        "/image",
        "/image gone.png",
        "gone.png",
        f"{tmp_path}/text.png",
        "/dance",
        "/rest",
    ]
    lines += ["word " * 2000, f"{tmp_path} is a folder?", FIRST]
    code, out, err = talk(monkeypatch, capsys, lines)
    folder = vlm.conversation()
    want = [folder.ask(text, max_new_tokens=8) for text in lines[-2:]]
    assert code == 2 and out == "\n".join(want) + "\n"
    says = [
        "/image has no picture",
        "gone.png does not exist",
        "gone.png does not exist",
    ]
    says += [
        "of no format",
        "no command '/dance'",
        "did you mean /reset?",
        "the model's context",
    ]
    assert all(say in line for say, line in zip(says, err.splitlines(), strict=True))


def test_chat_refuses_at_once(monkeypatch, capsys, nothing_is_loaded):
    for words, says in (
        (["What is this?"], "chat begins with 'What is this?'"),
        (["--top-k", "-1"], "top_k is -1"),
        (["--system", ""], "--system is ''"),
        (["--adapter", "nowhere"], "has no adapter_config.json"),
    ):
        assert says in refused(capsys, "chat", *words)
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in refused(capsys, "chat")


def test_ctrl_c_ends_a_conversation_through_a_pipe(monkeypatch, capsys):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mllama_lite.cli.chat.say", interrupt)
    assert talk(monkeypatch, capsys, [FIRST, SECOND])[0] == 130


def test_a_text_only_model_is_shown_no_picture(monkeypatch, capsys):
    vlm = load(device="cpu")
    monkeypatch.setattr(chat_module, "load_with_adapter", lambda _: vlm)
    object.__setattr__(vlm.config, "vision", None)
    try:
        code, out, err = talk(monkeypatch, capsys, [str(PHOTO)])
    finally:
        object.__setattr__(vlm.config, "vision", load(device="cpu").config.vision)
    assert code == 2 and "cannot be shown to a text-only model" in err


SLOW = """
import sys, time
from mllama_lite import cli, load
from mllama_lite.vlm import Conversation
stream = Conversation.stream

def slowly(self, question, images=None, **settings):
    if "slow" not in question:
        yield from stream(self, question, images, **settings)
        return
    for i in range(10000):
        time.sleep(0.05)
        yield f"<{i}> "

Conversation.stream = slowly
sys.exit(cli.main(["chat", "--max-new-tokens", "8"]))
"""


def test_a_conversation_at_a_terminal(tmp_path):
    """Greeting, dragged pictures, Ctrl-C within an answer and at the prompt, Ctrl-D."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(follower)
    shown = ""

    def wait_for(text, again=b""):
        """All that is shown before a text; `again` is pressed while it doesn't come."""
        nonlocal shown
        end = time.monotonic() + 300
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([leader], [], [], 5)[0]:
                shown += os.read(leader, 4096).decode()
            else:
                os.write(leader, again)
        before, shown = shown.split(text, 1)
        return before

    def enter(text):
        os.write(leader, text.encode())

    greeting = wait_for("\n> ")
    assert (
        "small model" in greeting and "/quit" in greeting and "1024 tokens" in greeting
    )
    enter("/help\n")
    wait_for("/image PATH")
    wait_for("\n> ")
    enter(f"'{PHOTO}' \n")
    wait_for("385 x 147 pixels, is shown with the next question.")
    enter(f"{FIRST}\n")
    wait_for("3 1 9\r\n")
    wait_for("> ")
    enter("slow\n")
    wait_for("<1> ")
    enter("\x03")  # Ctrl-C: the answer ends, the program doesn't
    wait_for("\n> ")
    enter("half a line")
    wait_for("half a line")
    # Between the prompt and the wait for a key Python's `input` forgets a Ctrl-C until the
    # next key. Whoever sits there presses it again.
    enter("\x03")
    wait_for("(/quit or Ctrl-D leaves)", again=b"\x03")
    wait_for("> ")
    enter("/rest\n")
    wait_for("did you mean /reset?")
    wait_for("> ")
    enter(f"{SECOND}\n")
    wait_for("3\r\n")
    wait_for("> ")
    enter("\x04")  # Ctrl-D
    assert process.wait(timeout=300) == 0
    os.close(leader)
