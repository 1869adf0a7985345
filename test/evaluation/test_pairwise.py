from __future__ import annotations

import pytest

from evaluation.measures import TARGETS
from evaluation.metrics import Overlap
from evaluation.pairwise import paired_tests
from evaluation.scoring import ScanScore


def scan(overall: float, mixed: float | None = None) -> ScanScore:
    ious = {target: None for target in TARGETS} | {"overall": overall, "mixed": mixed}
    lobes: dict = {}
    return ScanScore("a", {"iou": ious}, {"overall": Overlap(1, 1, 1)}, lobes, lobes, lobes, None)


SCANS = {
    "one": [scan(0.5, 0.1), scan(0.6, None), scan(0.7, 0.3)],
    "two": [scan(0.4, 0.2), scan(0.4, 0.5), scan(0.4, 0.5)],
    "three": [scan(0.5), scan(0.6), scan(0.7)],
}


def by_pair(**arguments) -> dict:
    tests = paired_tests(SCANS, **arguments)["pairs"]
    return {(test["first"], test["second"], test["target"]): test for test in tests}


def test_every_pair_and_how_many_there_are() -> None:
    assert paired_tests(SCANS)["m"] == {"overall": 3, "subtypes": 9}
    assert len(by_pair()) == 3 * 4


def test_by_hand() -> None:
    # Three differences on one side: p = 2 / 2^3.
    test = by_pair()["one", "two", "overall"]
    assert (test["n"], test["n_nonzero"], test["p"], test["rank_biserial"]) == (3, 3, 0.25, 1.0)
    assert (test["m"], test["p_bonferroni"]) == (3, 0.75)
    assert test["median_difference"] == pytest.approx(0.2)


def test_a_scan_without_a_value_is_left_out_on_both_sides() -> None:
    test = by_pair()["one", "two", "mixed"]
    assert (test["n"], test["n_left_out"], test["p"], test["p_bonferroni"]) == (2, 1, 0.5, 1.0)
    assert (by_pair()["two", "three", "mixed"]["n"], by_pair()["two", "three", "mixed"]["n_left_out"]) == (0, 3)
    assert by_pair()["one", "two", "overall"]["n_left_out"] == 0


def test_against_one_method() -> None:
    assert paired_tests(SCANS, against="two")["m"] == {"overall": 2, "subtypes": 6}
    assert {pair[:2] for pair in by_pair(against="two")} == {("one", "two"), ("two", "three")}
    assert by_pair(against="two")["one", "two", "overall"]["p_bonferroni"] == 0.5


def test_equal_methods_and_a_lone_one() -> None:
    test = by_pair()["one", "three", "overall"]
    assert (test["n_nonzero"], test["p"], test["p_bonferroni"], test["rank_biserial"]) == (0, None, None, None)
    assert paired_tests({"one": SCANS["one"]})["pairs"] == []
