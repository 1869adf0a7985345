"""The command `compare`: several methods on one reference, as numbers, tables and a report to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.comparison import Comparison, judge_methods
from evaluation.errors import InputError
from evaluation.files import json_text, write_files
from evaluation.report.page import html_report
from evaluation.report.tables import all_tables
from evaluation.scoring import ScanScore


def parse_methods(texts: Sequence[str]) -> dict[str, Path]:
    """Read `NAME=DIR` arguments.

    Raises:
        InputError: one is not of that form, names no folder, or two share a name.
    """
    methods: dict[str, Path] = {}
    for text in texts:
        name, separator, directory = text.partition("=")
        if not (name and separator and directory):
            raise InputError(f"--method: got {text!r}, expected NAME=DIR")
        if name in methods:
            raise InputError(f"--method: got the name {name} twice, expected one folder a method")
        if not Path(directory).is_dir():
            raise InputError(f"--method: got {text!r}, expected an existing folder after the =")
        methods[name] = Path(directory)
    return methods


def compare_methods(
    *,
    reference_directory: Path,
    methods: Mapping[str, Path],
    out: Path,
    against: str | None = None,
    resample: bool = False,
    seed: int = 0,
) -> Comparison:
    """Judge every method on every scan and write `scans.csv`, `metrics.json`, `tables.md`, `tables.tex`, `report.html`.

    Args:
        reference_directory: the reference, see `reference.read_reference`.
        methods: folder of each method, see `comparison.find_masks`.
        out: folder for the files; made if need be.
        against: test only the pairs with this method in them. None: every pair.
        resample: bring masks from another grid onto the reference's by the nearest label.
        seed: of the bootstrap.

    Returns:
        The comparison. Its `metrics` are the content of metrics.json: for each of `methods` its `aggregates`,
        `agreement`, `score_table` (rows: reference score) and `resampled_cases`; `comparisons`, see
        `pairwise.paired_tests`; `seed` and `version`.

    Raises:
        InputError: there is no method, or the reference, a CT or a mask is missing or unusable, or a scan is too large
            for the memory. Nothing is written then.
    """
    if not methods:
        raise InputError("--method: got none, expected at least one NAME=DIR")
    if against is not None and against not in methods:
        raise InputError(f"--against: got {against!r}, expected one of the methods: {', '.join(methods)}")
    comparison = judge_methods(
        reference_directory=reference_directory, methods=methods, against=against, resample=resample, seed=seed
    )
    tables = all_tables(comparison)
    texts = {
        "scans.csv": scan_table(comparison.scans).to_csv(index=False),
        "tables.md": "\n".join(table.markdown() for table in tables.values()),
        "tables.tex": "\n".join(table.latex() for table in tables.values()),
        "report.html": html_report(comparison, tables),
        "metrics.json": json_text(comparison.metrics),
    }
    write_files(out, texts)
    return comparison


def scan_table(scans: Mapping[str, Sequence[ScanScore]]) -> pd.DataFrame:
    """One row a method and scan; empty cells where a number is undefined."""
    rows = []
    for name, scores in scans.items():
        for scan in scores:
            row: dict[str, Any] = {"method": name, "case": scan.case}
            for measure, values in scan.measures.items():
                row |= {f"{measure}_{target}": value for target, value in values.items()}
            predicted_scores = scan.predicted_scores()
            for lobe in scan.reference_percent:
                row[f"{lobe}_reference_percent"] = scan.reference_percent[lobe]
                row[f"{lobe}_predicted_percent"] = scan.predicted_percent[lobe]
                row[f"{lobe}_percent_error"] = scan.percent_errors[lobe]
                row[f"{lobe}_reference_score"] = scan.reference_scores[lobe]
                row[f"{lobe}_predicted_score"] = predicted_scores[lobe]
            row["total_reference_score"] = scan.reference_total
            row["total_predicted_score"] = scan.predicted_total
            row["is_resampled"] = scan.is_resampled
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({column: "Int64" for column in table if str(column).endswith("_score")})
