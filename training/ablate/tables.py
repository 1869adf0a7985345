"""From the values of all scans to the paper's Table II (a) and (b), with their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algorithm.lobes import LOBES
from algorithm.report import or_dash
from evaluation.agreement import (
    CATEGORIES,
    linear_weighted_kappa,
    score_table,
    scores_from_percentages,
)
from evaluation.bootstrap import kappa_interval
from evaluation.metrics import SUBTYPES
from evaluation.significance import PairedTest, bonferroni, wilcoxon_signed_rank
from evaluation.summary import LOWEST_BORDERS_PERCENT
from training.ablate.rows import CAM_REFINED, CONTEXT, SUPERVISED

IOU_SUFFIXES = {"overall": "", **{subtype: f"_{subtype}" for subtype in SUBTYPES.values()}}
ROWS_A = {CAM_REFINED: CAM_REFINED, CONTEXT: "dRAM full (+ context)", SUPERVISED: SUPERVISED}
KAPPA_HEADER = ("kappa (95 % CI over lobes)", "CI over scans", "kappa at 0.5 %", "kappa at 0 %", "agreement")
KAPPA_NOTE = (
    "Kappa: predicted score 1 begins at 1 % of a lobe, or where the column says so (at 0 %: with any lesion). The "
    "interval over lobes takes them as independent and is somewhat too narrow; the one over scans redraws whole scans "
    "(bootstrap).\n"
)
NO_TEST = PairedTest(n=0, n_nonzero=0, median_difference=None, statistic=None, p=None)

Entry = dict[str, Any]


def read_per_scan(path: Path) -> pd.DataFrame:
    """Read the values of scans: a line per row and scan, with columns ``row``, ``case`` and those of `measure`."""
    names = {"row": str, "case": str}  # a case may be called 007 or NA
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])


def table_b(per_scan: pd.DataFrame, compared: Sequence[str], *, seed: int) -> list[Entry]:
    """Lesion IoU and score agreement of every row.

    Args:
        per_scan: a line per row and scan, with columns ``row``, ``case`` and those of `measure`.
        compared: the rows that are tested against `CONTEXT`; their number is Bonferroni's m.
        seed: of the bootstrap.

    Returns:
        An entry per row, in the order of ``per_scan``: mean, median and pooled IoU (pooled: of the voxels of all scans
        together, None without any lesion), the scans in which the row has no lesion, kappa with its intervals over
        lobes and over scans and at each of `LOWEST_BORDERS_PERCENT`, and for the compared rows the two-sided Wilcoxon
        signed-rank test of their IoU against `CONTEXT`'s, with the median of row - `CONTEXT`.
    """
    entries = []
    for row, values in per_scan.groupby("row", sort=False):
        entry: Entry = {"row": row, "scans": len(values), **_ious(values), **_kappa(values, seed=seed)}
        test = _test(per_scan, "iou", str(row)) if row in compared else NO_TEST
        entry["median_difference"] = _rounded(test.median_difference)
        entry["p"] = _significant(test.p)
        entry["p_bonferroni"] = _significant(bonferroni(test.p, comparisons=len(compared)))
        entries.append(entry)
    return entries


def table_a(per_scan: pd.DataFrame, *, seed: int) -> list[Entry]:
    """IoU of all lesions and of each subtype, and score agreement, of three methods.

    A scan counts for a subtype if the reference or the prediction holds it; in the pooled IoU every voxel of all scans
    counts alike. The baseline is tested against the full method in each of the four columns of mean IoU, over the
    scans where both have a value: Bonferroni's m is 4.

    Args:
        per_scan: as for `table_b`.
        seed: of the bootstrap.
    """
    entries = []
    for row, name in ROWS_A.items():
        values = per_scan[per_scan["row"] == row]
        entry: Entry = {"row": name}
        for key, suffix in IOU_SUFFIXES.items():
            column = f"iou{suffix}"
            p = _test(per_scan, column, row).p if row == CAM_REFINED else None
            entry[f"{key}_iou"] = _rounded(values[column].mean())
            entry[f"{key}_pooled_iou"] = _pooled(values, suffix)
            entry[f"{key}_scans"] = int(values[column].count())
            entry[f"{key}_p_bonferroni"] = _significant(bonferroni(p, comparisons=len(IOU_SUFFIXES)))
        entries.append(entry | _kappa(values, seed=seed))
    return entries


def markdown_b(table: Sequence[Entry], *, m: int) -> str:
    """`table_b` for people."""
    lines = [
        [
            entry["row"],
            or_dash(entry["mean_iou"], ".3f"),
            or_dash(entry["median_iou"], ".3f"),
            or_dash(entry["pooled_iou"], ".3f"),
            str(entry["empty_predictions"]),
            *_kappa_texts(entry),
            or_dash(entry["median_difference"], "+.3f"),
            or_dash(entry["p"], ".2g"),
            or_dash(entry["p_bonferroni"], ".2g"),
        ]
        for entry in table
    ]
    header = ["row", "mean IoU", "median IoU", "pooled IoU", "empty", *KAPPA_HEADER]
    note = (
        f"{table[0]['scans']} scans, {table[0]['empty_references']} of them without a lesion in the reference; "
        f"{table[0]['lobes']} scored lobes. Difference and p: two-sided Wilcoxon signed-rank test of the IoU per scan "
        f"against {CONTEXT!r}, Bonferroni m = {m}. Empty: scans in which the row has no lesion; where the reference "
        f"has none either, IoU is 1. {KAPPA_NOTE}"
    )
    return markdown([*header, "median difference", "p", f"p × {m}"], lines) + "\n" + note


def markdown_a(table: Sequence[Entry]) -> str:
    """`table_a` for people."""
    lines = [
        [
            entry["row"],
            *(_iou_text(entry, key) for key in IOU_SUFFIXES),
            *_kappa_texts(entry),
        ]
        for entry in table
    ]
    header = ["method", *(key.replace("_", "-") for key in IOU_SUFFIXES), *KAPPA_HEADER]
    baseline = table[0]
    p_values = {key.replace("_", "-"): or_dash(baseline[f"{key}_p_bonferroni"], ".2g") for key in IOU_SUFFIXES}
    tests = ", ".join(f"{name} {p}" for name, p in p_values.items())
    note = (
        "Mean IoU over the n scans in which the reference or the method holds the subtype; pooled: IoU of the voxels "
        "of all scans together. "
        f"{baseline['row']} against {ROWS_A[CONTEXT]}, two-sided Wilcoxon signed-rank test, p times m = "
        f"{len(IOU_SUFFIXES)}: {tests}. {KAPPA_NOTE}"
    )
    return markdown(header, lines) + "\n" + note


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _iou_text(entry: Entry, key: str) -> str:
    mean, pooled = (or_dash(entry[f"{key}_{kind}"], ".3f") for kind in ("iou", "pooled_iou"))
    return f"{mean} (n = {entry[f'{key}_scans']}), pooled {pooled}"


def _pooled(values: pd.DataFrame, suffix: str) -> float | None:
    """IoU of the voxels of all scans together; None where there is none."""
    common = values[f"common_voxels{suffix}"].sum()
    union = values[f"reference_voxels{suffix}"].sum() + values[f"predicted_voxels{suffix}"].sum() - common
    return _rounded(common / union) if union else None


def _ious(values: pd.DataFrame) -> Entry:
    return {
        "mean_iou": _rounded(values["iou"].mean()),
        "median_iou": _rounded(values["iou"].median()),
        "pooled_iou": _pooled(values, ""),
        "empty_references": int((values["reference_voxels"] == 0).sum()),
        "empty_predictions": int((values["predicted_voxels"] == 0).sum()),
    }


def _kappa(values: pd.DataFrame, *, seed: int) -> Entry:
    """Agreement over all scored lobes of all scans."""
    reference, percent = (
        values[[f"{kind}_{lobe.key}" for lobe in LOBES]].to_numpy(dtype=float) for kind in ("reference", "percent")
    )
    scored = np.isfinite(reference) & np.isfinite(percent)
    scores = reference[scored].astype(int).tolist()
    kappas = {
        name: linear_weighted_kappa(scores, scores_from_percentages(percent[scored], lowest_border=border).tolist())
        for name, border in LOWEST_BORDERS_PERCENT.items()
    }
    by_scan = [
        score_table(reference[scan, lobes], scores_from_percentages(percent[scan, lobes]))
        for scan, lobes in enumerate(scored)
        if lobes.any()
    ]
    over_scans = kappa_interval(np.array(by_scan, dtype=np.int64).reshape(-1, CATEGORIES, CATEGORIES), seed=seed)
    kappa = kappas["kappa"]
    return {
        "lobes": kappa.n,
        **{name: _rounded(value.kappa) for name, value in kappas.items()},
        "kappa_low": _rounded(kappa.ci_low),
        "kappa_high": _rounded(kappa.ci_high),
        "kappa_scans_low": _rounded(over_scans.low),
        "kappa_scans_high": _rounded(over_scans.high),
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


def _kappa_texts(entry: Entry) -> list[str]:
    """What stands below `KAPPA_HEADER`."""
    over_lobes, over_scans = (
        "-" if entry[f"{name}_low"] is None else f"({entry[f'{name}_low']:.3f}, {entry[f'{name}_high']:.3f})"
        for name in ("kappa", "kappa_scans")
    )
    first, *others = (or_dash(entry[name], ".3f") for name in LOWEST_BORDERS_PERCENT)
    return [
        first if over_lobes == "-" else f"{first} {over_lobes}",
        over_scans,
        *others,
        entry["agreement"] or "-",
    ]
