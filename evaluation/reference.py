"""The reference: a folder with `reference.csv`, lesion masks, lobe masks and radiologists' scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import GroundTruthError, InputError
from evaluation.masks import Mask, read_mask
from evaluation.metrics import LOBES, SUBTYPES

COLUMNS = ("case", "lesions", "lobes", *LOBES.values())
OPTIONAL_COLUMNS = ("total", "ct")
IMAGE_SUFFIXES = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd", ".tiff", ".tif")
HIGHEST_SCORE = 5
HIGHEST_TOTAL = HIGHEST_SCORE * len(LOBES)


@dataclass(frozen=True)
class ReferenceCase:
    """One scan of the reference.

    Attributes:
        case: name of the scan, without the extension of an image file.
        lesions: mask with 0 background, 1 ground-glass, 2 consolidation, 3 mixed.
        lobes: mask with 0 outside and 1 to 5 as in `metrics.LOBES`, on the same grid.
        scores: severity score 0 to 5 by lobe name; None where a lobe was not scored.
        total: severity score of the scan, 0 to 25: the sum of the five, or what the table says; None if neither.
        ct: the scan itself, for pictures; None if the table names none.
    """

    case: str
    lesions: Path
    lobes: Path
    scores: dict[str, int | None]
    total: int | None = None
    ct: Path | None = None

    def read(self) -> tuple[Mask, Mask]:
        """The lesion mask and the lobe mask.

        Raises:
            GroundTruthError: a mask cannot be used, or the two lie on different grids.
        """
        try:
            lesions = read_mask(self.lesions, highest_label=max(SUBTYPES))
            return lesions, read_mask(self.lobes, highest_label=max(LOBES), grid=lesions.grid)
        except InputError as error:
            raise GroundTruthError(f"reference case {self.case}: {error}") from error


def case_name(file_name: str) -> str:
    """The name of a case: a file name without the extension of an image file."""
    for suffix in IMAGE_SUFFIXES:
        if file_name.lower().endswith(suffix) and len(file_name) > len(suffix):
            return file_name[: -len(suffix)]
    return file_name


def read_reference(directory: Path) -> dict[str, ReferenceCase]:
    """Read `reference.csv` of a folder.

    Its columns are case, lesions, lobes (paths relative to the folder) and lul, lll, rul, rll, rml (scores 0 to 5,
    empty where a lobe was not scored). It may have `total` (0 to 25, the sum of the five where all are given) and `ct`
    (path of the scan, for pictures). Other columns are left alone.

    Returns:
        The cases by name, in the order of the file.

    Raises:
        GroundTruthError: the file is missing, lacks a column or has it twice, has no row, names a case twice, holds
            another score, or a total that is not the sum of its scores.
    """
    path = directory / "reference.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), list(table.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise GroundTruthError(f"{path}: cannot be read as a table: {error}") from error
    twice = [column for column in (*COLUMNS, *OPTIONAL_COLUMNS) if columns.count(column) > 1]
    if twice:
        raise GroundTruthError(f"{path}: got several columns {', '.join(twice)}, expected one of each")
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise GroundTruthError(f"{path}: got no column {', '.join(missing)}, expected {', '.join(COLUMNS)}")
    cases: dict[str, ReferenceCase] = {}
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise GroundTruthError(f"{path}: row {number} has not as many cells as the header; quote commas")
        case = _reference_case(row, directory=directory)
        if case.case in cases:
            raise GroundTruthError(f"{path}: case {case.case} is listed twice, expected once")
        cases[case.case] = case
    if not cases:
        raise GroundTruthError(f"{path}: got no case, expected at least one")
    return cases


def _reference_case(row: Mapping[str, str], *, directory: Path) -> ReferenceCase:
    case = case_name(row["case"].strip())
    empty = [column for column in ("case", "lesions", "lobes") if not row[column].strip()]
    if empty:
        raise GroundTruthError(f"reference.csv: case {case!r} has no {', '.join(empty)}; fill in every row")
    scores = {lobe: _score(row[lobe], highest=HIGHEST_SCORE, place=f"case {case}: {lobe}") for lobe in LOBES.values()}
    ct = row.get("ct", "").strip()
    return ReferenceCase(
        case=case,
        lesions=directory / row["lesions"].strip(),
        lobes=directory / row["lobes"].strip(),
        scores=scores,
        total=_total(scores, _score(row.get("total", ""), highest=HIGHEST_TOTAL, place=f"case {case}: total"), case),
        ct=directory / ct if ct else None,
    )


def _score(cell: str, *, highest: int, place: str) -> int | None:
    """A whole number, also when written as 3.0; None for an empty cell."""
    text = cell.strip()
    if not text:
        return None
    whole = text.removesuffix(".0")
    if not (whole.isascii() and whole.isdigit() and int(whole) <= highest):
        raise GroundTruthError(f"reference.csv: {place}: got {text!r}, expected 0 to {highest} or nothing")
    return int(whole)


def _total(scores: Mapping[str, int | None], total: int | None, case: str) -> int | None:
    """The sum of the scores if there are five, else the given total, which must be possible."""
    known = [score for score in scores.values() if score is not None]
    lowest, highest = sum(known), sum(known) + HIGHEST_SCORE * (len(scores) - len(known))
    if total is not None and not lowest <= total <= highest:
        raise GroundTruthError(
            f"reference.csv: case {case}: got total {total}, but its lobes' scores add up to {lowest} to {highest}"
        )
    return sum(known) if len(known) == len(scores) else total
