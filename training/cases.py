"""The data directory: cases.csv, read and checked as a whole before any work starts."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from algorithm.errors import InputError
from algorithm.images import (
    SUFFIXES,
    Geometry,
    Volume,
    read_ct,
    read_geometry,
    read_labels,
    require_same_geometry,
    require_same_grid,
)
from algorithm.lobes import LOBES, check_lobes
from algorithm.orientation import to_canonical
from algorithm.subtypes import SUBTYPES

Split = Literal["train", "validation", "test"]
TABLE = "cases.csv"
FILES = ("ct", "lobes", "lesions", "vessels")
COLUMNS = ("case", "ct", "lobes", *(lobe.key for lobe in LOBES), "lesions", "vessels", "split")
UNKNOWN_SUBTYPE = 4
"""Label of a lesion whose subtype nobody stated, beside those of `algorithm.subtypes.SUBTYPES`."""

_SCORES = ("", "0", "1", "2", "3", "4", "5")
_SHOWN_PROBLEMS = 20
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.+ -]{0,98}[a-z0-9_+-])?(?<!\.json)(?<!\.tmp)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One row of cases.csv.

    Attributes:
        name: unique, and usable as a file name.
        ct: path of the CT.
        lobes: path of the lobe labels.
        scores: score 0 to 5 by lobe label; a lobe that was not scored is absent.
        lesions: path of reference lesion labels (1 ground-glass, 2 consolidation, 3 mixed, 4 of unknown subtype) where
            known.
        vessels: path of a vessel mask where known.
        split: what the case is for.
    """

    name: str
    ct: Path
    lobes: Path
    scores: dict[int, int]
    lesions: Path | None
    vessels: Path | None
    split: Split

    @property
    def is_healthy(self) -> bool:
        """Whether all five lobes were scored 0."""
        return len(self.scores) == len(LOBES) and not any(self.scores.values())


@dataclass(frozen=True)
class Scan:
    """A case's images in LPS order on the CT's grid, (z, y, x).

    Attributes:
        ct: HU, int16, or float32 where the file holds fractions.
        lobes: uint8, labels of `algorithm.lobes.LOBES`.
        lesions: uint8, as in `Case`; None where unknown.
        vessels: uint8, 1 in vessels; None where unknown.
    """

    ct: Volume
    lobes: Volume
    lesions: Volume | None
    vessels: Volume | None


class _Row(NamedTuple):
    """A row as it stands in the table."""

    line: int
    length: int | None  # number of values, where it is not that of the columns
    values: dict[str, str]  # by column, without surrounding white space


def read_cases(data: Path) -> list[Case]:
    """Read and check cases.csv; of the images, the headers are read, but no voxels.

    Args:
        data: the directory that holds it.

    Raises:
        InputError: all problems of the table, of its rows with line numbers, and of the images' grids together.
    """
    cases, problems = look_through(data)
    if lack := what_training_lacks(cases):
        problems.insert(0, lack)
    if problems:
        raise all_problems(str(data / TABLE), problems)
    return cases


def read_table(data: Path) -> list[Case]:
    """As `read_cases`, but the cases need not suffice to train on."""
    cases, problems = look_through(data)
    if problems:
        raise all_problems(str(data / TABLE), problems)
    return cases


def look_through(data: Path) -> tuple[list[Case], list[str]]:
    """The cases of the table, and what is wrong with its rows, with line numbers.

    A row with a problem gives a case as far as it can be read, so that what all rows together lack can be told as well.

    Raises:
        InputError: the file is missing, no CSV, or without the columns.
    """
    rows = _read_rows(data / TABLE)
    found = [(row.line, problem) for row in rows for problem in _problems(row, data)]
    legible = [row for row in rows if row.length is None]
    found += _repetitions(legible, data)
    problems = [f"line {line}: {problem}" for line, problem in sorted(found, key=itemgetter(0))]
    return [_case(row.values, data) for row in legible], problems


def all_problems(where: str, problems: list[str]) -> InputError:
    """One error of several problems: a line each, of the first 20, and how many there are."""
    if len(problems) == 1:
        return InputError(f"{where}: {problems[0]}")
    left = len(problems) - _SHOWN_PROBLEMS
    more = [f"and {left} more"] if left > 0 else []
    return InputError("\n  ".join([f"{where}: {len(problems)} problems", *problems[:_SHOWN_PROBLEMS], *more]))


def of_split(cases: list[Case], split: Split) -> list[Case]:
    """The cases of one split."""
    return [case for case in cases if case.split == split]


def read_scan(case: Case) -> Scan:
    """Load the images of a case.

    Raises:
        InputError: an image is unusable or lies on another grid, or holds labels that are not expected.
    """
    ct = read_ct(case.ct)
    try:
        lobes = check_lobes(read_labels(case.lobes), ct)
    except InputError as error:
        raise InputError(f"case {case.name}: {error}") from error
    absent = [lobe.name for lobe in LOBES if lobe.label in case.scores and not (lobes.array == lobe.label).any()]
    if absent:
        raise InputError(f"case {case.name}: {', '.join(absent)} has a score but no voxel in {case.lobes.name}")
    return Scan(
        ct=to_canonical(ct),
        lobes=to_canonical(lobes),
        lesions=None if case.lesions is None else _read_lesions(case.lesions, ct),
        vessels=None if case.vessels is None else _read_vessels(case.vessels, ct),
    )


