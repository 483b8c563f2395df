"""What a stranger may hand over as a picture, or type at the command line.

For each kind of thing that once went wrong, a test that draws more of its kind.
"""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
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

from mllama_lite import cli
from mllama_lite.attention_maps import LONGEST, Looks, draw_looks
from mllama_lite.cli.ask import question_and_images
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
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a)
    )
    with Image.open(io.BytesIO(EPS)) as image:  # Pillow would
        assert image.format == "EPS"
        with pytest.raises(Exception):  # noqa: B017  (whichever it is)
            image.load()
        assert started.pop()
    path = tmp_path / name
    path.write_bytes(EPS)
    for source in (path, str(path), EPS, io.BytesIO(EPS), path.open("rb")):
        with pytest.raises(InputError, match="of no format that is read here"):
            open_image(source)
    assert not started


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
    st.integers(0, 1200),
    st.integers(1, 60),
)
def test_drawings_are_bounded(size, tokens, images):
    """By panels, by the length of an answer, and by the number of images."""
    config = VisionConfig(image_size=56, patch_size=14)
    if tokens * images > 1200:
        tokens = 1200 // images
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
    for words in (["info", "a", "b"], ["download", "a/b", "c"], ["train", "x"],
                  ["measure", "x"], ["finetune", "a", "b"], ["download"], ["download", ""],
                  ["finetune"], ["finetune", "", "--out", "a"], ["finetune", "a"],
                  ["train"], ["info", ""], ["chat", "hello"]):  # fmt: skip
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
