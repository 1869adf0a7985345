from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluation.comparison import Comparison, judge_methods
from evaluation.report import figures
from evaluation.report.figures import _draw_scores, involvement_figure, iou_figure, score_figure

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def comparison(reference, methods) -> Comparison:
    names = {"good": methods["good"], "cost in $ & $": methods["poor"]}
    return judge_methods(reference_directory=reference, methods=names, against=None, resample=False, seed=0)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", [iou_figure, score_figure, involvement_figure])
def test_a_figure_is_one_svg_that_names_every_method(comparison, draw) -> None:
    svg = draw(comparison)
    assert svg.startswith("<svg")
    assert svg == draw(comparison)
    assert any("good" in text for text in texts(svg))
    assert any("cost in $ & $" in text for text in texts(svg))


def test_rows_of_the_confusion_matrix_are_reference_scores() -> None:
    table = np.zeros((6, 6), dtype=np.int64)
    table[4, 1] = 7
    axes = Figure().add_subplot()
    _draw_scores(axes, table)
    (text,) = axes.texts
    assert (text.get_text(), text.get_position()) == ("7", (1, 4))
    assert axes.images[0].get_array()[4, 1] > 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted score", "reference score")


def test_the_confusion_matrices_show_every_count_and_kappa(comparison) -> None:
    good, poor = comparison.metrics["methods"].values()
    good["score_table"][3][4] = 77
    good["aggregates"]["kappa"]["value"] = None
    poor["aggregates"]["kappa"]["value"] = -0.0412
    words = texts(score_figure(comparison))
    assert words.count("77") == 1
    assert "good" in words  # nothing behind it
    assert any(word.endswith("kappa −0.041") for word in words)


def test_the_limits_of_agreement_by_hand(comparison) -> None:
    # good differs nowhere; poor by -10, -10, 10 and 5 percent points in ten lobes: mean -0.5, SD sqrt(322.5 / 9).
    words = texts(involvement_figure(comparison))
    # 1.96 SD = 11.73.
    assert "mean −0.5, limits −12.2 to +11.2" in words
    assert "mean 0.0, limits 0.0 to 0.0" in words
    assert {"predicted − reference", "(percent points)"} <= set(words)


def test_the_plots_of_differences_fit_the_data_and_share_their_range(comparison, monkeypatch) -> None:
    monkeypatch.setattr(figures, "svg", lambda figure: figure)
    ranges = [axes.get_ylim() for axes in involvement_figure(comparison).axes]
    assert ranges[0] == ranges[1]
    low, high = ranges[0]
    assert -15 < low < -12.2
    assert 11.2 < high < 14


def test_one_scan_has_no_interval(comparison) -> None:
    with_intervals = iou_figure(comparison)  # an error bar is a collection of lines
    scans = {name: scores[:1] for name, scores in comparison.scans.items()}
    for method in comparison.metrics["methods"].values():
        method["aggregates"]["iou"]["overall"] |= {"ci_low": None, "ci_high": None}
    one = replace(comparison, scans=scans)
    assert "LineCollection" in with_intervals
    assert "LineCollection" not in iou_figure(one)