def _read_lesions(path: Path, ct: Volume) -> Volume:
    lesions = read_labels(path)
    require_same_grid(lesions, ct, f"lesion mask {path.name}")
    if lesions.array.min() < 0 or lesions.array.max() > UNKNOWN_SUBTYPE:
        known = {**SUBTYPES, UNKNOWN_SUBTYPE: "of unknown subtype"}
        raise InputError(f"{path}: got lesion labels {np.unique(lesions.array).tolist()}, expected 0 and {known}")
    return to_canonical(lesions.with_array(lesions.array.astype(np.uint8, copy=False)))


def _read_vessels(path: Path, ct: Volume) -> Volume:
    vessels = read_labels(path)
    require_same_grid(vessels, ct, f"vessel mask {path.name}")
    return to_canonical(vessels.with_array((vessels.array > 0).astype(np.uint8)))


def _read_rows(path: Path) -> list[_Row]:
    """The rows of the table that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected the table of cases (see README, training data)") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: got {error}, expected UTF-8; save the table as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: got {error}, expected comma-separated values") from error
    lines = [(line, values) for line, values in lines if any(values)]
    header = lines[0][1] if lines else []
    _require_columns(header, path)
    return [
        _Row(line, None if len(values) == len(header) else len(values), dict(zip(header, values, strict=False)))
        for line, values in lines[1:]
    ]


def _require_columns(header: list[str], path: Path) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise InputError(f"{path}: its columns are separated by {name}, expected commas; save it with commas")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: columns missing: {', '.join(missing)}; expected {','.join(COLUMNS)}")
    repeated = [name for name in COLUMNS if header.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: got the columns {', '.join(repeated)} more than once; remove or rename one of each")


def _problems(row: _Row, data: Path) -> list[str]:
    """What is wrong with a row by itself."""
    values = row.values
    if row.length is not None:
        return [f"got {row.length} values, expected one for each column of the first line; put commas or quotes right"]
    problems = []
    if not _NAME.fullmatch(values["case"]):
        problems.append(
            f"case: got {values['case']!r}, expected a name for files: at most 100 letters, digits, spaces, _, -, + "
            "and ., beginning with a letter, digit or _, ending in no space, dot, .json or .tmp"
        )
    problems += [
        f"{lobe.key}: got score {values[lobe.key]!r}, expected 0, 1, 2, 3, 4, 5 or nothing"
        for lobe in LOBES
        if values[lobe.key] not in _SCORES
    ]
    if values["split"] not in get_args(Split):
        problems.append(f"split: got {values['split']!r}, expected one of {', '.join(get_args(Split))}")
    return problems + _image_problems(values, data)


def _image_problems(values: dict[str, str], data: Path) -> list[str]:
    problems = [f"{name} is empty" for name in ("ct", "lobes") if not values[name]]
    grids = {}
    for name in FILES:
        try:
            grids[name] = _read_grid(data / values[name], name) if values[name] else None
        except InputError as error:
            problems.append(f"{name}: {error}")
    ct = grids.pop("ct", None)
    for name, grid in grids.items():
        try:
            if ct is not None and grid is not None:
                require_same_geometry(grid, ct, f"image in column {name}")
        except InputError as error:
            problems.append(str(error))
    return problems


def _read_grid(path: Path, column: str) -> Geometry | None:
    """The grid that the header of an image states; None for a DICOM series, whose files state it."""
    if path.is_dir():
        if column == "ct" and any(file.is_file() for file in path.iterdir()):
            return None
        if column == "ct":
            raise InputError(f"{path}: got a folder without files, expected one DICOM series")
        raise InputError(f"{path}: got a folder, expected an image file ({', '.join(SUFFIXES)})")
    return read_geometry(path)


def _repetitions(rows: list[_Row], data: Path) -> list[tuple[int, str]]:
    """Lines of rows that take another's case, or its scan for another split, and what is wrong with them."""
    problems = []
    of_name: dict[str, _Row] = {}
    of_ct: dict[Path, _Row] = {}
    for row in rows:
        name, split = row.values["case"], row.values["split"]
        namesake = of_name.setdefault(name.casefold(), row)
        if namesake is not row:
            problems.append((row.line, f"case {name} is also on line {namesake.line}{_clash(row, namesake)}"))
        other = of_ct.setdefault((data / row.values["ct"]).resolve(), row)
        if other is not namesake and other.values["split"] != split and row.values["ct"]:
            elsewhere = f"on line {other.line} it is for {other.values['split']}"
            problems.append((row.line, f"ct {row.values['ct']} is for {split}, but {elsewhere}"))
    return problems


def _clash(row: _Row, namesake: _Row) -> str:
    if row.values["case"] != namesake.values["case"]:
        return f" as {namesake.values['case']}; where capitals do not count, their files would be the same"
    if row.values["split"] != namesake.values["split"]:
        return f", for {namesake.values['split']} instead of {row.values['split']}"
    return ""


def _case(values: dict[str, str], data: Path) -> Case:
    return Case(
        name=values["case"],
        ct=data / values["ct"],
        lobes=data / values["lobes"],
        scores={lobe.label: int(values[lobe.key]) for lobe in LOBES if values[lobe.key] in _SCORES[1:]},
        lesions=data / values["lesions"] if values["lesions"] else None,
        vessels=data / values["vessels"] if values["vessels"] else None,
        split=values["split"],  # type: ignore[arg-type]
    )


def what_training_lacks(cases: list[Case]) -> str:
    """Why no network can be trained on these cases; empty if it can."""
    if not (train := of_split(cases, "train")):
        return "no case with split train"
    scores = {score for case in train for score in case.scores.values()}
    if not scores:
        return "no lobe of a training case has a score"
    return "" if scores - {0} else "no training case with a lesion: every score is 0"
