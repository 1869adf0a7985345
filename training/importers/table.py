"""One's own scores: a CSV of cases, whatever its columns are called, becomes cases.csv.

Scans stay where they are. Masks do too, unless their labels are others than ours: then ones with our labels are
written.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from algorithm.errors import InputError
from algorithm.lobes import LOBES
from training.cases import COLUMNS, FILES, TABLE, Case, all_problems, read_table, what_training_lacks
from training.files import write_text
from training.importers.masks import Numbering, import_masks
from training.importers.source import remark, split_of_cases
from training.parallel import Workers, over_scans
from training.phantom.lesions import score_of

OPTIONAL = ("lesions", "vessels", "split", "patient")
"""Columns that may be missing; cases of one patient are drawn for one split."""

KNOWN = (*COLUMNS, "patient")
_NO_SCORE = ("", "na", "n/a", "nan")

Row = dict[str, str]


@dataclass(frozen=True)
class TableOptions:
    """How to read the table.

    Attributes:
        root: folder that paths in the table are relative to; None for the table's own.
        columns: header of the table by our name of a column, where it is not recognised by itself.
        percent: the table gives percentages, which become scores.
        numbering: what the labels of the masks mean.
    """

    root: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    percent: bool = False
    numbering: Numbering = Numbering()


def import_table(
    table: Path,
    out: Path,
    options: TableOptions,
    *,
    seed: int,
    validation: int,
    test: int,
    workers: Workers | None = None,
) -> None:
    """Write OUT/cases.csv, with paths relative to OUT, and OUT/images with the masks whose labels are others than ours.

    What is said, but no error: what the cases lack to be trained on alone, and what looks like a mistake.

    Args:
        table: the CSV: case, ct, lobes, a score for each lobe (empty where it was not scored), and any of `OPTIONAL`.
        out: a directory without cases.csv.
        options: how to read the table.
        seed: of the draw of splits, if the table states none; see `split_of_cases`.
        validation: cases (or patients) to draw for validation.
        test: cases (or patients) to draw for testing.
        workers: who reads the masks.

    Raises:
        InputError: all problems of the table together, or else all those of the masks, with line numbers.
    """
    if (out / TABLE).exists():
        raise InputError(f"{out / TABLE} exists; choose another directory, or delete it")
    rows = _with_splits(table, _read_rows(table, options), seed=seed, validation=validation, test=test)
    cases = _require_sound(table, rows)
    check = partial(import_masks, images=out / "images", numbering=options.numbering)
    found = over_scans("masks", check, list(rows.values()), workers)
    problems = [
        f"line {line}: {problem}" for line, masks in zip(rows, found, strict=True) for problem in masks.problems
    ]
    if problems:
        raise all_problems(str(table), problems)
    out.mkdir(parents=True, exist_ok=True)
    lines = [_relative_to(out, row | masks.paths) for row, masks in zip(rows.values(), found, strict=True)]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    write_text(out / TABLE, frame.to_csv(index=False, lineterminator="\n"))
    _summarise(frame, out)
    if lack := what_training_lacks(cases):
        remark(f"not to be trained on alone: {lack}")
    labels = frozenset[int]().union(*(masks.labels for masks in found)) - {0}
    if labels == {1} and options.numbering.lesions == "subtypes":
        remark("every lesion is labelled 1, ground-glass; if the masks do not tell subtypes: --lesion-labels binary")


def parse_column(text: str) -> tuple[str, str]:
    """Take NAME=HEADER apart.

    Raises:
        InputError: it is not of that form.
    """
    name, separator, header = text.partition("=")
    if not (name and separator and header):
        raise InputError(f"--column {text}: expected NAME=HEADER, for example lul=Score1")
    return name, header


def recognise_columns(headers: Sequence[str], chosen: Mapping[str, str], *, percent: bool) -> dict[str, str]:
    """Find the header of each column that we know.

    Recognised are our names, and lobes as LUL, "left upper", "Left_Upper_Lobe" or "score LUL"; "LUL percent" only if
    percentages are expected.

    Args:
        headers: of the table.
        chosen: headers by our name, which go before what is recognised.
        percent: percentages are expected.

    Returns:
        The header by our name; optional columns may be missing.

    Raises:
        InputError: a column is missing, was chosen but does not exist, or might be one of several.
    """
    meanings = {frozenset((name,)): name for name in KNOWN}
    meanings |= {frozenset(lobe.name.split()) - {"lobe"}: lobe.key for lobe in LOBES}
    passed_over = {"lobe", "score", "percent", "percentage"} if percent else {"lobe", "score"}
    candidates: dict[str, list[str]] = {name: [] for name in KNOWN}
    for header in headers:
        words = frozenset(re.findall(r"[a-z]+|%", header.lower().replace("%", "percent"))) - passed_over
        if words in meanings:
            candidates[meanings[words]].append(header)
    candidates |= {name: [header] for name, header in chosen.items()}
    problems = [f"no column {name} is known, only {', '.join(KNOWN)}" for name in chosen if name not in KNOWN]
    problems += [f"no column {header!r}" for header in chosen.values() if header not in headers]
    problems += [f"no column for {name}" for name in KNOWN if name not in OPTIONAL and not candidates[name]]
    problems += [f"several columns for {name}: {', '.join(found)}" for name, found in candidates.items() if found[1:]]
    if problems:
        raise InputError(
            f"{'; '.join(problems)}; got columns {', '.join(headers)}; state columns by --column NAME=HEADER"
        )
    return {name: found[0] for name, found in candidates.items() if found}


def read_score(text: str, *, percent: bool) -> str:
    """A score "0" to "5", or "" for a lobe without one; other text is given back, to be refused with the table.

    Args:
        text: the score, or with ``percent`` the percentage of lesion (a percent sign may follow), which becomes 0 for
            none, then 1 below 5 %, 2 below 25 %, 3 below 50 %, 4 below 75 %, 5 from there on.
        percent: the table gives percentages.
    """
    if text.lower() in _NO_SCORE:
        return ""
    number = _number(text.removesuffix("%") if percent else text)
    if percent:
        return str(score_of(number)) if 0 <= number <= 100 else f"{text} percent"
    return str(int(number)) if number in range(6) else text


def _number(text: str) -> float:
    """The number, with a decimal point or comma; -1 for other text."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return -1.0


