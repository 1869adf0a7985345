"""The figures of a comparison, each as SVG text that stands in an HTML page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from evaluation.agreement import CATEGORIES
from evaluation.comparison import Comparison
from evaluation.metrics import LOBES, OVERALL
from evaluation.report.formats import number
from evaluation.scoring import ScanScore

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, told apart by the colour-blind too."""

INK, LINES = "#1c2733", "#c9d1d9"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a method's name is a name
    "svg.hashsalt": "evaluation",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINES,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.8,
}
_WIDTH_INCHES = 10.6  # of the page's text
_PANEL_INCHES = 3.3
_COLUMNS = 3
_TITLE_LETTERS = 34


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour a method, used in every figure."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(methods)}


def iou_figure(comparison: Comparison) -> str:
    """Overall IoU of every scan, one line a scan from method to method, and each method's mean with its interval."""
    with mpl.rc_context(_STYLE):
        methods = comparison.methods
        figure = Figure(figsize=(_WIDTH_INCHES, 3.9), layout="constrained")
        axes = figure.add_subplot()
        values = np.array([[scan.measures["iou"][OVERALL] for scan in comparison.scans[name]] for name in methods])
        axes.plot(values, color="#aab4bf", linewidth=0.8, alpha=0.7, zorder=1)
        for position, (name, colour) in enumerate(method_colours(methods).items()):
            axes.scatter(np.full(values.shape[1], position), values[position], s=16, color=colour, alpha=0.75, zorder=2)
            iou = comparison.metrics["methods"][name]["aggregates"]["iou"][OVERALL]
            mean, low, high = iou["mean"], iou["ci_low"], iou["ci_high"]
            ends = None if low is None else [[mean - low], [high - mean]]
            axes.errorbar(
                [position + 0.08], [mean], yerr=ends, fmt="D", markersize=5, color=colour, capsize=4, zorder=3
            )
        axes.set(ylabel="IoU of all lesions", ylim=(-0.03, 1.03), xlim=(-0.3, len(methods) - 0.7))
        axes.set_xticks(range(len(methods)), [fill(name, 20) for name in methods])
        axes.grid(axis="y")
        return svg(figure)


def score_figure(comparison: Comparison) -> str:
    """Lobes by reference score and predicted score, one panel a method."""
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(len(comparison.methods))
        for axes, name in zip(panels, comparison.methods, strict=True):
            method = comparison.metrics["methods"][name]
            _draw_scores(axes, np.array(method["score_table"]))
            kappa = method["aggregates"]["kappa"]["value"]
            axes.set_title(fill(name if kappa is None else f"{name}: kappa {number(kappa)}", _TITLE_LETTERS))
        return svg(figure)


def involvement_figure(comparison: Comparison) -> str:
    """Bland-Altman plot of the involvement of every lobe, one panel a method."""
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(len(comparison.methods))
        colours = method_colours(comparison.methods)
        pairs = {name: _percentages(comparison.scans[name]) for name in comparison.methods}
        limits = {name: _limits(points[:, 1] - points[:, 0]) for name, points in pairs.items()}
        shown = np.concatenate([*(points[:, 1] - points[:, 0] for points in pairs.values()), *limits.values(), [0.0]])
        margin = max(0.08 * float(np.ptp(shown)), 0.5)
        for axes, name in zip(panels, comparison.methods, strict=True):
            _draw_differences(axes, pairs[name], limits[name], colour=colours[name])
            axes.set_title(fill(name, _TITLE_LETTERS), pad=20)
            axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
        return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as an SVG element, the same for the same data."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=(_WIDTH_INCHES, rows * _PANEL_INCHES), layout=layout)
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def _draw_scores(axes: Axes, table: NDArray[np.int64]) -> None:
    axes.imshow(np.sqrt(table), cmap="Blues", vmin=0, vmax=float(np.sqrt(table.max(initial=1))), aspect="auto")
    for (reference, predicted), count in np.ndenumerate(table):
        if count:
            is_dark = count > 0.4 * table.max()
            axes.text(predicted, reference, str(count), ha="center", va="center", color="white" if is_dark else INK)
    axes.set(xlabel="predicted score", ylabel="reference score", xticks=range(CATEGORIES), yticks=range(CATEGORIES))
    axes.set_xticks(np.arange(CATEGORIES - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(CATEGORIES - 1) + 0.5, minor=True)
    axes.grid(which="minor")
    axes.tick_params(which="both", length=0)


def _percentages(scans: Sequence[ScanScore]) -> NDArray[np.float64]:
    """(reference, predicted) involvement of every lobe that is there, (n, 2)."""
    pairs = ((scan.reference_percent[lobe], scan.predicted_percent[lobe]) for scan in scans for lobe in LOBES.values())
    return np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)


def _limits(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the differences, and the lower and upper limit of agreement; empty below two differences."""
    if len(differences) < 2:
        return np.zeros(0)
    mean, half = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
    return np.array([mean, mean - half, mean + half])


def _draw_differences(axes: Axes, pairs: NDArray[np.float64], limits: NDArray[np.float64], *, colour: str) -> None:
    axes.scatter(pairs.mean(axis=1), pairs[:, 1] - pairs[:, 0], s=14, color=colour, alpha=0.55, linewidths=0)
    axes.axhline(0, color=LINES, linewidth=0.9)
    for level, style in zip(limits, ("-", "--", "--"), strict=False):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=style)
    if limits.size:
        mean, low, high = (number(level, decimals=1, signed=True) for level in limits)
        text = f"mean {mean}, limits {low} to {high}"
        axes.text(0.5, 1.02, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5)
    axes.set(xlabel="mean of both (% of lobe)", ylabel="predicted − reference\n(percent points)")
    axes.grid(axis="y")
