"""The figure of the comparison: IoU of every scan in every row, and score agreement, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.ablate.rows import CAM_RAW, CAM_REFINED, CONTEXT, SUPERVISED, THRESHOLD
from training.ablate.tables import Entry
from training.files import write_whole

GREY, ORANGE, GREEN, BLUE = "#6e6e6e", "#d55e00", "#009e73", "#0072b2"  # Okabe and Ito's, told apart by all
COLOURS = {THRESHOLD: GREY, CAM_RAW: ORANGE, CAM_REFINED: ORANGE, SUPERVISED: GREEN}
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
}
MEAN_MARK: dict[str, Any] = {"marker": "|", "s": 130, "color": "black", "linewidths": 2.0}
WIDTH_INCHES = 7.2  # two columns of print
COLUMNS = (1.09, 1.27)  # places of mean and p, in widths of the IoU axes


def draw_figure(per_scan: pd.DataFrame, table: Sequence[Entry], path: Path, *, m: int) -> None:
    """Write a PNG with a line per row.

    Left: the IoU of each scan as a point, joined across rows by a thin line, and the mean as a bar; beside it mean and
    p after Bonferroni's correction. Right: kappa of the lobe scores with its 95 % confidence interval over
    lobes.

    Args:
        per_scan: a line per row and scan, with columns ``row``, ``case`` and ``iou``.
        table: `table_b` of the same rows.
        path: where the PNG goes.
        m: comparisons that p is corrected for.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.1 + 0.3 * len(table)), layout="constrained")
        iou, kappa = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_iou(iou, per_scan, table)
        _write_columns(iou, table, m)
        _draw_kappa(kappa, table)
        for axes in (iou, kappa):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#dddddd", linewidth=0.5)
            axes.set_axisbelow(True)
        write_whole(path, lambda file: figure.savefig(file, format="png", dpi=300))


def _draw_iou(axes: Axes, per_scan: pd.DataFrame, table: Sequence[Entry]) -> None:
    names = [str(entry["row"]) for entry in table]
    values = per_scan.pivot(index="case", columns="row", values="iou")[names]
    places = range(len(names))
    opacity = min(0.6, 15 / len(values))
    for scan in values.to_numpy():
        axes.plot(scan, places, color="#999999", linewidth=0.5, alpha=opacity, zorder=1)
    for place, name in zip(places, names, strict=True):
        colour = COLOURS.get(name, BLUE)
        axes.scatter(values[name], [place] * len(values), s=9, color=colour, alpha=0.55, linewidths=0, zorder=2)
        axes.scatter(values[name].mean(), place, **MEAN_MARK, zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6))
    axes.set_xlabel(f"IoU with the reference lesions\n(p: Wilcoxon test against {CONTEXT}, Bonferroni-corrected)")
    axes.set_yticks(places, names)
    point = Line2D([], [], color="#999999", marker="o", markersize=3, linewidth=0.5, label="a scan")
    mean = axes.scatter([], [], **MEAN_MARK, label="mean")
    axes.legend(
        handles=[point, mean], loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.1
    )


def _write_columns(axes: Axes, table: Sequence[Entry], m: int) -> None:
    """Mean and corrected p of each row, right of the axes."""
    transform = axes.get_yaxis_transform()
    for x, title in zip(COLUMNS, ("mean", f"p × {m}"), strict=True):
        axes.text(x, -0.75, title, transform=transform, ha="center", va="bottom", fontweight="bold")
    for place, entry in enumerate(table):
        p = entry["p_bonferroni"]
        texts = (f"{entry['mean_iou']:.3f}", _p_text(p) if p is not None else "")
        for x, text in zip(COLUMNS, texts, strict=True):
            axes.text(x, place, text, transform=transform, ha="center", va="center_baseline")


def _draw_kappa(axes: Axes, table: Sequence[Entry]) -> None:
    for place, entry in enumerate(table):
        colour = COLOURS.get(entry["row"], BLUE)
        if entry["kappa"] is None:
            axes.text(0.02, place, "undefined", va="center", color=colour)
            continue
        if entry["kappa_low"] is not None:
            ends = (entry["kappa_low"], entry["kappa_high"])
            axes.plot(ends, (place, place), color=colour, linewidth=1.2, marker="|", markersize=6)
        axes.scatter(entry["kappa"], place, s=20, marker="s", color=colour)
    limits = [
        0.0,
        1.0,
        *(entry[key] for entry in table for key in ("kappa_low", "kappa_high") if entry[key] is not None),
    ]
    axes.set(xlim=(min(limits) - 0.02, max(limits) + 0.02))
    axes.set_xlabel("linear weighted kappa of lobe\nscores (95 % CI over lobes)")
    axes.axvline(0, color="black", linewidth=0.6)


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
