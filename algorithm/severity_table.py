"""severity.csv: the percentages and scores of all cases in a folder, wherever they were computed."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ValidationError

from algorithm.lobes import LOBES
from algorithm.report import ModelIdentity

TABLE_FILE = "severity.csv"
SEVERITY_FILE = "severity.json"
COLUMNS = ("case", *(f"{lobe.key}_{what}" for lobe in LOBES for what in ("percent", "score")), "total_score")

log = logging.getLogger(__name__)


class _Lobe(BaseModel):
    label: int
    percent: float | None
    score: int | None


class Severity(BaseModel):
    """What of a severity.json is used here; a later version may hold more."""

    model: ModelIdentity | None = None
    precision: str = "fp32"
    lobes_source: str = "given"
    lobes: list[_Lobe]
    total_score: int | None


def write_table(out: Path, *, without: Collection[str] = ()) -> dict[str, str]:
    """Write severity.csv of all cases in a folder, wherever they were computed.

    Args:
        out: has a folder with severity.json for each case.
        without: cases that are left out: what lies there is of an earlier input.

    Returns:
        What is wrong with those that are left out, by case.
    """
    problems: dict[str, str] = {}
    makers: dict[tuple[ModelIdentity | None, str], list[str]] = {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path in sorted(out.glob(f"[!.]*/{SEVERITY_FILE}")):
        case = path.parent.name
        if case in without:
            continue
        try:
            severity = Severity.model_validate_json(path.read_bytes())
        except ValidationError:
            problems[case] = f"{path}: got no report of severity, expected what `segment` writes; delete it"
            continue
        if [lobe.label for lobe in severity.lobes] != [lobe.label for lobe in LOBES]:
            problems[case] = f"{path}: got other lobes than {', '.join(lobe.key for lobe in LOBES)}; delete it"
            continue
        cells: list[str | int | None] = []
        for lobe in severity.lobes:
            cells += ["" if lobe.percent is None else f"{lobe.percent:.3f}", lobe.score]
        writer.writerow([case, *cells, severity.total_score])
        makers.setdefault((severity.model, severity.precision), []).append(case)
    partial = out / f".{TABLE_FILE}.partial"
    partial.write_text(text.getvalue(), encoding="utf-8", newline="")
    partial.replace(out / TABLE_FILE)
    _warn_of_several(makers)
    return problems


def _warn_of_several(makers: dict[tuple[ModelIdentity | None, str], list[str]]) -> None:
    """Say which cases come from which model and precision, where a table holds several."""
    if len(makers) < 2:
        return
    parts = []
    for (model, precision), cases in makers.items():
        name = f"{model.name} {model.version} ({model.weights_sha256[:10]})" if model else "unknown model"
        listed = ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "")
        parts.append(f"{name} in {precision}: {len(cases)} ({listed})")
    log.warning("%s holds cases of several models or precisions: %s", TABLE_FILE, "; ".join(parts))
