"""Files of a run: nothing half-written is ever taken as done, a damaged file is named, a full disk is said."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from algorithm.errors import InputError, one_line
from algorithm.images import Volume
from algorithm.integrity import require_sound_nifti

_TEMPORARY = ".tmp"
_PROBE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CURE = "delete it and the done.json of its stage, then run that stage again"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: of the finished file.
        write: writes the content to the open file.

    Raises:
        InputError: the disk is full; nothing is left of the file.
    """
    temporary = _temporary(path)
    try:
        with explained_when_full(path):
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder under a temporary name beside its own, which it gets when the block ends without an error.

    Where another process has made the folder in the meantime, that one is kept and this one is dropped.

    Args:
        path: of the finished folder.

    Yields:
        The folder to write into.

    Raises:
        InputError: the disk is full; nothing is left of the folder.
    """
    temporary = _temporary(path)
    try:
        with explained_when_full(path):
            temporary.mkdir(parents=True)
            yield temporary
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(folder: Path, *, untouched_s: float = 0.0) -> None:
    """Remove what killed processes left under temporary names, at any depth.

    A folder goes under another name first: a worker that outlived its parent cannot fill it up again, and finish it.

    Args:
        folder: where to look; nothing in it is being written unless ``untouched_s`` says otherwise.
        untouched_s: spare what was changed within this many seconds.
    """
    for path in list(folder.rglob(f"*{_TEMPORARY}")):
        if not path.exists() or time.time() - path.stat().st_mtime < untouched_s:
            continue
        if path.is_dir():
            shutil.rmtree(path.rename(_temporary(path)), ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def explained_when_full(where: Path) -> Iterator[None]:
    """Turn the error of a full disk, or one that it caused, into a line that says what to do.

    Args:
        where: what was being written.

    Raises:
        InputError: no space is left, or no quota.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"{where}: no space left on the disk, or no quota; free space and run the same command again, finished "
            "parts are kept"
        ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing(path) from error
    except ValueError as error:
        raise InputError(f"{path}: damaged, no JSON ({error}); {_CURE}") from error
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file whole."""
    write_whole(path, lambda file: np.save(_Stream(file.write), array, allow_pickle=False))


def write_image(path: Path, volume: Volume) -> None:
    """Write a CT or labels whole, compressed.

    Args:
        path: ends in .mha or .nii.gz; its folder exists.
        volume: int16 or float32, or for labels uint8 or bool.

    Raises:
        InputError: the disk is full; nothing is left of the file.
        OSError: the file cannot be written for another reason.
    """
    temporary = _temporary(path)
    try:
        with explained_when_full(path):
            temporary.mkdir()
            unnamed = temporary / path.name  # its ending says the format
            try:
                sitk.WriteImage(volume.to_sitk(), str(unnamed), useCompression=True)
                if path.name.endswith(".nii.gz"):
                    require_sound_nifti(unnamed)  # SimpleITK does not say that it fell short
            except (RuntimeError, InputError) as error:
                _write_synced(temporary / "probe", bytes(_PROBE_BYTES))  # says why, where SimpleITK does not
                raise OSError(f"{path}: cannot be written ({one_line(error)})") from error
            with unnamed.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unnamed, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read a .npy file.

    Args:
        path: the file.
        mapped: read only what is used, when it is used.

    Raises:
        InputError: the file is missing, shorter than its header says, or no .npy file.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r") if mapped else _read_array(path)
    except FileNotFoundError as error:
        raise missing(path) from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged cache file ({error}); {_CURE}") from error
    return array


@dataclass(frozen=True)
class _Stream:
    """A file of which NumPy sees no more than this: given the file itself, it does not say why a write failed."""

    write: Callable[[bytes], object]


def _read_array(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    """A name beside a path that no other process takes, on this machine or on another that shares the disk."""
    return path.with_name(f"{path.name}.{uuid4().hex}{_TEMPORARY}")


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is in the chain of causes: PyTorch, for one, raises another error in its place."""
    if error is None:
        return False
    return (isinstance(error, OSError) and error.errno in _FULL) or _is_full(error.__cause__ or error.__context__)


def missing(path: Path) -> InputError:
    """The error that a file of a finished stage is not there."""
    return InputError(f"{path}: no such file; delete the done.json of its stage, then run that stage again")


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Digest of the names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two records, leaf by leaf: ``name.key: then VALUE, now VALUE``."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = {**before, **now}
        return [
            line for key in keys for line in changes(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
        ]
    return [] if before == now else [f"{name}: then {before}, now {now}"]


def files_of(image: Path) -> list[Path]:
    """The files that an image consists of: all of a DICOM folder, and those with the voxels of an .mhd."""
    if image.is_dir():
        return sorted(path for path in image.rglob("*") if path.is_file())
    if image.suffix.lower() == ".mhd":  # the header alone: voxels lie beside it, under the same name
        return sorted(path for path in image.parent.iterdir() if path.name.startswith(f"{image.stem}."))
    return [image]
