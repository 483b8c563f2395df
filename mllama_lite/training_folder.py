# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""The folder of a training: whose it is, one training at a time, a state that survives.

Built in chapter 11, notebooks/11_training.ipynb, for this training and for that of
adapters.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import make_folder, system_errors, written_aside


STATE, LOCK = "training.pt", "training.lock"
OURS = (STATE, STATE + ".part", LOCK)
# (process, folder) of this process: its own locks don't stop it
_held: set[tuple[int, str]] = set()


def check_out(out: str | PathLike) -> Path:
    """A folder that a training may write to: not there yet, empty, or begun by one.

    Raises:
        InputError: it is a file, or holds something that would be overwritten.
    """
    if not isinstance(out, (str, PathLike)) or not str(out).strip():
        raise InputError(
            f"The folder to train in is {shown(out)}: expected a path; name one."
        )
    with system_errors(out, "written"):
        out = Path(out)
        if out.exists() and not out.is_dir():
            raise InputError(
                f"{out} is a file: expected a folder to train in; choose another name."
            )
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in names if name not in OURS]
    if others and STATE not in names:
        raise InputError(
            f"{out} holds {', '.join(others[:3])}{' …' * (len(others) > 3)}: expected "
            f"an empty folder, or one with the {STATE} of a training to go on with; "
            "choose another, so that nothing is overwritten."
        )
    return out


@contextmanager
def only_training(out: Path) -> Iterator[None]:
    """Within this block no other training can begin in the folder, which is made.

    The system keeps the lock, so that it ends with the process, however that ends.

    Raises:
        InputError: another training goes on there; the folder cannot be made.
    """
    with system_errors(out, "written"):
        make_folder(out)
        key, path = (os.getpid(), os.path.realpath(out)), out / LOCK
        if key in _held:
            raise _busy(out, os.getpid())
        file = _lock(path)
        _held.add(key)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    try:
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):  # an open file cannot be removed everywhere
            path.unlink()
        file.close()


def _lock(path: Path) -> TextIO:
    """The locked file of that name, which is the one that others will find there."""
    while True:
        file = open(path, "a+")
        try:
            _take(file)
        except OSError:
            file.seek(0)
            owner = file.read(20)
            file.close()
            raise _busy(path.parent, owner) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # the training that ended just now has removed it


def _take(file: TextIO) -> None:
    """Lock a file or raise OSError, at once."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(2**20)  # beyond the number, which others may read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows'
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _busy(out: Path, owner: int | str) -> InputError:
    return InputError(
        f"{out} is in use by the training of process {owner or 'unknown'}: expected "
        "one training at a time in a folder; wait for it, or choose another folder."
    )


def save_state(path: Path, state: dict) -> None:
    """Write a state with its checksum; see `written_aside` for what it raises."""
    with written_aside(path) as part:
        torch.save(state | {"checksum": checksum(state)}, part)


def load_state(
    path: Path,
    check: Callable[[dict], None],
    device: torch.device | str = "cpu",
) -> dict:
    """Read what `save_state` wrote; nothing in the file is run.

    Args:
        path: of the file.
        check: called with the state; raises Unlike if it is not of the right form.
        device: where the tensors go.

    Returns:
        dict.

    Raises:
        InputError: the file is cut, damaged or edited, or of another kind.
    """
    try:
        _check_sizes(path)
        state = torch.load(path, device, weights_only=True)
        if not isinstance(state, dict):
            raise Unlike(f"it holds a {type(state).__name__}")
        if state.pop("checksum", None) != checksum(state):
            raise Unlike("its checksum is another")
        check(state)
        return state
    except Unlike as error:
        why: Unlike | str = error
    except Exception as error:  # torch's reader raises many kinds
        why = type(error).__name__
    raise InputError(
        f"{path} cannot be read ({why}): expected the state of a training, as it was "
        "written; delete it to begin anew."
    )


def as_stored(settings: Any) -> dict:
    """A dataclass's fields as a file gives them back: tuples become lists."""
    return json.loads(json.dumps(asdict(settings)))


