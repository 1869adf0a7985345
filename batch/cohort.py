"""All cases of an output folder together: severity.csv and the picture of the cohort."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel, ValidationError

from batch.errors import InputError
from batch.results import SEVERITY_FILE, write_whole

TABLE_FILE = "severity.csv"
PICTURE_FILE = "cohort.png"
LOBE_KEYS = {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}
COLUMNS = ("case", *(f"{key}_{what}" for key in LOBE_KEYS.values() for what in ("percent", "score")), "total_score")

_HIGHEST_SCORE = 5
_SCORE_COLOURS = ("#f7f7f7", "#fee8c8", "#fdbb84", "#fc8d59", "#d7301f", "#7f0000")
_ABSENT_COLOUR = "#9ecae1"
_MOST_NAMED_ROWS = 80


class _Lobe(BaseModel):
    label: int
    percent: float | None
    score: int | None


class Severity(BaseModel):
    """What of a severity.json goes into the table."""

    lobes: list[_Lobe]
    total_score: int | None


def collect(folder: Path, *, without: Collection[str] = ()) -> dict[str, Severity]:
    """Write severity.csv and cohort.png of all cases in a folder, wherever they were computed.

    Args:
        folder: has a folder with severity.json for each case.
        without: cases that are left out: what lies there is not the result of their inputs.

    Returns:
        The severity by case; without any, an earlier table is emptied and an earlier picture removed.

    Raises:
        InputError: a severity.json is not what it should be; the others are written nevertheless.
    """
    cases: dict[str, Severity] = {}
    damaged: list[InputError] = []
    for path in sorted(folder.glob(f"[!.]*/{SEVERITY_FILE}")):
        if path.parent.name in without:
            continue
        try:
            cases[path.parent.name] = _read(path)
        except InputError as error:
            damaged.append(error)
    if cases or (folder / TABLE_FILE).exists():
        write_whole(folder / TABLE_FILE, _table(cases).encode())
    if cases:
        write_whole(folder / PICTURE_FILE, _picture(cases))
    else:
        (folder / PICTURE_FILE).unlink(missing_ok=True)
    if damaged:
        raise damaged[0]
    return cases


def _read(path: Path) -> Severity:
    try:
        severity = Severity.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: got {first['msg']}, expected a report of severity; fetch the case again") from error
    if [lobe.label for lobe in severity.lobes] != list(LOBE_KEYS):
        raise InputError(f"{path}: got other lobes than {', '.join(LOBE_KEYS.values())}; fetch the case again")
    return severity


def _table(cases: dict[str, Severity]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, severity in cases.items():
        cells: list[str | int | None] = []
        for lobe in severity.lobes:
            cells += ["" if lobe.percent is None else f"{lobe.percent:.3f}", lobe.score]
        writer.writerow([name, *cells, severity.total_score])
    return text.getvalue()


def _picture(cases: dict[str, Severity]) -> bytes:
    """A PNG: the score of each lobe of each case, the worst case on top, and how the total scores are distributed."""
    ordered = sorted(cases, key=lambda name: (-_total(cases[name]), name))
    totals = [_total(cases[name]) for name in ordered]
    rows = len(ordered)
    row_inches = 0.22 if rows <= _MOST_NAMED_ROWS else 0.22 * _MOST_NAMED_ROWS / rows
    rows_inches = max(0.6, rows * row_inches)
    figure = Figure(figsize=(9, 3.6 + rows_inches), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1), height_ratios=(1.9, rows_inches))
    _draw_distribution(figure.add_subplot(grid[0, :]), totals)
    scores = figure.add_subplot(grid[1, 0])
    _draw_scores(scores, ordered, cases)
    _draw_totals(figure.add_subplot(grid[1, 1], sharey=scores), totals)
    png = io.BytesIO()
    with matplotlib.rc_context({"font.size": 9}):
        figure.savefig(png, dpi=110, format="png")
    return png.getvalue()


def _total(severity: Severity) -> float:
    """The total score; below all others where a lobe is absent, so that there is none."""
    return -1 if severity.total_score is None else severity.total_score


def _draw_distribution(axes: Axes, totals: Sequence[float]) -> None:
    known = [total for total in totals if total >= 0]
    axes.hist(known, bins=np.arange(-0.5, 5 * _HIGHEST_SCORE + 1).tolist(), color=_SCORE_COLOURS[3], edgecolor="white")
    axes.set_xlabel("total score (0 to 25)")
    axes.set_ylabel("cases")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    unknown = len(totals) - len(known)
    note = f", {unknown} without a total for an absent lobe" if unknown else ""
    axes.set_title(f"{len(totals)} cases{note}; for research, not for diagnosis", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scores(axes: Axes, names: Sequence[str], cases: dict[str, Severity]) -> None:
    rows = [[math.nan if lobe.score is None else lobe.score for lobe in cases[name].lobes] for name in names]
    colours = ListedColormap(list(_SCORE_COLOURS)).with_extremes(bad=_ABSENT_COLOUR)
    norm = Normalize(-0.5, _HIGHEST_SCORE + 0.5)
    axes.imshow(np.ma.masked_invalid(rows), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(LOBE_KEYS)), [key.upper() for key in LOBE_KEYS.values()])
    if len(names) <= _MOST_NAMED_ROWS:
        axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names], fontsize=8)
    else:
        axes.set_ylabel("cases, the most affected on top")
        axes.set_yticks([])
    meaning = [Patch(facecolor=colour, edgecolor="gray", label=str(k)) for k, colour in enumerate(_SCORE_COLOURS)]
    meaning.append(Patch(facecolor=_ABSENT_COLOUR, edgecolor="gray", label="absent"))
    axes.legend(
        handles=meaning,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(meaning),
        frameon=False,
        fontsize=8,
        handlelength=1.0,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
    axes.set_title("score of each lobe", loc="left", fontsize=10, pad=24)


def _draw_totals(axes: Axes, totals: Sequence[float]) -> None:
    axes.barh(range(len(totals)), [max(0, total) for total in totals], color=_SCORE_COLOURS[3])
    axes.set_xlim(0, 5 * _HIGHEST_SCORE)
    axes.set_title("total score", loc="left", fontsize=10, pad=24)
    axes.tick_params(left=False, labelleft=False)
    axes.spines[["top", "right"]].set_visible(False)
