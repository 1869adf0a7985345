from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from evaluation.comparison import judge_methods
from evaluation.report.overlays import EMPTY, overlays, telling_slice


def judged(reference, methods):
    return judge_methods(reference_directory=reference, methods=methods, against=None, resample=False, seed=0)


def test_worst_and_best_by_the_mean_of_all_methods(with_cts, methods) -> None:
    drawn = overlays(judged(with_cts, methods))
    assert [(overlay.case, overlay.ious) for overlay in drawn["worst"]] == [
        ("b", {"good": 1.0, "poor": 0.0}),
        ("a", {"good": 1.0, "poor": 0.25}),
    ]
    assert drawn["best"] == []  # each scan is drawn once


def test_the_picture_has_a_panel_for_the_reference_and_each_method(with_cts, methods) -> None:
    drawn = overlays(judged(with_cts, methods))["worst"][1]
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(drawn.png)))
    # The scan is 3.2 mm high and 3.5 mm wide; above it is a line of titles.
    panel = picture.shape[1] / 3
    assert picture.shape[0] == pytest.approx(panel * 3.2 / 3.5 + 0.3 * 150, abs=2)
    colours = picture[..., :3].max(axis=-1) - picture[..., :3].min(axis=-1) > 0.2
    assert [colours[:, int(panel * n) : int(panel * (n + 1))].any() for n in range(3)] == [True, True, True]


def test_nothing_is_drawn_without_cts(reference, methods) -> None:
    assert overlays(judged(reference, methods)) == {"worst": [], "best": []}


def test_says_which_slice_is_shown(with_cts, methods) -> None:
    drawn = overlays(judged(with_cts, methods))["worst"]
    # Of the reference's 4 and 2 voxels most lie in the first slice; scan b has only a false voxel in the fifth.
    assert [(overlay.case, overlay.slice_number, overlay.slices) for overlay in drawn] == [("b", 5, 6), ("a", 1, 6)]


@pytest.fixture
def panels(monkeypatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *rest, **options: (drawn.append(self), save(self, *rest, **options))
    )
    return drawn


def test_a_methods_panel_shows_the_reference_dashed_or_that_it_is_empty(with_cts, methods, panels) -> None:
    overlays(judged(with_cts, methods))
    for figure, dashed, words in (
        (panels[0], [0, 0, 0], [[EMPTY], [EMPTY], []]),
        (panels[1], [0, 1, 1], [[], [], []]),
    ):
        assert [sum(is_dashed(lines) for lines in axes.collections) for axes in figure.axes] == dashed
        assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == words


def is_dashed(lines: LineCollection) -> bool:
    return any(dashes is not None for _, dashes in lines.get_linestyle())


def test_the_slice_with_most_of_the_first_mask_that_has_any() -> None:
    empty, mask = np.zeros((4, 3, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
    mask[1, 0, 0] = mask[3, 0, :2] = 1
    assert telling_slice([mask, empty]) == telling_slice([empty, mask]) == 3
    assert telling_slice([empty]) == 2
