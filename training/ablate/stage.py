"""The stage: row by row, each kept when it is finished; then tables and figures of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

from algorithm.errors import InputError
from algorithm.model import SUBTYPE_TABLE, sha256
from algorithm.subtypes import ReferenceComponents
from training.ablate.figure import draw_figure
from training.ablate.measures import measure
from training.ablate.predictions import make_predictor
from training.ablate.rows import NETWORKS, Row, compared_rows, table_rows
from training.ablate.slices import draw_slices, pictured_cases, save_slice, slice_path
from training.ablate.tables import markdown_a, markdown_b, read_per_scan, table_a, table_b
from training.cases import TABLE, Case, of_split, read_cases, read_scan
from training.files import write_json, write_text
from training.parallel import console
from training.stages import BASIS, Run, is_done, sha256_of_results
from training.subtypes import vote_rules

PER_SCAN = "per_scan.csv"


def ablate(run: Run, folder: Path) -> dict[str, Any]:
    """Compare every row on the test cases with reference lesions, on each CT's own grid.

    Writes per_scan.csv, table_a and table_b (.csv and .md), figure.png and slices.png, and a folder per row. Rows that
    are regression networks of their own are trained there; a finished row is not done again.

    Returns:
        ``test_cases``, ``m`` (comparisons in table b), ``rows`` (table b) and ``subtypes`` (table a).

    Raises:
        InputError: no test case has reference lesions, a stage that a row needs is not done, a step of the method
            is off in the settings, or a row was begun on another basis.
    """
    test = of_split(read_cases(run.data), "test")
    cases = [case for case in test if case.lesions is not None]
    if not cases:
        raise InputError(
            f"{run.data}: got no test case with reference lesions, expected some to compare with; fill the column "
            "lesions of test cases in cases.csv"
        )
    rows = table_rows(run.config)
    bases = [_basis(run, row) for row in rows]  # all, before any work
    for row, basis in zip(rows, bases, strict=True):
        _finish_row(run, row, folder / row.slug, basis, cases)
    notes = _note_on_cases(test) + _note_on_batches(run, rows)
    return _report(run, folder, rows, cases, notes)


def claim(folder: Path, basis: dict[str, Any]) -> None:
    """Begin a folder, or go on with one that was begun on the same basis.

    Args:
        folder: made if need be.
        basis: what the content of the folder comes from; kept in basis.json.

    Raises:
        InputError: the folder was begun on another basis.
    """
    is_done(folder, basis)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / BASIS, basis)


def _basis(run: Run, row: Row) -> dict[str, Any]:
    """What a row's values come from: asks for every stage that it needs."""
    stages = (*row.needs, "subtypes")
    return {
        "settings": None if row.settings is None else row.settings.model_dump(mode="json"),
        "pseudo": run.config.pseudo.model_dump(mode="json"),
        "seed": run.config.seed,
        "data_sha256": sha256((run.data / TABLE).read_bytes()),
        "stages_sha256": {stage: sha256_of_results(run.record(stage)) for stage in stages},
    }


def _finish_row(run: Run, row: Row, folder: Path, basis: dict[str, Any], cases: Sequence[Case]) -> None:
    claim(folder, basis)
    pictured = {case.name for case in pictured_cases(cases)}
    if all(path.is_file() for path in (folder / PER_SCAN, *(slice_path(folder, name) for name in pictured))):
        return
    components, rules = ReferenceComponents.read(run.folder("subtypes") / SUBTYPE_TABLE), vote_rules(run)
    predict = make_predictor(run, row, folder)
    values = []
    for case in track(cases, row.name, console=console):
        scan = read_scan(case)
        lesions = predict(case, scan)
        measures = measure(case, scan, lesions, components, rules)
        values.append({"row": row.name, "case": case.name, **measures})
        if case.name in pictured:
            save_slice(folder, case, scan, lesions)
    write_text(folder / PER_SCAN, pd.DataFrame(values).to_csv(index=False))


def _report(run: Run, folder: Path, rows: Sequence[Row], cases: Sequence[Case], notes: str) -> dict[str, Any]:
    header, *lines = [line for row in rows for line in _lines(folder / row.slug / PER_SCAN)]
    write_text(folder / PER_SCAN, "".join([header, *(line for line in lines if line != header)]))
    per_scan = read_per_scan(folder / PER_SCAN)
    compared, seed = compared_rows(rows), run.config.seed
    entries_a, entries_b = table_a(per_scan, seed=seed), table_b(per_scan, compared, seed=seed)
    texts = {
        "table_a": markdown_a(entries_a),
        "table_b": markdown_b(entries_b, m=len(compared)) + notes,
    }
    for name, entries in (("table_a", entries_a), ("table_b", entries_b)):
        write_text(folder / f"{name}.csv", pd.DataFrame(entries).to_csv(index=False))
        write_text(folder / f"{name}.md", texts[name])
        console.print(texts[name], soft_wrap=True)
    draw_figure(per_scan, entries_b, folder / "figure.png", m=len(compared))
    draw_slices(rows, pictured_cases(cases), per_scan, folder)
    return {"test_cases": len(cases), "m": len(compared), "rows": entries_b, "subtypes": entries_a}


def _note_on_cases(test: Sequence[Case]) -> str:
    """That scores of test cases are not compared, as the cases have no reference lesions, where that is so."""
    left_out = [case for case in test if case.lesions is None and case.scores]
    lobes = sum(len(case.scores) for case in left_out)
    note = f"\nLeft out, kappa included: {len(left_out)} test cases without reference lesions, {lobes} scored lobes.\n"
    return note if left_out else ""


def _note_on_batches(run: Run, rows: Sequence[Row]) -> str:
    """That rows learnt from batches of several processes, and others from one's, where that is so."""
    several = {stage: count for stage in NETWORKS if (count := run.record(stage)["processes"]) > 1}
    if not several:
        return ""
    listed = ", ".join(f"{stage} {count}" for stage, count in several.items())
    alone = ", ".join(row.name for row in rows if row.settings is not None)
    return f"\nBatches are as many times larger as there were processes: {listed}; {alone}: 1.\n"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)
