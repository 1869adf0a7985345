from __future__ import annotations

from xml.etree import ElementTree

import pytest

from evaluation.comparison import Comparison, judge_methods
from evaluation.report.figures import involvement_figure, iou_figure, score_figure

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


def test_the_confusion_matrices_show_every_count(comparison) -> None:
    for method in comparison.metrics["methods"].values():
        method["score_table"][3][4] = 77
    words = texts(score_figure(comparison))
    assert words.count("77") == 2
    assert not any("kappa None" in word for word in words)


def test_the_limits_of_agreement_by_hand(comparison) -> None:
    # good differs nowhere; poor by -10, -10, 10 and 5 percent points in ten lobes: mean -0.5, SD sqrt(322.5 / 9).
    words = texts(involvement_figure(comparison))
    half = 1.96 * (322.5 / 9) ** 0.5
    assert "mean -0.5" in words
    assert f"limits {-0.5 - half:+.1f} to {-0.5 + half:+.1f}" in words
    assert "limits +0.0 to +0.0" in words


def test_one_scan_has_no_interval(comparison) -> None:
    scans = {name: scores[:1] for name, scores in comparison.scans.items()}
    for method in comparison.metrics["methods"].values():
        method["aggregates"]["iou"]["overall"] |= {"ci_low": None, "ci_high": None}
    one = Comparison(comparison.cases, comparison.masks, scans, comparison.metrics, None)
    assert iou_figure(one).startswith("<svg")
