from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume, read_ct, read_labels, require_same_grid, write_labels
from algorithm.orientation import from_canonical, to_canonical

PERMUTATIONS = list(itertools.permutations(range(3)))
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))


def rotation(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    turn = np.eye(3)
    for axis, degrees in enumerate(degrees_xyz):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one, other = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[one, one] = step[other, other] = cosine
        step[one, other], step[other, one] = -sine, sine
        turn = turn @ step
    return turn


def oriented(
    order: tuple[int, int, int], signs: tuple[float, float, float], turn: np.ndarray, *, seed: int = 0
) -> Volume:
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    array = np.random.default_rng(seed).integers(-1000, 500, (3, 4, 5)).astype(np.int16)
    geometry = Geometry(array.shape, (2.5, 0.7, 0.9), (-101.3, 57.123456789, 1300.1), tuple((turn @ axes).ravel()))
    return Volume(array, geometry)


def positions_of_voxels(volume: Volume) -> dict[int, tuple[float, float, float]]:
    """Where each value lies in the patient, after SimpleITK; values are unique."""
    image = volume.to_sitk()
    return {
        int(value): image.TransformIndexToPhysicalPoint([int(x), int(y), int(z)])
        for (z, y, x), value in np.ndenumerate(volume.array)
    }


class TestOrientation:
    @pytest.mark.parametrize("order", PERMUTATIONS)
    @pytest.mark.parametrize("signs", SIGNS)
    @pytest.mark.parametrize("degrees", [(0.0, 0.0, 0.0), (5.0, -20.0, 11.0)])
    def test_there_and_back(self, order, signs, degrees):
        volume = oriented(order, signs, rotation(degrees))
        volume = volume.with_array(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
        canonical = to_canonical(volume)
        direction = np.reshape(canonical.geometry.direction, (3, 3))
        assert np.allclose(np.diag(direction), 1.0, atol=0.1)
        assert canonical.array.flags["C_CONTIGUOUS"]
        before, after = positions_of_voxels(volume), positions_of_voxels(canonical)
        assert all(np.allclose(before[value], after[value], atol=1e-9) for value in before)
        back = from_canonical(canonical, volume.geometry)
        assert back.geometry == volume.geometry
        assert back.array.flags["C_CONTIGUOUS"]
        assert np.array_equal(back.array, volume.array)

    @pytest.mark.parametrize("order", PERMUTATIONS)
    @pytest.mark.parametrize("signs", SIGNS)
    def test_agrees_with_simpleitk(self, order, signs):
        volume = oriented(order, signs, np.eye(3))
        expected = Volume.from_sitk(sitk.DICOMOrient(volume.to_sitk(), "LPS"))
        got = to_canonical(volume)
        assert np.array_equal(got.array, expected.array)
        assert got.geometry.spacing_zyx_mm == expected.geometry.spacing_zyx_mm
        assert np.allclose(got.geometry.origin_xyz_mm, expected.geometry.origin_xyz_mm)

    @given(
        st.sampled_from(PERMUTATIONS),
        st.sampled_from(SIGNS),
        st.tuples(*[st.floats(-180.0, 180.0)] * 3),
        st.integers(0, 10),
    )
    @settings(max_examples=60, deadline=None)
    def test_any_direction_comes_back_exactly(self, order, signs, degrees, seed):
        volume = oriented(order, signs, rotation(degrees), seed=seed)
        back = from_canonical(to_canonical(volume), volume.geometry)
        assert np.array_equal(back.array, volume.array)
        assert back.geometry == volume.geometry

    def test_canonical_stays_to_the_bit(self):
        volume = oriented((0, 1, 2), (1.0, 1.0, 1.0), np.eye(3))
        assert to_canonical(volume).geometry == volume.geometry

    def test_wrong_shape(self, ct, geometry):
        with pytest.raises(ValueError, match="canonical array of shape"):
            from_canonical(ct.with_array(ct.array[1:]), geometry)


class TestReadCt:
    @pytest.mark.parametrize("name", ["ct.mha", "ct.mhd", "ct.nii", "ct.nii.gz", "ct.nrrd"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_formats(self, ct, save, name, compressed):
        got = read_ct(save(ct, name, compressed=compressed))
        assert got.array.dtype == np.int16
        assert np.array_equal(got.array, ct.array)
        require_same_grid(got, ct, "copy")

    @pytest.mark.parametrize("name", ["ct.mha", "ct.nii.gz"])
    def test_upper_case_name(self, ct, save, name):
        path = save(ct, name)
        assert np.array_equal(read_ct(path.rename(path.with_name(name.upper()))).array, ct.array)

    def test_metaimage_keeps_geometry_to_the_bit(self, ct, save):
        assert read_ct(save(ct, "ct.mha")).geometry == ct.geometry

    def test_padding_is_clipped(self, ct, save):
        ct.array[0, 0, :2] = (-3024, -2000)
        assert read_ct(save(ct, "ct.mha")).array.min() == -1024

    @pytest.mark.parametrize(
        ("stored", "expected"), [(np.int32, np.int16), (np.float64, np.float32), (np.float32, np.float32)]
    )
    def test_types(self, ct, save, stored, expected):
        got = read_ct(save(ct.with_array(ct.array.astype(stored)), "ct.mha")).array
        assert got.dtype == expected
        assert np.array_equal(got, ct.array)

    def test_values_beyond_int16(self, ct, save):
        array = ct.array.astype(np.int32)
        array[0, 0, 0] = 40000
        assert read_ct(save(ct.with_array(array), "ct.mha")).array.max() == 40000

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4, 4), np.uint8), "8-bit values, expected Hounsfield units"),
            (np.full((4, 4, 4), -1000, np.int16), "-1000 in every voxel"),
            (np.arange(64, dtype=np.int16).reshape(4, 4, 4) * 4, r"windowed picture \(0 to 252\)"),
            (np.arange(64, dtype=np.uint16).reshape(4, 4, 4) * 60, "values 0 to 3780, none of them air"),
            (np.linspace(-2000, 0, 64).reshape(4, 4, 4).round(-3).clip(-2000, 0), None),
            (np.tile(np.array([-2000, 40, 80, 300], np.int16), 16).reshape(4, 4, 4), "-2000 to 300, none of them air"),
            (np.tile(np.array([np.nan, -900, 0, np.inf]), 16).reshape(4, 4, 4), "32 NaN or infinite values"),
        ],
    )
    def test_not_hounsfield(self, save, geometry, array, message):
        path = save(Volume(array, replace(geometry, size_zyx=array.shape)), "ct.mha")
        if message is None:
            assert read_ct(path).array.min() == -1024
        else:
            with pytest.raises(InputError, match=message):
                read_ct(path)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match="no such file or folder"):
            read_ct(tmp_path / "none.mha")

    @pytest.mark.parametrize("name", ["ct.png", "ct.tif", "ct.dcm", "ct.gz", "ct"])
    def test_unsupported(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=r"unsupported format, expected \.mha, .* or a folder"):
            read_ct(tmp_path / name)

    @pytest.mark.parametrize("extension", ["mha", "nii", "nii.gz", "nrrd"])
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (sitk.Image([4, 4], sitk.sitkInt16), "2 dimensions, expected one three-dimensional"),
            (sitk.Image([4, 4, 4, 4], sitk.sitkInt16), "4 dimensions, expected one three-dimensional"),
            (sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), "3 values a voxel"),
            (sitk.Image([4, 4, 1], sitk.sitkInt16), r"size \(x, y, z\) \(4, 4, 1\), expected .* two slices"),
        ],
    )
    def test_shapes(self, tmp_path, extension, image, message):
        sitk.WriteImage(image, str(tmp_path / f"ct.{extension}"))
        with pytest.raises(InputError, match=message):
            read_ct(tmp_path / f"ct.{extension}")