def _read_rows(table: Path, options: TableOptions) -> dict[int, Row]:
    """The rows by line and by our names of columns, with scores, and with whole paths."""
    try:
        text = table.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text), delimiter=";" if ";" in first and "," not in first else ",", strict=True)
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except FileNotFoundError as error:
        raise InputError(f"{table}: no such file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table}: got {error}, expected comma-separated values in UTF-8") from error
    (_, header), *lines = [(line, values) for line, values in lines if any(values)] or [(1, [])]
    columns = recognise_columns(header, options.columns, percent=options.percent)
    unused = [name for name in header if name not in columns.values()]
    if unused:
        remark(f"{table}: columns not used: {', '.join(unused)}")
    ragged = [f"line {line}: got {len(values)} values" for line, values in lines if len(values) != len(header)]
    if ragged:
        raise InputError(f"{table}: {'; '.join(ragged)}; expected {len(header)} as in the first line")
    root = options.root or table.parent
    given = {line: {name: values[header.index(column)] for name, column in columns.items()} for line, values in lines}
    if options.percent:
        _remark_fractions([row[lobe.key] for row in given.values() for lobe in LOBES])
    return {line: _read_row(row, root, options) for line, row in given.items()}


def _remark_fractions(percentages: list[str]) -> None:
    most = max((_number(text.removesuffix("%")) for text in percentages), default=0.0)
    if 0 < most <= 1:
        remark(f"no percentage exceeds {most:g}; if these are fractions of a lobe, multiply them by 100")


def _read_row(given: Row, root: Path, options: TableOptions) -> Row:
    row = dict.fromkeys(KNOWN, "") | given
    paths = {name: os.path.abspath(root / row[name]) for name in FILES if row[name]}
    return row | paths | {lobe.key: read_score(row[lobe.key], percent=options.percent) for lobe in LOBES}


def _with_splits(table: Path, rows: dict[int, Row], *, seed: int, validation: int, test: int) -> dict[int, Row]:
    """The rows with the splits that the table states, or with drawn ones if it states none."""
    if any(row["split"] for row in rows.values()):
        if validation or test:
            raise InputError(f"{table} states splits; leave out --validation and --test, or its column split")
        _require_patients_in_one_split(table, rows)
        return rows
    names = {line: row["patient"] or row["case"] for line, row in rows.items()}
    drawn = split_of_cases(names.values(), seed=seed, validation=validation, test=test)
    return {line: row | {"split": drawn[names[line]]} for line, row in rows.items()}


def _require_patients_in_one_split(table: Path, rows: dict[int, Row]) -> None:
    splits: dict[str, dict[int, str]] = {}  # by line, of each patient
    for line, row in rows.items():
        if row["patient"]:
            splits.setdefault(row["patient"], {})[line] = row["split"]
    problems = [
        f"patient {patient} (lines {', '.join(map(str, by_line))}): got splits "
        f"{', '.join(sorted(set(by_line.values())))}, expected one for all scans of a patient"
        for patient, by_line in splits.items()
        if len(set(by_line.values())) > 1
    ]
    if problems:
        raise all_problems(str(table), problems)


def _require_sound(table: Path, rows: dict[int, Row]) -> list[Case]:
    """Have `read_table` check the rows, as a table in which they stand on the same lines."""
    if not rows:
        raise InputError(f"{table}: got no case, expected a line for each")
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(KNOWN))[list(COLUMNS)]
    frame = frame.reindex(range(2, 1 + max(rows, default=1)), fill_value="")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / TABLE
        write_text(path, frame.to_csv(index=False, lineterminator="\n"))
        try:
            return read_table(path.parent)
        except InputError as error:
            raise InputError(str(error).replace(str(path), str(table))) from error


def _relative_to(out: Path, row: Row) -> Row:
    """The row with paths relative to a directory, so that both can be moved together."""
    paths = {name: Path(row[name]) for name in FILES if row[name]}
    return row | {
        name: Path(os.path.relpath(path.parent.resolve() / path.name, out.resolve())).as_posix()
        for name, path in paths.items()
    }


def _summarise(frame: pd.DataFrame, out: Path) -> None:
    scores = Counter(frame[[lobe.key for lobe in LOBES]].to_numpy().ravel().tolist())
    counts = ", ".join(f"{score}: {scores[str(score)]}" for score in range(6))
    splits = ", ".join(f"{count} {split}" for split, count in frame["split"].value_counts().items())
    remark(f"{len(frame)} cases ({splits}) in {out}\nlobes by score: {counts}; without a score: {scores['']}")
