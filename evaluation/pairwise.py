"""Paired tests between methods on the same scans, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from evaluation.measures import TARGETS
from evaluation.metrics import OVERALL
from evaluation.scoring import ScanScore
from evaluation.significance import bonferroni, wilcoxon_signed_rank

TEST = "Wilcoxon signed-rank test of paired IoU, two-sided, scans without a difference dropped"
FAMILIES = {OVERALL: (OVERALL,), "subtypes": TARGETS[1:]}
"""Targets that are corrected together: the main question, and the three further ones."""


def paired_tests(scans: Mapping[str, Sequence[ScanScore]], *, against: str | None = None) -> dict[str, Any]:
    """Test the IoU of every pair of methods, overall and for each subtype.

    Args:
        scans: the same scans in the same order for each method.
        against: one of the methods: test only the pairs with it. None: every pair.

    Returns:
        `test`; `m`, the number of tests that Bonferroni's correction counts, for the overall IoU (one a pair of
        methods) and for the subtypes' (three a pair); and `pairs`, one entry a test. A scan enters a test of a subtype
        if both methods have a value for it; `n_left_out` says how many do not. Without the subtype in the reference
        that is every scan in which at most one of the methods invents it. The difference is first - second.
    """
    pairs = [pair for pair in combinations(scans, 2) if against is None or against in pair]
    m = {family: len(pairs) * len(targets) for family, targets in FAMILIES.items()}
    tests = [
        {"first": first, "second": second, "target": target, **_test(scans[first], scans[second], target, m[family])}
        for family, targets in FAMILIES.items()
        for first, second in pairs
        for target in targets
    ]
    return {"test": TEST, "m": m, "pairs": tests}


def _test(first: Sequence[ScanScore], second: Sequence[ScanScore], target: str, m: int) -> dict[str, Any]:
    values = [
        (one, other)
        for one_scan, other_scan in zip(first, second, strict=True)
        if (one := one_scan.measures["iou"][target]) is not None
        and (other := other_scan.measures["iou"][target]) is not None
    ]
    test = wilcoxon_signed_rank([one for one, _ in values], [other for _, other in values])
    return {
        **asdict(test),
        "n_left_out": len(first) - len(values),
        "m": m,
        "p_bonferroni": bonferroni(test.p, comparisons=m),
    }
