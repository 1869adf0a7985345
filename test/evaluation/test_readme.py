"""The README's table of empty masks, cell by cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import evaluation
from evaluation.measures import MEASURES, scan_measures

SPACING = (2.0, 1.0, 0.5)
COLUMNS = {"both empty": (0, 0), "reference only": (5, 0), "prediction only": (0, 7)}
"""Voxels of the reference and of the prediction."""

VALUES = {"0": 0.0, "1": 1.0, "null": None, "volume of the reference": 0.005, "volume of the prediction": 0.007}


def cells() -> list[tuple[str, str, str, str]]:
    text = Path(evaluation.__file__).with_name("README.md").read_text()
    lines = text[text.index("| measure | target |") :].splitlines()
    header, rows = lines[0], lines[2 : 2 + 2 * len(MEASURES)]
    names = [name.strip() for name in header.strip("|").split("|")][2:]
    table = []
    for row in rows:
        measure, target, *values = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        table += [(measure, target, name, value) for name, value in zip(names, values, strict=True)]
    return table


def labels(count: int) -> np.ndarray:
    array = np.zeros((2, 3, 4), dtype=np.uint8)
    array.flat[:count] = 2
    return array


def test_the_table_is_complete() -> None:
    expected = {(m, t, c) for m in MEASURES for t in ("overall", "subtype") for c in COLUMNS}
    assert {cell[:3] for cell in cells()} == expected


@pytest.mark.parametrize(("measure", "target", "column", "value"), cells())
def test_cell(measure, target, column, value) -> None:
    reference, prediction = COLUMNS[column]
    measures, _ = scan_measures(labels(reference), labels(prediction), spacing_zyx_mm=SPACING)
    got = measures[measure]["overall" if target == "overall" else "consolidation"]
    expected = VALUES[value]
    assert got is None if expected is None else got == pytest.approx(expected)
