"""The lobes of one scan, with a report and a picture."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from algorithm import __version__
from algorithm.images import Volume, write_labels
from algorithm.lobe_segmenter import FoundLobes
from algorithm.lobes import LEFT, LOBES, RIGHT, lobe_volumes_ml
from algorithm.overview import draw_slice, lobe_handles, parts_of
from algorithm.report import FoundLobe, LobesReport
from algorithm.segmenter import LesionSegmenter

COLUMNS = 3
_SHARES = (0.3, 0.5, 0.7)  # of the way through the lungs, or through one lung


def write_lobes(segmenter: LesionSegmenter, ct: Volume, folder: Path) -> LobesReport:
    """Find the lobes of a scan, and write lobes.mha, lobes.json and lobes.png.

    Args:
        segmenter: a loaded model.
        ct: HU.
        folder: where to.

    Raises:
        InputError: there are no lungs, or the model cannot find lobes.
    """
    started = time.perf_counter()
    found = segmenter.find_lobes(ct)
    report = lobes_report(found, seconds=time.perf_counter() - started)
    write_labels(found.labels, folder / "lobes.mha")
    (folder / "lobes.json").write_text(report.model_dump_json(indent=2), encoding="utf-8")
    draw_lobes(ct, found.labels, folder / "lobes.png")
    return report


def lobes_report(found: FoundLobes, *, seconds: float) -> LobesReport:
    """Volume of each lobe, and what is implausible."""
    ml = lobe_volumes_ml(found.labels)
    return LobesReport(
        algorithm_version=__version__,
        source="lungmask" if found.source == "lungmask" else "model",
        lobes=[
            FoundLobe(
                name=lobe.name,
                label=lobe.label,
                volume_ml=ml[lobe.label],
                confidence=found.confidence.get(lobe.label),
            )
            for lobe in LOBES
        ],
        lungs_ml=sum(ml.values()),
        warnings=found.warnings,
        seconds=seconds,
    )


def draw_lobes(ct: Volume, lobes: Volume, path: Path) -> None:
    """Write a PNG with axial and coronal slices, and sagittal ones through either lung, which show the fissures.

    Args:
        ct: HU.
        lobes: lobe labels on the same grid, not empty.
        path: where the PNG goes.
    """
    parts = parts_of(ct, lobes, lobes.with_array(np.zeros(lobes.array.shape, dtype=np.uint8)))
    rows = [("axial", 0, parts.lobes > 0), ("coronal", 1, parts.lobes > 0)]
    rows += [
        (f"sagittal, {name} lung", 2, np.isin(parts.lobes, side)) for name, side in (("right", RIGHT), ("left", LEFT))
    ]
    figure = Figure(figsize=(3.6 * COLUMNS, 3.2 * len(rows) + 0.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for row, (name, axis, shown) in zip(figure.subplots(len(rows), COLUMNS), rows, strict=True):
        occupied = np.flatnonzero(shown.any(axis=tuple(a for a in range(3) if a != axis)))
        for axes, share in zip(row, _SHARES, strict=True):
            axes.set_axis_off()
            if occupied.size:
                draw_slice(axes, parts, axis, int(occupied[int(share * (occupied.size - 1))]))
                axes.set_title(name, fontsize=9)
    figure.legend(handles=lobe_handles(), loc="outside lower center", ncols=len(LOBES), frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
