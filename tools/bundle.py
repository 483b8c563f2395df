"""Put the notebooks into one archive, with all that they need beside the pinned packages.

python tools/bundle.py _build/html/_static/notebooks.zip
"""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "notebooks",
    "mllama_lite",
    "requirements.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
FOLDER = "llama-vision"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files make the same archive


def files(root: Path) -> list[Path]:
    """All files of PARTS, without what a run leaves behind."""
    found = []
    for part in PARTS:
        path = root / part
        found += [path] if path.is_file() else sorted(path.rglob("*"))
    left = {"__pycache__", ".ipynb_checkpoints"}
    return [path for path in found if path.is_file() and not left & set(path.parts)]


def write(target: Path, root: Path = ROOT) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files(root):
            name = f"{FOLDER}/{path.relative_to(root).as_posix()}"
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB in {len(files(root))} files")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
