"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.bootstrap import RESAMPLES
from evaluation.comparison import Comparison
from evaluation.metrics import OVERALL
from evaluation.report.figures import involvement_figure, iou_figure, method_colours, score_figure
from evaluation.report.formats import interval, number
from evaluation.report.overlays import SUBTYPE_COLOURS, overlays
from evaluation.report.tables import TARGET_NAMES, Table

TEMPLATE = "page.html.j2"


def html_report(comparison: Comparison, tables: Mapping[str, Table]) -> str:
    """Lay out a comparison as an HTML page without scripts and without anything from outside.

    Args:
        comparison: what to show; the scans with a CT are drawn.
        tables: see `tables.all_tables`.

    Raises:
        InputError: a CT is unreadable.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval}
    return environment.get_template(TEMPLATE).render(
        colours=method_colours(comparison.methods),
        methods=comparison.metrics["methods"],
        overall=OVERALL,
        reference=comparison.reference,
        seed=comparison.metrics["seed"],
        version=comparison.metrics["version"],
        resamples=RESAMPLES,
        tables=tables,
        scans=scan_rows(comparison),
        figures={
            "iou": iou_figure(comparison),
            "scores": score_figure(comparison),
            "involvement": involvement_figure(comparison),
        },
        overlays=overlays(comparison),
        subtypes=[(TARGET_NAMES[name], colour) for name, colour in SUBTYPE_COLOURS.items()],
    )


def scan_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """What the page lists of each scan: its `case`, `reference_total`, and `ious` and `totals` by method."""
    return [
        {
            "case": case,
            "reference_total": comparison.cases[case].total,
            "ious": [comparison.scans[name][place].lesions.iou for name in comparison.methods],
            "totals": [comparison.scans[name][place].predicted_total for name in comparison.methods],
        }
        for place, case in enumerate(comparison.cases)
    ]