def check_settings(path: Path, theirs: dict, mine: dict) -> None:
    """Whether a training was begun with the settings that are now asked for.

    Raises:
        InputError: it was not; the first setting that differs is named.
    """
    other = [name for name in mine if theirs.get(name) != mine[name]]
    if other:
        raise InputError(
            f"{path} was begun with {other[0]} {shown(theirs.get(other[0]))}: expected "
            f"{shown(mine[other[0]])}, as now asked for; use the same settings, or "
            "another folder."
        )


def _check_sizes(path: Path) -> None:
    """Entries are stored as they are, so that a small file cannot become a large one."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Unlike("its parts are larger than the file")


def checksum(value: object) -> str:
    """SHA-256 over a nest of dicts, lists, tensors and plain values, and their kinds."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: object) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        numbers = value.detach().cpu().contiguous().flatten()
        digest.update(numbers.view(torch.uint8).numpy().data)
    elif isinstance(value, (dict, list, tuple)):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for item in value.items() if isinstance(value, dict) else value:
            _feed(digest, item)
    else:
        digest.update(f"{type(value).__name__}{value!r};".encode())


class Unlike(Exception):
    """A state that is not of the form it should have; says where and how."""


def check_alike(theirs: Any, mine: Any, where: str = "the state") -> None:
    """Whether two nests have the same keys, kinds, shapes and dtypes, and finite numbers.

    Raises:
        Unlike: they have not.
    """
    if type(theirs) is not type(mine):
        raise Unlike(f"{where} is a {type(theirs).__name__}")
    if isinstance(mine, dict):
        check_keys(theirs, mine, where)
        for key in mine:
            check_alike(theirs[key], mine[key], f"{where}, {key}")
    elif isinstance(mine, torch.Tensor):
        if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            raise Unlike(f"{where} is {theirs.dtype} {list(theirs.shape)}")
        if not theirs.isfinite().all():
            raise Unlike(f"{where} is not finite")


def check_keys(theirs: object, mine: dict, where: str) -> None:
    """Whether something is a dict with the same keys; raises Unlike if not."""
    if not isinstance(theirs, dict) or theirs.keys() != mine.keys():
        raise Unlike(f"{where} has other keys")


def check_optimiser(
    state: dict, optimiser: torch.optim.AdamW, step: int, every: bool = True
) -> None:
    """Whether a state is one that AdamW had after a step, with the same settings.

    Args:
        state: from the file.
        optimiser: with its parameters, in any state.
        step: how many steps it has made.
        every: whether each of them changed every parameter.

    Raises:
        Unlike: it is not.
    """
    where, own = "the optimiser", optimiser.state_dict()

    def settings(groups: list[dict]) -> list[dict]:
        return [{**group, "lr": None} for group in groups]

    rates = [isinstance(group["lr"], float) for group in state["param_groups"]]
    if not all(rates) or settings(state["param_groups"]) != settings(
        own["param_groups"]
    ):
        raise Unlike(f"{where} has other settings")
    flat = [p for group in optimiser.param_groups for p in group["params"]]
    kept = state["state"]
    if not kept.keys() <= set(range(len(flat))) or (
        every and len(kept) != len(flat) * (step > 0)
    ):
        raise Unlike(f"{where} has other parameters")
    for number, entry in kept.items():
        like = {name: flat[number].detach() for name in ("exp_avg", "exp_avg_sq")}
        check_alike(entry, like | {"step": torch.zeros(())}, where)
        made = entry["step"].item()
        if not (made == step if every else 0 < made <= step and made % 1 == 0):
            raise Unlike(f"{where} has made {made:g} steps of {step}")
        if entry["exp_avg_sq"].min() < 0:
            raise Unlike(f"{where} has squares below 0")
