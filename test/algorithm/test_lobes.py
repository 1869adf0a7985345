from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LOBES, check_lobes


def test_numbering():
    assert {lobe.label: lobe.key for lobe in LOBES} == {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_becomes_uint8_on_the_cts_grid(ct, lobes, dtype):
    nearly = replace(lobes.geometry, origin_xyz_mm=tuple(value + 1e-5 for value in lobes.geometry.origin_xyz_mm))
    got = check_lobes(Volume(lobes.array.astype(dtype), nearly), ct)
    assert got.array.dtype == np.uint8
    assert np.array_equal(got.array, lobes.array)
    assert got.geometry == ct.geometry


def test_one_lobe_is_enough(ct, lobes):
    array = np.where(lobes.array == 3, lobes.array, 0)
    assert np.array_equal(np.unique(check_lobes(lobes.with_array(array), ct).array), [0, 3])


@pytest.mark.parametrize(("label", "shown"), [(6, "6"), (-1, "-1"), (14, "14"), (256, "256"), (257, "257")])
def test_unknown_label(ct, lobes, label, shown):
    array = lobes.array.astype(np.int32)
    array[0, 0, 0] = label
    with pytest.raises(InputError, match=f"holds labels {shown}, expected 1 left upper lobe, .*TotalSegmentator"):
        check_lobes(lobes.with_array(array), ct)


def test_many_unknown_labels_are_cut_short(ct, lobes):
    array = np.arange(lobes.array.size, dtype=np.int32).reshape(lobes.array.shape)
    with pytest.raises(InputError, match=r"holds labels 6, 7, 8, 9, 10, 11, 12, 13, \.\.\., expected"):
        check_lobes(lobes.with_array(array), ct)


def test_empty(ct, lobes):
    with pytest.raises(InputError, match="the lobe mask is empty, expected 1 left upper lobe"):
        check_lobes(lobes.with_array(np.zeros_like(lobes.array)), ct)


def test_other_grid(ct, lobes):
    moved = replace(lobes.geometry, origin_xyz_mm=(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="the lobe mask is not on the CT's grid: got origin in mm"):
        check_lobes(Volume(lobes.array, moved), ct)
