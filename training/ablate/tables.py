"""From the values of all scans to the paper's Table II (a) and (b), with their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from algorithm.lobes import LOBES
from evaluation.agreement import linear_weighted_kappa
from evaluation.metrics import SUBTYPES
from evaluation.significance import PairedTest, bonferroni, wilcoxon_signed_rank
from training.ablate.rows import CAM_REFINED, CONTEXT, SUPERVISED

IOU_COLUMNS = {"overall": "iou", **{subtype: f"iou_{subtype}" for subtype in SUBTYPES.values()}}
ROWS_A = {CAM_REFINED: CAM_REFINED, CONTEXT: "dRAM full (+ context)", SUPERVISED: SUPERVISED}
NO_TEST = PairedTest(n=0, n_nonzero=0, median_difference=None, statistic=None, p=None)

Entry = dict[str, Any]


def table_b(per_scan: pd.DataFrame, compared: Sequence[str]) -> list[Entry]:
    """Lesion IoU and score agreement of every row.

    Args:
        per_scan: a line per row and scan, with columns ``row``, ``case`` and those of `measure`.
        compared: the rows that are tested against `CONTEXT`; their number is Bonferroni's m.

    Returns:
        An entry per row, in the order of ``per_scan``: mean, median and pooled IoU (pooled: of the voxels of all scans
        together, None without any lesion), the scans in which the row has no lesion, kappa, and for the compared rows
        the two-sided Wilcoxon signed-rank test of their IoU against `CONTEXT`'s, with the median of row - `CONTEXT`.
    """
    entries = []
    for row, values in per_scan.groupby("row", sort=False):
        entry: Entry = {"row": row, "scans": len(values), **_ious(values), **_kappa(values)}
        test = _test(per_scan, "iou", str(row)) if row in compared else NO_TEST
        entry["median_difference"] = _rounded(test.median_difference)
        entry["p"] = _significant(test.p)
        entry["p_bonferroni"] = _significant(bonferroni(test.p, comparisons=len(compared)))
        entries.append(entry)
    return entries


def table_a(per_scan: pd.DataFrame) -> list[Entry]:
    """IoU of all lesions and of each subtype, and score agreement, of three methods.

    A scan counts for a subtype if the reference or the prediction holds it. The baseline is tested against the full
    method in each of the four IoU columns, over the scans where both have a value: Bonferroni's m is 4.

    Args:
        per_scan: as for `table_b`.
    """
    entries = []
    for row, name in ROWS_A.items():
        values = per_scan[per_scan["row"] == row]
        entry: Entry = {"row": name}
        for key, column in IOU_COLUMNS.items():
            p = _test(per_scan, column, row).p if row == CAM_REFINED else None
            entry[f"{key}_iou"] = _rounded(values[column].mean())
            entry[f"{key}_scans"] = int(values[column].count())
            entry[f"{key}_p_bonferroni"] = _significant(bonferroni(p, comparisons=len(IOU_COLUMNS)))
        entries.append(entry | _kappa(values))
    return entries


def markdown_b(table: Sequence[Entry], *, m: int) -> str:
    """`table_b` for people."""
    lines = [
        [
            entry["row"],
            _text(entry["mean_iou"]),
            _text(entry["median_iou"]),
            _text(entry["pooled_iou"]),
            str(entry["empty_predictions"]),
            _kappa_text(entry),
            entry["agreement"] or "-",
            _text(entry["median_difference"], "+.3f"),
            _text(entry["p"], ".2g"),
            _text(entry["p_bonferroni"], ".2g"),
        ]
        for entry in table
    ]
    header = ["row", "mean IoU", "median IoU", "pooled IoU", "empty", "kappa (95 % CI)", "agreement"]
    note = (
        f"{table[0]['scans']} scans, {table[0]['empty_references']} of them without a lesion in the reference; "
        f"{table[0]['lobes']} scored lobes. Difference and p: two-sided Wilcoxon signed-rank test of the IoU per scan "
        f"against {CONTEXT!r}, Bonferroni m = {m}. Empty: scans in which the row has no lesion; where the reference "
        "has none either, IoU is 1. The interval of kappa takes lobes as independent and is somewhat too narrow.\n"
    )
    return _markdown([*header, "median difference", "p", f"p × {m}"], lines) + "\n" + note


def markdown_a(table: Sequence[Entry]) -> str:
    """`table_a` for people."""
    lines = [
        [
            entry["row"],
            *(f"{_text(entry[f'{key}_iou'])} (n = {entry[f'{key}_scans']})" for key in IOU_COLUMNS),
            _kappa_text(entry),
            entry["agreement"] or "-",
        ]
        for entry in table
    ]
    header = ["method", *(key.replace("_", "-") for key in IOU_COLUMNS), "kappa (95 % CI)", "agreement"]
    baseline = table[0]
    tests = ", ".join(f"{key.replace('_', '-')} {_text(baseline[f'{key}_p_bonferroni'], '.2g')}" for key in IOU_COLUMNS)
    note = (
        "Mean IoU over the n scans in which the reference or the method holds the subtype. "
        f"{baseline['row']} against {ROWS_A[CONTEXT]}, two-sided Wilcoxon signed-rank test, p times m = "
        f"{len(IOU_COLUMNS)}: {tests}.\n"
    )
    return _markdown(header, lines) + "\n" + note


def _ious(values: pd.DataFrame) -> Entry:
    common = values["common_voxels"].sum()
    union = values["reference_voxels"].sum() + values["predicted_voxels"].sum() - common
    return {
        "mean_iou": _rounded(values["iou"].mean()),
        "median_iou": _rounded(values["iou"].median()),
        "pooled_iou": _rounded(common / union) if union else None,
        "empty_references": int((values["reference_voxels"] == 0).sum()),
        "empty_predictions": int((values["predicted_voxels"] == 0).sum()),
    }


def _kappa(values: pd.DataFrame) -> Entry:
    """Agreement over all scored lobes of all scans."""
    reference, predicted = (
        values[[f"{side}_{lobe.key}" for lobe in LOBES]].to_numpy(dtype=float).ravel()
        for side in ("reference", "predicted")
    )
    scored = np.isfinite(reference) & np.isfinite(predicted)
    kappa = linear_weighted_kappa(reference[scored].astype(int).tolist(), predicted[scored].astype(int).tolist())
    return {
        "lobes": kappa.n,
        "kappa": _rounded(kappa.kappa),
        "kappa_low": _rounded(kappa.ci_low),
        "kappa_high": _rounded(kappa.ci_high),
        "agreement": kappa.word,
    }


def _test(per_scan: pd.DataFrame, column: str, row: str) -> PairedTest:
    """A row against `CONTEXT` on the scans where both have a value."""
    values = per_scan.pivot(index="case", columns="row", values=column)[[row, CONTEXT]].dropna()
    return wilcoxon_signed_rank(values[row].tolist(), values[CONTEXT].tolist())


def _rounded(value: float | None) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), 4)


def _significant(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.3g}")


def _kappa_text(entry: Entry) -> str:
    if entry["kappa_low"] is None:
        return _text(entry["kappa"])
    return f"{entry['kappa']:.3f} ({entry['kappa_low']:.3f}, {entry['kappa_high']:.3f})"


def _text(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
