from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorithm.errors import InputError
from algorithm.images import read_ct, require_same_grid


class TestDamage:
    @pytest.mark.parametrize("extension", ["mha", "mhd", "nii", "nii.gz", "nrrd"])
    def test_garbage(self, tmp_path, extension):
        (tmp_path / f"ct.{extension}").write_bytes(b"not an image at all" * 40)
        with pytest.raises(InputError, match=r"damaged or no|cannot be read as") as caught:
            read_ct(tmp_path / f"ct.{extension}")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a.mha", "b.nii", "c.nii.gz", "d.nrrd"])
    @pytest.mark.parametrize("compressed", [True, False])
    @pytest.mark.parametrize("kept", [0.0, 0.6, 0.99])
    def test_truncated(self, ct, save, name, compressed, kept):
        path = save(ct, name, compressed=compressed)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(InputError, match="truncated|damaged|cannot be read"):
            read_ct(path)

    @pytest.mark.parametrize("name", ["ct.mha", "ct.nii.gz", "ct.nrrd"])
    def test_damaged_compressed_voxels(self, ct, save, name):
        path = save(ct, name)
        content = bytearray(path.read_bytes())
        content[-40] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged \("):
            read_ct(path)

    def test_gzip_of_several_streams(self, ct, save):
        path = save(ct, "ct.nii")
        content = path.read_bytes()
        whole = path.with_name("ct.nii.gz")
        whole.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
        assert np.array_equal(read_ct(whole).array, ct.array)

    @pytest.mark.parametrize("name", ["ct.mha", "ct.nii.gz", "ct.nrrd"])
    @given(
        places=st.lists(st.tuples(st.integers(0, 450), st.integers(0, 255)), min_size=1, max_size=4),
        kept=st.floats(0.0, 1.0),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_damage_is_one_line(self, ct, save, name, places, kept):
        path = save(ct, name)
        content = bytearray(path.read_bytes())
        for place, value in places:
            content[place % len(content)] = value
        path.write_bytes(content[: round(kept * len(content))] if kept < 0.5 else content)
        try:
            read_ct(path)
        except InputError as error:
            assert "\n" not in str(error)


class TestHeaders:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("ElementSpacing", "1 0 1", r"spacing \(x, y, z\) \(1, 0, 1\), expected 0.01 to 100 mm"),
            ("ElementSpacing", "1 -1 1", r"spacing \(x, y, z\) \(1, -1, 1\)"),
            ("ElementSpacing", "0.0007 0.0007 0.001", "spacing .*0.0007"),
            ("ElementSpacing", "1 nan 1", "ElementSpacing = '1 nan 1', expected finite numbers"),
            ("ElementSpacing", None, "states no spacing, expected the field 'ElementSpacing'"),
            ("Offset", "0 inf 0", "Offset = '0 inf 0', expected finite numbers"),
            ("TransformMatrix", "1 0 0 0 1 0 0 0.3 1", "not at right angles"),
            ("TransformMatrix", "2 0 0 0 1 0 0 0 1", "not at right angles"),
            ("TransformMatrix", "1 0 0 1 0 0 0 0 1", "not at right angles"),
            ("NDims", "93", "NDims = '93' and 3 sizes"),
            ("DimSize", "100000 100000 100", "truncated"),
            ("CompressedDataSize", None, "states no CompressedDataSize"),
            ("CompressedDataSize", "7", "truncated"),
            ("ElementType", "MET_NONSENSE", "cannot be read as .mha"),
            ("ElementDataFile", "elsewhere.zraw", "its voxels are in 'elsewhere.zraw', which is missing"),
        ],
    )
    def test_metaimage(self, ct, save, field, value, message):
        path = save(ct, "ct.mha")
        lines = path.read_bytes().split(b"\n", 14)
        keys = [line.split(b" = ")[0].decode("latin-1") for line in lines]
        lines[keys.index(field)] = f"{field} = {value}".encode() if value else b"Comment = none"
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(InputError, match=message):
            read_ct(path)

    @pytest.mark.parametrize("line", [b"", b"spacings: 0.8 0.7 NaN"])
    def test_nrrd_without_spacing(self, ct, save, line):
        path = save(ct, "ct.nrrd")
        header, end, voxels = path.read_bytes().partition(b"\n\n")
        kept = [one for one in header.split(b"\n") if not one.startswith(b"space")]
        path.write_bytes(b"\n".join([*kept, line] if line else kept) + end + voxels)
        with pytest.raises(InputError, match="states no spacing, expected the field 'space directions'"):
            read_ct(path)

    def test_six_digit_direction_is_accepted(self, ct, save):
        path = save(ct, "ct.mha")
        rounded = " ".join(f"{value:.6g}" for value in np.reshape(ct.geometry.direction, (3, 3)).T.ravel())
        lines = path.read_bytes().split(b"\n", 14)
        lines = [f"TransformMatrix = {rounded}".encode() if b"TransformMatrix" in line else line for line in lines]
        path.write_bytes(b"\n".join(lines))
        require_same_grid(read_ct(path), ct, "copy")

    @pytest.mark.parametrize(
        ("offset", "form", "values", "message"),
        [
            (80, "<3f", (0.0, 1.0, 1.0), r"spacing \(x, y, z\) \(0, 1, 1\)"),
            (80, "<3f", (float("nan"), 1.0, 1.0), r"spacing \(x, y, z\) \(nan, 1, 1\)"),
            (80, "<3f", (2.0, 0.7, 2.5), r"spacing \(2, 0.7, 2.5\) in pixdim but \(0.8, 0.7, 2.5\) in sform"),
            (252, "<2h", (0, 0), "states no orientation"),
            (40, "<4h", (3, 10, 8, 600), "truncated"),
            (0, "<i", (540,), "no NIfTI-1 file"),
        ],
    )
    @pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
    def test_nifti(self, ct, save, name, offset, form, values, message):
        path = self._edited_nifti(save(ct, "plain.nii"), name, offset, form, values)
        with pytest.raises(InputError, match=message):
            read_ct(path)

    def test_sheared_nifti(self, ct, save):
        rows = (-0.8, 0.3, 0.0, 0.0, 0.0, -0.632, 0.0, 0.0, 0.0, 0.0, 2.5, 0.0)
        path = self._edited_nifti(save(ct, "plain.nii"), "ct.nii", 252, "<2h", (0, 1))
        path = self._edited_nifti(path, "ct.nii", 280, "<12f", rows)
        with pytest.raises(InputError, match="not at right angles"):
            read_ct(path)

    def test_orientations_of_a_nifti_that_contradict_each_other(self, ct, save):
        plain = save(ct, "plain.nii")
        q_code, s_code = struct.unpack_from("<2h", plain.read_bytes(), 252)
        assert q_code > 0 and s_code > 0
        read_ct(plain)
        mirrored = np.reshape(struct.unpack_from("<12f", plain.read_bytes(), 280), (3, 4)) * (-1, 1, 1, 1)
        path = self._edited_nifti(plain, "ct.nii", 280, "<12f", tuple(mirrored.ravel()))
        with pytest.raises(InputError, match="another orientation in sform than in qform"):
            read_ct(path)
        read_ct(self._edited_nifti(path, "ct.nii", 252, "<2h", (0, 1)))

    @staticmethod
    def _edited_nifti(plain: Path, name: str, offset: int, form: str, values: tuple[float, ...]) -> Path:
        content = bytearray(plain.read_bytes())
        struct.pack_into(form, content, offset, *values)
        path = plain.with_name(name)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return path