class TestLabels:
    @pytest.mark.parametrize("name", ["lesions.mha", "lesions.nii.gz"])
    def test_there_and_back(self, tmp_path, lobes, name):
        write_labels(lobes, tmp_path / name)
        got = read_labels(tmp_path / name)
        assert got.array.dtype == np.uint8
        assert np.array_equal(got.array, lobes.array)
        require_same_grid(got, lobes, "copy")
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_metaimage_is_compressed_and_keeps_geometry_to_the_bit(self, tmp_path, lobes):
        write_labels(lobes.with_array(lobes.array > 0), tmp_path / "mask.mha")
        assert read_labels(tmp_path / "mask.mha").geometry == lobes.geometry
        assert b"CompressedData = True" in (tmp_path / "mask.mha").read_bytes()

    def test_failure_keeps_the_earlier_file(self, tmp_path, lobes, monkeypatch):
        write_labels(lobes, tmp_path / "lesions.mha")
        before = (tmp_path / "lesions.mha").read_bytes()

        def disk_full(image, name, **options):
            Path(name).write_bytes(b"half")
            raise RuntimeError("Exception thrown in SimpleITK X: /a/b.cxx:12:\nITK ERROR: Y(0x1): disk full")

        monkeypatch.setattr(sitk, "WriteImage", disk_full)
        with pytest.raises(OSError, match=r"lesions\.mha: cannot be written \(disk full\)"):
            write_labels(lobes, tmp_path / "lesions.mha")
        assert [path.name for path in tmp_path.iterdir()] == ["lesions.mha"]
        assert (tmp_path / "lesions.mha").read_bytes() == before

    def test_only_eight_bits(self, tmp_path, ct):
        with pytest.raises(TypeError, match="int16, expected uint8 or bool"):
            write_labels(ct, tmp_path / "labels.mha")

    def test_whole_floats_are_accepted(self, lobes, save):
        got = read_labels(save(lobes.with_array(lobes.array.astype(np.float32)), "lobes.mha"))
        assert np.issubdtype(got.array.dtype, np.integer)
        assert np.array_equal(got.array, lobes.array)

    @pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e20])
    def test_other_floats_are_refused(self, lobes, save, value):
        array = lobes.array.astype(np.float64)
        array[0, 0, 0] = value
        with pytest.raises(InputError, match="not whole numbers"):
            read_labels(save(lobes.with_array(array), "lobes.mha"))

    def test_folder(self, tmp_path):
        with pytest.raises(InputError, match="got a folder, expected one label file"):
            read_labels(tmp_path)


class TestSameGrid:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size_zyx": (6, 8, 11)}, r"size \(x, y, z\) \(11, 8, 6\), expected \(10, 8, 6\)"),
            ({"spacing_zyx_mm": (2.5, 0.7, 0.801)}, "spacing"),
            ({"origin_xyz_mm": (-173.1, 21.987654321, -1200.5)}, "origin in mm"),
            ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, "direction"),
        ],
    )
    def test_differences(self, ct, change, message):
        geometry = replace(ct.geometry, **change)
        other = Volume(np.zeros(geometry.size_zyx, np.uint8), geometry)
        with pytest.raises(InputError, match=f"the lobe mask is not on the CT's grid: got {message}"):
            require_same_grid(other, ct, "lobe mask")
