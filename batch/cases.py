"""Which scans there are, with their lobe masks, and under which names they are known."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from batch.errors import InputError

SCAN_SLUG = "ct-image"
LOBES_SLUG = "pulmonary-lobes"
SUFFIXES = (".mha", ".nii.gz", ".nii")
OTHER_SUFFIXES = (".mhd", ".nrrd", ".nhdr", ".hdr", ".dcm")
"""Of images that cannot be sent: voxels in another file, no check for whether they are whole, single slices."""
LONGEST_NAME = 80  # the platform takes file names of 128 characters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One scan to run.

    Attributes:
        name: what the case is called, here and on the platform.
        files: its input files by the slug of their socket; a DICOM series is a folder.
        images: inputs that lie on the platform already, their addresses by slug.
    """

    name: str
    files: Mapping[str, Path]
    images: Mapping[str, str]

    def identity(self) -> dict[str, str]:
        """See `identity_of`."""
        return identity_of(self.files, self.images)


def identity_of(files: Mapping[str, Path], images: Mapping[str, str]) -> dict[str, str]:
    """What each input is, by slug: the SHA-256 of a file as it is now, or the address on the platform."""
    return {slug: sha256(path) for slug, path in files.items()} | dict(images)


def find_cases(scans: Path, lobes: Path | None) -> list[Case]:
    """The cases in a folder or a table, sorted by name.

    Args:
        scans: a folder with `<case>.mha`, `<case>.nii.gz` or a DICOM folder `<case>` for each case; or a table (.csv)
            with the columns case, ct and, if there are lobes, lobes; its paths are relative to the table.
        lobes: folder with a lobe mask for each case, and maybe for others; None for none, or for those of the table.

    Raises:
        InputError: there are no scans, a scan or mask is missing, two have the same name, or a file is an image that
            cannot be sent.
    """
    if scans.suffix.lower() == ".csv":
        if lobes is not None:
            raise InputError(f"{scans}: got a table and --lobes, expected the lobe masks in the table's column lobes")
        cases = _read_table(scans)
    else:
        by_slug = {SCAN_SLUG: _files_by_name(scans, folders=True)}
        if lobes is not None:
            by_slug[LOBES_SLUG] = _files_by_name(lobes, folders=False)
            _require_partners(by_slug, scans=scans, lobes=lobes)
        cases = [Case(name, {slug: files[name] for slug, files in by_slug.items()}, {}) for name in by_slug[SCAN_SLUG]]
    for case in cases:
        require_usable_name(case.name)
        for slug, path in case.files.items():
            _require_usable_file(path, may_be_folder=slug == SCAN_SLUG)
    return sorted(cases, key=lambda case: case.name)


def require_elsewhere(out: Path, scans: Path) -> None:
    """Check that results will not lie among the scans, where the next run would take them for a case.

    Raises:
        InputError: they would.
    """
    if scans.is_dir() and out.resolve().is_relative_to(scans.resolve()):
        raise InputError(f"{out}: got a folder for results in that of the scans, {scans}; expected one elsewhere")


def require_usable_name(name: str) -> None:
    """Check that a case's name can name a folder and a file.

    Raises:
        InputError: it cannot.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name.startswith(".") or set(name) & set('/\\:"'):
        raise InputError(
            f'got the case name {name!r}, expected 1 to {LONGEST_NAME} characters without / \\ : " and no dot in '
            "front; rename the case"
        )


def _require_usable_file(path: Path, *, may_be_folder: bool) -> None:
    if not (may_be_folder if path.is_dir() else path.name.lower().endswith(SUFFIXES)):
        wanted = ", ".join(SUFFIXES) + (" or a DICOM folder" if may_be_folder else "")
        raise InputError(f"{path}: got no kind of file that can be sent, expected {wanted}; convert it")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a folder, that of its files' sorted digests, whatever they are called."""
    if path.is_dir():
        digests = sorted(sha256(file) for file in visible_files(path))
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def shortened(names: Iterable[str], *, most: int = 5) -> str:
    """The first few names, sorted, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _files_by_name(folder: Path, *, folders: bool) -> dict[str, Path]:
    """Scans by case name; with `folders`, those that hold files count as DICOM series."""
    if not folder.is_dir():
        raise InputError(f"{folder}: got no such folder, expected one with {', '.join(SUFFIXES)} files")
    files: dict[str, Path] = {}
    others = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        name = _case_name(path, folders=folders)
        if name is None:
            others.append(path.name)
        elif name in files:
            raise InputError(f"{folder}: got {files[name].name} and {path.name}, expected one file a case")
        else:
            files[name] = path
    wanted = f"{', '.join(SUFFIXES)} files" + (" or DICOM folders" if folders else "")
    folders_left = [name for name in others if folders and (folder / name).is_dir()]
    nested = [name for name in folders_left if any(path.is_file() for path in (folder / name).rglob("*"))]
    if nested:
        raise InputError(
            f"{folder}: got {len(nested)} folders whose files lie in folders of their own ({shortened(nested)}), "
            "expected the slices of one series directly in each; move them up, or give a table with the series' folders"
        )
    unusable = [name for name in others if name.lower().endswith(OTHER_SUFFIXES)]
    if unusable:
        raise InputError(
            f"{folder}: got {len(unusable)} files in formats that cannot be sent ({shortened(unusable)}), expected "
            f"{wanted}; save them so, or take them out"
        )
    if not files:
        raise InputError(f"{folder}: got nothing to use, expected {wanted}")
    if others:
        log.warning("%s: left alone: %s", folder, ", ".join(others))
    return files


def _case_name(path: Path, *, folders: bool) -> str | None:
    if path.is_dir():
        return path.name if folders and visible_files(path) else None
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    return None if suffix is None else path.name[: -len(suffix)]


def _require_partners(by_slug: Mapping[str, Mapping[str, Path]], *, scans: Path, lobes: Path) -> None:
    alone = by_slug[SCAN_SLUG].keys() - by_slug[LOBES_SLUG].keys()
    if alone:
        raise InputError(
            f"{scans} and {lobes}: got {len(alone)} scans without a mask of the same name ({shortened(alone)}), "
            "expected one lobe mask a scan"
        )


def _read_table(path: Path) -> list[Case]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a table with the columns case, ct") from error
    if not {"case", "ct"} <= columns or not rows:
        got = ", ".join(sorted(columns)) or "none"
        raise InputError(f"{path}: got {len(rows)} rows with the columns {got}, expected case, ct and rows below them")
    slugs = {"ct": SCAN_SLUG} | ({"lobes": LOBES_SLUG} if "lobes" in columns else {})
    cases: dict[str, Case] = {}
    for number, row in enumerate(rows, start=2):
        files = {slug: path.parent / row[column] for column, slug in slugs.items() if row[column]}
        name = row["case"] or ""
        missing = [column for column, slug in slugs.items() if slug in files and not files[slug].exists()]
        missing += [] if row["ct"] else ["ct"]
        if missing:
            raise InputError(f"{path}, line {number}: got no file for {', '.join(missing)} of case {name!r}; mend it")
        if name in cases:
            raise InputError(f"{path}, line {number}: got the case {name!r} twice, expected each once")
        cases[name] = Case(name, files, {})
    return list(cases.values())
