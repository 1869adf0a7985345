"""The scans of a batch, with their lobe masks, and the names under which they are known."""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from algorithm.errors import InputError
from algorithm.images import SUFFIXES
from algorithm.sockets import CT, LOBES

_HEADER_BYTES = 1 << 16
_DETACHED = re.compile(rb"^(data ?file:|ElementDataFile\s*[=:]\s*(?!LOCAL|\s))", re.IGNORECASE | re.MULTILINE)
_BAD_IN_NAMES = set('/\\:"')

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchCase:
    """One scan to segment; the CT may be a DICOM folder."""

    name: str
    ct: Path
    lobes: Path | None

    def sha256(self) -> dict[str, str]:
        """Hexadecimal SHA-256 of the inputs, by the slug of their socket."""
        paths = {CT.slug: self.ct} | ({LOBES.slug: self.lobes} if self.lobes else {})
        return {slug: sha256(path) for slug, path in paths.items()}


def find_cases(scans: Path, lobes: Path | None) -> list[BatchCase]:
    """The cases in a folder or a table, sorted by name.

    Args:
        scans: a folder with a file or DICOM folder for each case, which names the case; or a table (.csv) with the
            columns case, ct and, if there are lobes, lobes; its paths are relative to the table.
        lobes: folder with a lobe mask of the same name for each case; None for those of the table.

    Raises:
        InputError: there are no scans, a scan or mask is missing, two have the same name, or one lies
            in two files (.mhd, some .mha and .nrrd).
    """
    if scans.suffix.lower() == ".csv":
        if lobes is not None:
            raise InputError(f"{scans}: got a table and --lobes, expected the lobe masks in the table's column lobes")
        cases = _read_table(scans)
    else:
        masks = _files_by_name(lobes, folders=False) if lobes is not None else {}
        cases = [BatchCase(name, ct, masks.get(name)) for name, ct in _files_by_name(scans, folders=True).items()]
        if alone := [case.name for case in cases if lobes is not None and case.lobes is None]:
            raise InputError(f"{lobes}: got no lobe mask for {len(alone)} scans ({', '.join(alone[:5])})")
    for case in cases:
        if not case.name.isprintable() or case.name.startswith(".") or not case.name or set(case.name) & _BAD_IN_NAMES:
            raise InputError(f'got the case name {case.name!r}, expected one without / \\ : " and no dot in front')
        for path in (case.ct, case.lobes):
            if path is not None and _is_detached(path):
                raise _without_voxels(path)
    return sorted(cases, key=lambda case: case.name)


def require_elsewhere(out: Path, scans: Path) -> None:
    """Check that results will not lie among the scans, where the next run would take them for a case.

    Raises:
        InputError: they would.
    """
    if scans.is_dir() and out.resolve().is_relative_to(scans.resolve()):
        raise InputError(f"{out}: got a folder for results in that of the scans, {scans}; expected one elsewhere")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a folder, that of its files' sorted digests, whatever they are called."""
    if path.is_dir():
        return hashlib.sha256("".join(sorted(map(sha256, _files_in(path)))).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _files_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]


def _is_detached(path: Path) -> bool:
    """Whether a file is but a header, whose voxels could change without it."""
    suffix = path.suffix.lower()
    if suffix == ".mhd":
        return True
    if suffix not in (".mha", ".nrrd") or not path.is_file():
        return False
    with path.open("rb") as file:
        return _DETACHED.search(file.read(_HEADER_BYTES)) is not None


def _without_voxels(header: Path) -> InputError:
    return InputError(f"{header}: got a header without its voxels, expected one file a scan; save it as .mha")


def _read_table(path: Path) -> list[BatchCase]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a table with the columns case, ct") from error
    if not rows or not {"case", "ct"} <= rows[0].keys():
        raise InputError(f"{path}: got {len(rows)} rows, expected some below the columns case, ct and lobes")
    cases: dict[str, BatchCase] = {}
    for number, row in enumerate(rows, start=2):
        name, ct, lobes = row["case"] or "", path.parent / (row["ct"] or ""), row.get("lobes")
        if name in cases:
            raise InputError(f"{path}, line {number}: got the case {name!r} twice, expected each once")
        if not row["ct"]:
            raise InputError(f"{path}, line {number}: got no ct for the case {name!r}; fill it in")
        cases[name] = BatchCase(name, ct, path.parent / lobes if lobes else None)
    return list(cases.values())


def _files_by_name(folder: Path, *, folders: bool) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: got no such folder, expected one with {', '.join(SUFFIXES)} files")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
        is_series = folders and path.is_dir() and bool(_files_in(path))
        if folders and path.is_dir() and not is_series and any(file.is_file() for file in path.rglob("*")):
            raise InputError(
                f"{path}: got folders in a folder, expected the slices of one series directly in it; move them up, or "
                "give a table with the series' folders"
            )
        is_image = bool(suffix) and not path.is_dir()  # or a broken link to one, which fails when it is read
        if not is_image and not is_series:
            log.warning("%s: left alone", path)
            continue
        name = path.name[: -len(suffix)] if is_image else path.name
        if name in files:
            raise InputError(f"{folder}: got {files[name].name} and {path.name}, expected one file a case")
        files[name] = path
    if not files:
        raise InputError(f"{folder}: got nothing to use, expected {', '.join(SUFFIXES)} files or DICOM folders")
    return files
