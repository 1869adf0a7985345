"""Several methods on one reference: a table per scan, their metrics, and paired tests between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from evaluation.errors import InputError
from evaluation.masks import Mask, read_mask
from evaluation.metrics import SUBTYPES
from evaluation.reference import read_reference
from evaluation.report import write_json, write_text
from evaluation.scoring import ScanScore, aggregate, score_scan, severity_kappa
from evaluation.significance import bonferroni, wilcoxon_signed_rank


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


def compare_methods(*, reference_directory: Path, methods: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Judge every method on every scan and write `scans.csv` and `metrics.json`.

    Args:
        reference_directory: the reference, see `reference.read_reference`.
        methods: folder of each method, with `<case>.mha` or `<case>/lesions.mha` for every case.
        out: folder for the two files; made if need be.

    Returns:
        The content of metrics.json: for each of `methods` its `aggregates` and `agreement`; and `comparisons`, the
        two-sided Wilcoxon signed-rank test of overall IoU for each of the m pairs of methods, with its p-value
        before and after Bonferroni's correction by m.

    Raises:
        InputError: there is no method, or the reference or a mask is missing or unusable.
    """
    if not methods:
        raise InputError("--method: got none, expected at least one NAME=DIR")
    scans: dict[str, list[ScanScore]] = {name: [] for name in methods}
    for case, reference in read_reference(reference_directory).items():
        lesions, lobes = reference.read()
        for name, directory in methods.items():
            prediction = _read_prediction(name, directory, case=case, lesions=lesions)
            scans[name].append(score_scan(reference, lesions=lesions, lobes=lobes, prediction=prediction))
    metrics = {
        "methods": {
            name: {"aggregates": aggregate(scores), "agreement": severity_kappa(scores).word}
            for name, scores in scans.items()
        },
        "comparisons": _paired_tests(scans),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scans.csv", _scan_table(scans).to_csv(index=False))
    write_json(out / "metrics.json", metrics)
    return metrics


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """The methods' metrics as a table for people, with the paired tests as its caption."""
    table = Table("method", "scans", "IoU", *SUBTYPES.values(), "kappa (95 % CI)", "agreement", title="Methods")
    for name, method in metrics["methods"].items():
        aggregates = method["aggregates"]
        kappa = aggregates["kappa"]
        interval = "" if kappa["ci_low"] is None else f" ({kappa['ci_low']:.3f}, {kappa['ci_high']:.3f})"
        ious = [_text(aggregates["iou"][key]["mean"]) for key in ("overall", *SUBTYPES.values())]
        count = str(aggregates["scans"]["n"])
        table.add_row(name, count, *ious, _text(kappa["value"]) + interval, method["agreement"] or "-")
    comparisons = metrics["comparisons"]
    table.caption = "\n".join(
        f"{pair['first']} - {pair['second']}: median {_text(pair['median_difference'], signed=True)}, "
        f"p {_text(pair['p'])}, times m = {comparisons['m']}: {_text(pair['p_bonferroni'])} (n = {pair['n_nonzero']})"
        for pair in comparisons["pairs"]
    )
    return table


def _read_prediction(name: str, directory: Path, *, case: str, lesions: Mask) -> Mask:
    candidates = [directory / f"{case}.mha", directory / case / "lesions.mha"]
    found = [path for path in candidates if path.is_file()]
    if len(found) != 1:
        raise InputError(
            f"method {name}, case {case}: got {len(found)} masks, expected either {case}.mha or {case}/lesions.mha"
        )
    try:
        return read_mask(found[0], highest_label=max(SUBTYPES), grid=lesions.grid)
    except InputError as error:
        raise InputError(f"method {name}, case {case}: {error}") from error


def _paired_tests(scans: Mapping[str, Sequence[ScanScore]]) -> dict[str, Any]:
    pairs = list(combinations(scans, 2))
    tests = []
    for first, second in pairs:
        test = wilcoxon_signed_rank(
            [scan.lesions.iou for scan in scans[first]], [scan.lesions.iou for scan in scans[second]]
        )
        corrected = bonferroni(test.p, comparisons=len(pairs))
        tests.append({"first": first, "second": second, **asdict(test), "p_bonferroni": corrected})
    return {"test": "Wilcoxon signed-rank, two-sided", "metric": "iou.overall", "m": len(pairs), "pairs": tests}


def _scan_table(scans: Mapping[str, Sequence[ScanScore]]) -> pd.DataFrame:
    """One row a method and scan; empty cells where a metric is undefined."""
    rows = []
    for name, scores in scans.items():
        for scan in scores:
            row: dict[str, Any] = {"method": name, "case": scan.case}
            row |= {f"iou_{key}": value for key, value in scan.ious.items()}
            row["dice"] = scan.lesions.dice
            for lobe, error in scan.percent_errors.items():
                reference_score, predicted_score = scan.score_pairs.get(lobe, (None, None))
                row[f"{lobe}_percent_error"] = error
                row[f"{lobe}_reference_score"] = reference_score
                row[f"{lobe}_predicted_score"] = predicted_score
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({column: "Int64" for column in table if str(column).endswith("_score")})


def _text(value: float | None, *, signed: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if signed else ''}.3g}"
