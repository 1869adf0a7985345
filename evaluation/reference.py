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
IMAGE_SUFFIXES = (".mha", ".mhd", ".nii.gz", ".nii", ".tiff", ".tif")
SCORES = {str(score): score for score in range(6)} | {f"{score}.0": score for score in range(6)}


@dataclass(frozen=True)
class ReferenceCase:
    """One scan of the reference.

    Attributes:
        case: name of the scan, without the extension of an image file.
        lesions: mask with 0 background, 1 ground-glass, 2 consolidation, 3 mixed.
        lobes: mask with 0 outside and 1 to 5 as in `metrics.LOBES`, on the same grid.
        scores: severity score 0 to 5 by lobe name; None where a lobe was not scored.
    """

    case: str
    lesions: Path
    lobes: Path
    scores: dict[str, int | None]

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
    empty where a lobe was not scored); other columns are left alone.

    Returns:
        The cases by name, in the order of the file.

    Raises:
        GroundTruthError: the file is missing, lacks a column, has no row, names a case twice or holds another score.
    """
    path = directory / "reference.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise GroundTruthError(f"{path}: cannot be read as a table: {error}") from error
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
    scores: dict[str, int | None] = {}
    for lobe in LOBES.values():
        cell = row[lobe].strip()
        if cell and cell not in SCORES:
            raise GroundTruthError(f"reference.csv: case {case}: got {lobe} {cell!r}, expected 0 to 5 or nothing")
        scores[lobe] = SCORES.get(cell)
    return ReferenceCase(
        case=case,
        lesions=directory / row["lesions"].strip(),
        lobes=directory / row["lobes"].strip(),
        scores=scores,
    )
