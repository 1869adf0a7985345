from __future__ import annotations

import re

import pytest

from evaluation.comparison import Comparison, judge_methods
from evaluation.report.formats import interval, number, p_value, spread
from evaluation.report.tables import Table, all_tables, best_cells, star


@pytest.fixture
def comparison(reference, methods) -> Comparison:
    return judge_methods(reference_directory=reference, methods=methods, against="good", resample=False, seed=0)


def test_the_papers_table(comparison) -> None:
    table = all_tables(comparison)["paper"]
    assert list(table.header) == [
        "Method",
        "Overall",
        "Consolidation",
        "Ground-glass",
        "Mixed",
        "Kappa (analytic 95 % CI)",
        "Agreement",
    ]
    good, poor = table.rows
    n = ["\u00a0[2]", "\u00a0[1]", "\u00a0[1]", "\u00a0[0]"]
    assert good[:5] == ["good", *(a + b for a, b in zip(["1.000", "1.000", "1.000", "–"], n, strict=True))]
    n = ["\u00a0[2]", "\u00a0[2]", "\u00a0[1]", "\u00a0[1]"]
    assert poor[:5] == ["poor", *(a + b for a, b in zip(["0.125", "0.000", "0.500", "0.000"], n, strict=True))]
    kappa = comparison.metrics["methods"]["poor"]["aggregates"]["kappa"]
    assert kappa["ci_low"] < 0 < kappa["value"]
    assert poor[5] == f"{kappa['value']:.3f} (−{-kappa['ci_low']:.3f},\u00a0{kappa['ci_high']:.3f})"
    assert poor[6] == "fair"
    # Of consolidation poor has a second scan, where it invents it: nothing is best there.
    assert table.best == {(0, 1), (0, 3), (0, 5)}


def test_every_table_is_whole(comparison) -> None:
    for table in all_tables(comparison).values():
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)
        assert not any("None" in text or "nan" in text for row in table.rows for text in row)


def test_a_star_needs_significance_against_the_chosen_method(comparison) -> None:
    assert star(comparison, "poor", "overall") == ""
    comparison.metrics["comparisons"]["pairs"][0]["p_bonferroni"] = 0.0099
    assert star(comparison, "poor", "overall") == "*"
    assert star(comparison, "poor", "mixed") == ""
    assert star(comparison, "good", "overall") == ""


def test_the_highest_of_each_column_of_the_same_scans_is_best() -> None:
    one, other = frozenset("a"), frozenset("b")
    values = [[0.5, 0.1, None, 0.9], [0.4, 0.1, 0.2, 0.8]]
    assert best_cells(values, [[one] * 4] * 2) == {(0, 1), (0, 2), (1, 2), (0, 4)}
    assert best_cells(values, [[one] * 4, [one, one, one, other]]) == {(0, 1), (0, 2), (1, 2)}


def test_the_paired_tests_say_what_they_leave_out(comparison) -> None:
    table = all_tables(comparison)["tests"]
    assert [row[:4] for row in table.rows] == [
        ["good – poor", "Overall", "2 (2)", "0"],
        ["good – poor", "Consolidation", "1 (1)", "1"],
        ["good – poor", "Ground-glass", "1 (1)", "1"],
        ["good – poor", "Mixed", "0 (0)", "2"],
    ]
    assert table.rows[0][4] == "+0.875"


TABLE = Table("Title & more", ["Method", "50 %"], [["a_b|c", "1 ±\u00a02*"], ["d", "–"]], "Note.", frozenset({(0, 1)}))


def test_markdown() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[:1] + lines[2:6] == [
        "## Title & more",
        "| Method | 50 % |",
        "| --- | ---: |",
        "| a_b\\|c | **1 ±\u00a02\\*** |",
        "| d | – |",
    ]


def test_latex() -> None:
    text = TABLE.latex()
    assert r"\caption{Title \& more. Note.}" in text
    assert r"Method & 50 \% \\" in text
    assert r"a\_b|c & \textbf{1 $\pm$~2*} \\" in text
    assert r"\begin{tabular}{lr}" in text


@pytest.mark.parametrize("name", ["[ours]", "*ours"])
def test_a_name_is_no_argument_of_the_line_break_before_it(name) -> None:
    lines = Table("T", ["Method", "n"], [[name, "1"], ["b", "2"]], "").latex().splitlines()
    assert f"{{}}{name} & 1 \\\\" in lines
    assert r"b & 2 \\" in lines


def test_latex_has_nothing_that_needs_a_package(comparison) -> None:
    for table in all_tables(comparison).values():
        assert table.latex().isascii()
        assert not re.search(r"(?<!\\)[%#]", table.latex())


def test_numbers() -> None:
    assert (number(0.12345), number(-1.0, decimals=1, signed=True), number(None)) == ("0.123", "−1.0", "–")
    assert [number(value, decimals=1, signed=True) for value in (0.04, -0.04, 0.06, -0.06)] == [
        "0.0",
        "0.0",
        "+0.1",
        "−0.1",
    ]
    assert number(-0.04, decimals=1) == "0.0"
    assert interval({"ci_low": -0.1, "ci_high": 0.25}) == "(−0.100,\u00a00.250)"
    assert interval({"ci_low": None, "ci_high": None}) == "–"
    assert (p_value(0.0009), p_value(0.0123), p_value(None)) == ("<\u00a00.001", "0.012", "–")
    numbers = {"mean": 0.5, "std": 0.25, "n_valid": 3, "n": 4}
    assert spread(numbers) == "0.500\u00a0[3] ±\u00a00.250"
    assert spread(numbers, n=3, decimals=1) == "0.5 ±\u00a00.2"
    assert spread({"mean": None, "std": None, "n_valid": 0, "n": 4}) == "–"
