"""The data directory: cases.csv, read and checked as a whole before any work starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels, require_same_grid, to_canonical
from algorithm.lobes import LOBES, check_lobes

Split = Literal["train", "validation", "test"]
TABLE = "cases.csv"
FILES = ("ct", "lobes", "lesions", "vessels")
COLUMNS = ("case", "ct", "lobes", *(lobe.key for lobe in LOBES), "lesions", "vessels", "split")


@dataclass(frozen=True)
class Case:
    """One row of cases.csv.

    Attributes:
        name: unique name.
        ct: path of the CT.
        lobes: path of the lobe labels.
        scores: score 0 to 5 by lobe label; a lobe that was not scored is absent.
        lesions: path of reference lesion labels (1 ground-glass, 2 consolidation, 3 mixed) where known.
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


@dataclass(frozen=True)
class Scan:
    """A case's images in LPS order on the CT's grid."""

    ct: Volume
    lobes: Volume
    lesions: Volume | None
    vessels: Volume | None


def read_cases(data: Path) -> list[Case]:
    """Read and check cases.csv.

    Args:
        data: the directory that holds it.

    Raises:
        InputError: all problems of the table together, with line numbers.
    """
    path = data / TABLE
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected the table of cases (see README, training data)") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: got {error}, expected comma-separated values") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{path}: columns missing: {', '.join(missing)}; expected {','.join(COLUMNS)}")
    problems: list[str] = []
    cases = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        found = _problems({str(k): str(v) for k, v in row.items()}, data)
        problems += [f"line {line}: {problem}" for problem in found]
        if not found:
            cases.append(_case({str(k): str(v) for k, v in row.items()}, data))
    problems += [f"case {name} occurs {n} times" for name, n in Counter(table["case"]).items() if n > 1]
    if not problems:
        problems = _problems_of_all(cases)
    if problems:
        raise InputError(f"{path}: {len(problems)} problems: " + "; ".join(problems))
    return cases


def of_split(cases: list[Case], split: Split) -> list[Case]:
    """The cases of one split."""
    return [case for case in cases if case.split == split]


def read_scan(case: Case) -> Scan:
    """Load the images of a case.

    Raises:
        InputError: an image is unusable or lies on another grid.
    """
    ct = read_ct(case.ct)
    lobes = check_lobes(read_labels(case.lobes), ct)
    absent = [lobe.name for lobe in LOBES if lobe.label in case.scores and not (lobes.array == lobe.label).any()]
    if absent:
        raise InputError(f"case {case.name}: {', '.join(absent)} has a score but no voxel in {case.lobes.name}")
    return Scan(
        ct=to_canonical(ct),
        lobes=to_canonical(lobes),
        lesions=_labels(case.lesions, ct, "lesions"),
        vessels=_labels(case.vessels, ct, "vessels"),
    )


def _labels(path: Path | None, ct: Volume, what: str) -> Volume | None:
    if path is None:
        return None
    labels = read_labels(path)
    require_same_grid(labels, ct, what)
    return to_canonical(labels)


def _problems(row: dict[str, str], data: Path) -> list[str]:
    problems = [f"{name} is empty" for name in ("case", "ct", "lobes") if not row[name]]
    problems += [f"{name}: no file {row[name]}" for name in FILES if row[name] and not (data / row[name]).exists()]
    problems += [
        f"{lobe.key}: got score {row[lobe.key]!r}, expected 0 to 5 or nothing"
        for lobe in LOBES
        if row[lobe.key] not in ("", "0", "1", "2", "3", "4", "5")
    ]
    if row["split"] not in get_args(Split):
        problems.append(f"split: got {row['split']!r}, expected one of {', '.join(get_args(Split))}")
    return problems


def _case(row: dict[str, str], data: Path) -> Case:
    return Case(
        name=row["case"],
        ct=data / row["ct"],
        lobes=data / row["lobes"],
        scores={lobe.label: int(row[lobe.key]) for lobe in LOBES if row[lobe.key]},
        lesions=data / row["lesions"] if row["lesions"] else None,
        vessels=data / row["vessels"] if row["vessels"] else None,
        split=row["split"],  # type: ignore[arg-type]
    )


def _problems_of_all(cases: list[Case]) -> list[str]:
    train = of_split(cases, "train")
    if not train:
        return ["no case with split train"]
    scores = {score for case in train for score in case.scores.values()}
    if not scores:
        return ["no lobe of a training case has a score"]
    return [] if scores - {0} else ["no training case with a lesion: every score is 0"]
