from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from training.ablate.figure import draw_figure
from training.ablate.rows import CONTEXT, compared_rows, table_rows
from training.ablate.tables import table_b
from training.settings import TrainingConfig

LOBES = ("lul", "lll", "rul", "rll", "rml")
ROWS = table_rows(TrainingConfig())


def made_up() -> pd.DataFrame:
    """24 scans, in each of which `CONTEXT` is better than any other row: p is as long to write as it gets."""
    rng = np.random.default_rng(1)
    voxels = {"reference_voxels": 10, "predicted_voxels": 10, "common_voxels": 5}
    return pd.DataFrame(
        {
            "row": row.name,
            "case": str(case),
            "iou": 0.5 * rng.random() + 0.5 * (row.name == CONTEXT),
            **voxels,
            **{f"reference_{lobe}": rng.integers(6) for lobe in LOBES},
            **{f"percent_{lobe}": 100 * rng.random() ** 2 for lobe in LOBES},
        }
        for row in ROWS
        for case in range(24)
    )


@pytest.fixture(scope="module")
def per_scan() -> pd.DataFrame:
    return made_up()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("figure") / "figure.png"


@pytest.fixture(scope="module")
def drawn(per_scan, path) -> Figure:
    """The figure as it was saved, with its layout done."""
    figures = []

    class Kept(Figure):
        def savefig(self, *args, **kwargs):
            figures.append(self)
            super().savefig(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.ablate.figure.Figure", Kept)
        draw_figure(per_scan, table_b(per_scan, compared_rows(ROWS), seed=0), path, m=7)
    return figures[0]


def test_the_picture_is_fit_for_print(drawn, path):
    height, width, _ = imread(path).shape
    assert width == 2160 and height > 1000  # 7.2 inches at 300 dpi
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_every_row_has_its_points_and_an_upright_label(drawn, per_scan):
    iou, kappa = drawn.axes
    labels = iou.get_yticklabels()
    assert [label.get_text() for label in labels] == [row.name for row in ROWS]
    assert all(label.get_rotation() == 0 for label in labels)
    points = [c.get_offsets() for c in iou.collections if len(c.get_offsets()) == 24]
    for place, (row, xy) in enumerate(zip(ROWS, points, strict=True)):
        expected = per_scan[per_scan["row"] == row.name]["iou"]
        assert np.allclose(sorted(xy[:, 0]), sorted(expected)) and (xy[:, 1] == place).all()
    assert len(kappa.collections) == len(ROWS)


def test_no_text_covers_another(drawn):
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()  # places the labels at this resolution
    written = []
    for axes in drawn.axes:
        low, high = axes.get_xlim()
        written += [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        written += [*axes.texts, axes.xaxis.label, *([axes.get_legend()] if axes.get_legend() else [])]
    written += drawn.axes[0].get_yticklabels()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in written]
    assert len(boxes) > 40
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.width and b.width)
    assert all(drawn.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max) if box.width)


def test_an_undefined_kappa_does_not_stop_the_figure(tmp_path):
    per_scan = made_up()
    per_scan[[f"{side}_{lobe}" for side in ("reference", "percent") for lobe in LOBES]] = None
    table = table_b(per_scan, compared_rows(ROWS), seed=0)
    assert {entry["kappa"] for entry in table} == {None}
    draw_figure(per_scan, table, tmp_path / "figure.png", m=7)
    assert (tmp_path / "figure.png").stat().st_size > 0
