"""From the numbers of all scans to those of a method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import CATEGORIES, LOWEST_BORDER_PERCENT, Kappa, linear_weighted_kappa, score_table
from evaluation.bootstrap import kappa_interval, mean_interval
from evaluation.measures import MEASURES, TARGETS
from evaluation.metrics import LOBES
from evaluation.scoring import ScanScore
from evaluation.totals import intraclass_correlation, r_squared

LOWEST_BORDERS_PERCENT = {
    "kappa": LOWEST_BORDER_PERCENT,
    "kappa_border_0_5_percent": 0.5,
    "kappa_border_0_percent": 0.0,
}
"""Where score 1 begins, by the name under which kappa is given for it."""

Numbers = dict[str, Any]


def aggregate(scans: Sequence[ScanScore], *, seed: int = 0) -> Numbers:
    """Nested dictionaries that end in finite numbers, or in None where a number is undefined.

    Args:
        scans: at least one.
        seed: of the bootstrap.

    Returns:
        `iou` and every other measure by target, each as `summarise` gives it; IoU also `pooled`, of the voxels of all
        scans taken together (None without any). `lobe_percent_error` and `lobe_percent_absolute_error` by lobe, and as
        `mean_of_lobes` of each scan. `kappa` for three borders between scores 0 and 1, `total_score`, and `scans`.
    """
    numbers: Numbers = {
        measure: {
            target: summarise((scan.measures[measure][target] for scan in scans), seed=seed) for target in TARGETS
        }
        for measure in MEASURES
    }
    for target in TARGETS:
        numbers["iou"][target]["pooled"] = _pooled_iou(scans, target)
    errors = [scan.percent_errors for scan in scans]
    absolute = [{lobe: None if error is None else abs(error) for lobe, error in scan.items()} for scan in errors]
    return {
        **numbers,
        "lobe_percent_error": _by_lobe(errors, seed=seed),
        "lobe_percent_absolute_error": _by_lobe(absolute, seed=seed),
        **{name: _kappa_numbers(scans, border, seed=seed) for name, border in LOWEST_BORDERS_PERCENT.items()},
        "total_score": _total_numbers(scans, seed=seed),
        "scans": {
            "n": len(scans),
            "n_empty_reference": sum(scan.lesions.reference == 0 for scan in scans),
            "n_empty_prediction": sum(scan.lesions.prediction == 0 for scan in scans),
        },
    }


def summarise(values: Iterable[float | None], *, seed: int) -> Numbers:
    """Describe one value a scan.

    Returns:
        `mean`, `median`, `std` (of the sample) and the bootstrap interval of the mean (`ci_low`, `ci_high`), all of the
        `n_valid` values that are defined, of `n`. None where there are too few: none, or fewer than two for the last
        three.
    """
    every = list(values)
    defined = [value for value in every if value is not None]
    low, high = mean_interval(defined, seed=seed)
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "median": float(np.median(defined)) if defined else None,
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "ci_low": low,
        "ci_high": high,
        "n_valid": len(defined),
        "n": len(every),
    }


def severity_kappa(scans: Sequence[ScanScore], lowest_border: float = LOWEST_BORDER_PERCENT) -> Kappa:
    """Agreement of the predicted with the reference scores over all scored lobes of all scans."""
    pairs = [pair for scan in scans for pair in scan.score_pairs(lowest_border)]
    return linear_weighted_kappa([reference for reference, _ in pairs], [predicted for _, predicted in pairs])


def severity_table(scans: Iterable[ScanScore]) -> NDArray[np.int64]:
    """Lobes by reference score (rows) and predicted score (columns), shape (6, 6)."""
    table: NDArray[np.int64] = _tables([scan.score_pairs() for scan in scans]).sum(axis=0)
    return table


def _kappa_numbers(scans: Sequence[ScanScore], lowest_border: float, *, seed: int) -> Numbers:
    kappa = severity_kappa(scans, lowest_border)
    by_scan = [pairs for scan in scans if (pairs := scan.score_pairs(lowest_border))]
    intervals = {
        "naive_bootstrap": kappa_interval(_tables([[pair] for pairs in by_scan for pair in pairs]), seed=seed),
        "scan_bootstrap": kappa_interval(_tables(by_scan), seed=seed),
    }
    return {
        "value": kappa.kappa,
        "standard_error": kappa.standard_error,
        "ci_low": kappa.ci_low,
        "ci_high": kappa.ci_high,
        **{name: {"ci_low": interval.low, "ci_high": interval.high} for name, interval in intervals.items()},
        "n": kappa.n,
        "n_scans": len(by_scan),
    }


def _tables(groups: Sequence[Sequence[tuple[int, int]]]) -> NDArray[np.int64]:
    """A table of scores for each group of pairs, (groups, 6, 6)."""
    tables = [score_table([first for first, _ in pairs], [second for _, second in pairs]) for pairs in groups]
    return np.stack(tables) if tables else np.zeros((0, CATEGORIES, CATEGORIES), dtype=np.int64)


def _total_numbers(scans: Sequence[ScanScore], *, seed: int) -> Numbers:
    totals = [(scan.reference_total, scan.predicted_total) for scan in scans]
    pairs = np.array([pair for pair in totals if None not in pair], dtype=np.float64).reshape(-1, 2)
    errors = [None if first is None or second is None else float(abs(second - first)) for first, second in totals]
    return {
        "absolute_error": summarise(errors, seed=seed),
        "r_squared": r_squared(pairs[:, 0], pairs[:, 1]),
        "icc_2_1": intraclass_correlation(pairs),
        "n": len(pairs),
    }


def _by_lobe(scans: Sequence[dict[str, float | None]], *, seed: int) -> Numbers:
    numbers: Numbers = {lobe: summarise((scan[lobe] for scan in scans), seed=seed) for lobe in LOBES.values()}
    known = [[value for value in scan.values() if value is not None] for scan in scans]
    numbers["mean_of_lobes"] = summarise((float(np.mean(values)) if values else None for values in known), seed=seed)
    return numbers


def _pooled_iou(scans: Sequence[ScanScore], target: str) -> float | None:
    union = sum(scan.overlaps[target].union for scan in scans)
    return sum(scan.overlaps[target].intersection for scan in scans) / union if union else None
