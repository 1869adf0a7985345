from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from algorithm.dicom import read_series
from algorithm.errors import InputError
from algorithm.images import Volume, read_ct

SIZE_YX = (8, 6)
STEP_MM = 3.0


def slice_pixels(number: int) -> np.ndarray:
    return (np.arange(48, dtype=np.int16).reshape(SIZE_YX) + 100 * number).astype(np.int16)


def common(series: str, sop_class: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = sop_class
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = "1.2.3", series, "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = SIZE_YX
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    return header


def ct_slice(number: int, **changes: Any) -> Dataset:
    header = common("1.2.3.4", CTImageStorage)
    header.SeriesDescription = "thorax"
    header.ImagePositionPatient = [-10.5, 20.25, STEP_MM * number - 100.0]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [0.7, 0.8]
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = slice_pixels(number).tobytes()
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    return header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "series"
    path.mkdir()
    return path


@pytest.fixture
def save(folder: Path) -> Callable[..., Path]:
    def save_as(header: Dataset, name: str) -> Path:
        header.save_as(folder / name, enforce_file_format=True)
        return folder / name

    return save_as


@pytest.fixture
def series(folder: Path, save: Callable[..., Path]) -> Path:
    """Five slices whose names do not sort as their positions do."""
    for number, name in enumerate(("d.dcm", "a.dcm", "e.dcm", "b", "c.ima")):
        save(ct_slice(number), name)
    return folder


def change(path: Path, **values: Any) -> None:
    header = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.save_as(path)


def test_an_empty_number_of_frames_is_one(series):
    change(series / "a.dcm", NumberOfFrames=None)
    assert len(read_series(series).array) == 5


def test_sorted_by_position_and_rescaled(series):
    volume = read_series(series)
    expected = np.stack([slice_pixels(number) for number in range(5)]) - 1024
    assert np.array_equal(volume.array, expected)
    assert volume.geometry.spacing_zyx_mm == (3.0, 0.7, 0.8)
    assert volume.geometry.origin_xyz_mm == (-10.5, 20.25, -100.0)
    assert volume.geometry.direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_agrees_with_simpleitk(series):
    names = [str(series / name) for name in ("d.dcm", "a.dcm", "e.dcm", "b", "c.ima")]
    expected = Volume.from_sitk(sitk.ReadImage(names, imageIO="GDCMImageIO"))
    got = read_series(series)
    assert got.geometry == expected.geometry
    assert np.array_equal(got.array, expected.array)


def test_read_ct_takes_the_folder(series):
    assert read_ct(series).array.dtype == np.int16


def test_oblique(folder, save):
    row, column = np.array([0.6, 0.8, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(row, column)
    for number in range(3):
        position = (np.array([5.0, 6.0, 7.0]) + 2.0 * number * normal).tolist()
        save(ct_slice(number, ImagePositionPatient=position, ImageOrientationPatient=[*row, *column]), f"{number}.dcm")
    geometry = read_series(folder).geometry
    assert np.allclose(geometry.spacing_zyx_mm, (2.0, 0.7, 0.8))
    assert np.allclose(np.reshape(geometry.direction, (3, 3)), np.stack([row, column, normal], axis=1))


def test_other_files_are_passed_over(series):
    (series / "notes.txt").write_text("hello")
    (series / ".hidden.dcm").write_text("hello")
    directory = common("", "1.2.840.10008.1.3.10")
    del directory.SeriesInstanceUID
    directory.save_as(series / "DICOMDIR", enforce_file_format=True)
    (series / "folder").mkdir()
    assert read_series(series).array.shape == (5, *SIZE_YX)


def test_slices_rescaled_differently(series):
    change(series / "a.dcm", RescaleSlope=0.5, RescaleIntercept=-1000.25)
    array = read_series(series).array
    assert np.array_equal(array[1], slice_pixels(1) * 0.5 - 1000.25)
    assert np.array_equal(array[2], slice_pixels(2) - 1024)


def test_compressed(series):
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path)
    assert np.array_equal(read_series(series).array[4], slice_pixels(4) - 1024)


def test_rounded_positions_are_accepted(folder, save):
    for number in range(20):
        save(ct_slice(number, ImagePositionPatient=[0, 0, round(0.625 * number, 1)]), f"{number}.dcm")
    assert read_series(folder).geometry.spacing_zyx_mm[0] == pytest.approx(0.625, abs=0.01)


class TestRefused:
    def test_missing_slice(self, series):
        (series / "e.dcm").unlink()
        with pytest.raises(InputError, match=r"6 mm from a\.dcm to b, expected 3 mm .* slices are missing"):
            read_series(series)

    def test_missing_slice_near_the_end(self, folder, save):
        for number in (*range(20), 21):
            save(ct_slice(number), f"{number:02d}.dcm")
        with pytest.raises(InputError, match=r"6 mm from 19\.dcm to 21\.dcm, expected 3 mm"):
            read_series(folder)

    def test_repeated_position(self, series, save):
        save(ct_slice(2), "again.dcm")
        with pytest.raises(InputError, match=r"two slices at one position, (again|e)\.dcm and (again|e)\.dcm"):
            read_series(series)

    def test_mixed_series(self, series, save):
        save(ct_slice(7, SeriesInstanceUID="1.2.3.5", SeriesDescription="sharp kernel"), "other.dcm")
        with pytest.raises(InputError, match="several series .*5 files of 'thorax'; 1 files of 'sharp kernel'"):
            read_series(series)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"Modality": "MR"}, "a.dcm: got modality MR, expected CT"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a.dcm: got a localiser"),
            (
                {"PixelSpacing": [0.7, 0.9]},
                r"got pixel spacing \(0\.7, 0\.9\), but .* \(0\.7, 0\.8\)|\(0\.7, 0\.8\), but",
            ),
            ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "got orientation"),
            ({"Rows": 7, "PixelData": bytes(84)}, r"got size \(rows, columns\)"),
            ({"ImageOrientationPatient": [1, 0, 0, 0.3, 1, 0]}, "not at right angles"),
            ({"ImagePositionPatient": [1, 2]}, r"a\.dcm: got ImagePositionPatient .*, expected 3 numbers"),
            ({"ImagePositionPatient": None}, r"a\.dcm: got ImagePositionPatient None, expected 3 numbers"),
            ({"PixelSpacing": [0, 0.8]}, r"a\.dcm: got PixelSpacing \(0, 0\.8\), expected 0\.01 to 100 mm"),
            ({"PixelSpacing": [0.0007, 0.0007]}, r"a\.dcm: got PixelSpacing \(0\.0007, 0\.0007\), expected 0\.01 to"),
            ({"SamplesPerPixel": 3}, r"a\.dcm: got several values a pixel"),
            ({"NumberOfFrames": 4}, r"a\.dcm: got one of several multi-frame files"),
        ],
    )
    def test_odd_slice(self, series, values, message):
        change(series / "a.dcm", **values)
        with pytest.raises(InputError, match=message):
            read_series(series)

    def test_unreadable_number(self, series):
        path = series / "a.dcm"
        path.write_bytes(path.read_bytes().replace(b"0.7\\0.8", b"0.7\\abc"))
        with pytest.raises(InputError, match=r"a\.dcm: got an unreadable PixelSpacing"):
            read_series(series)

    def test_gantry_tilt(self, folder, save):
        for number in range(8):
            save(ct_slice(number, ImagePositionPatient=[0, 0.5 * number, 3.0 * number]), f"{number}.dcm")
        with pytest.raises(InputError, match=r"shift 3\.5 mm sideways over the stack \(gantry tilt\)"):
            read_series(folder)

    def test_single_slice(self, folder, save):
        save(ct_slice(0), "0.dcm")
        with pytest.raises(InputError, match="got a single slice"):
            read_series(folder)

    def test_no_dicom(self, folder):
        (folder / "notes.txt").write_text("hello")
        with pytest.raises(InputError, match="a folder without DICOM files"):
            read_series(folder)

    def test_no_header(self, series):
        (series / "a.dcm").write_bytes(b"")
        with pytest.raises(InputError, match=r"a\.dcm: damaged or no DICOM file"):
            read_series(series)

    @pytest.mark.parametrize("content", [b"", b"\0" * 100])
    def test_a_slice_without_ending_that_was_cut_off(self, series, content):
        for path in sorted(series.glob("*.dcm")):
            path.rename(path.with_suffix(""))
        sorted(series.iterdir())[-1].write_bytes(content)
        with pytest.raises(InputError, match="damaged or no DICOM file"):
            read_series(series)

    def test_damaged_header(self, series):
        path = series / "a.dcm"
        path.write_bytes(path.read_bytes().replace(b"DS\x08\x000.7\\0.8 ", b"D?\x08\x000.7\\0.8 "))
        with pytest.raises(InputError, match=r"a\.dcm: damaged DICOM header \(Unknown Value Representation"):
            read_series(series)

    def test_truncated_pixels(self, series):
        content = (series / "a.dcm").read_bytes()
        (series / "a.dcm").write_bytes(content[:-40])
        with pytest.raises(InputError, match=r"a\.dcm: its pixels are damaged") as caught:
            read_series(series)
        assert "\n" not in str(caught.value)

    def test_missing_intercept_is_no_hounsfield_scan(self, series):
        for path in series.iterdir():
            change(path, RescaleIntercept=0)
        with pytest.raises(InputError, match="none of them air"):
            read_ct(series)


def enhanced(numbers: list[int], *, intercepts: list[float] | None = None) -> Dataset:
    """A multi-frame CT whose frames lie at these places, in this order."""
    header = common("1.2.3.6", EnhancedCTImageStorage)
    header.NumberOfFrames = len(numbers)
    header.PixelData = b"".join(slice_pixels(number).tobytes() for number in numbers)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.8], 3.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for number, intercept in zip(numbers, intercepts or [-1024.0] * len(numbers), strict=True):
        frame, position, rescale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-10.5, 20.25, STEP_MM * number]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, intercept, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [rescale]
        header.PerFrameFunctionalGroupsSequence.append(frame)
    return header


class TestEnhanced:
    @pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 3, 1]])
    def test_frames_are_sorted(self, folder, save, numbers):
        save(enhanced(numbers), "enhanced.dcm")
        volume = read_series(folder)
        assert np.array_equal(volume.array, np.stack([slice_pixels(number) for number in range(4)]) - 1024)
        assert volume.geometry.spacing_zyx_mm == (3.0, 0.7, 0.8)
        assert volume.geometry.origin_xyz_mm == (-10.5, 20.25, 0.0)

    def test_missing_frame(self, folder, save):
        save(enhanced([0, 1, 2, 4]), "enhanced.dcm")
        with pytest.raises(InputError, match=r"6 mm from enhanced\.dcm frame 3 to enhanced\.dcm frame 4"):
            read_series(folder)

    def test_frames_rescaled_differently(self, folder, save):
        save(enhanced([0, 1], intercepts=[-1024.0, 0.0]), "enhanced.dcm")
        with pytest.raises(InputError, match="frames with different rescaling"):
            read_series(folder)

    def test_fewer_pixels_than_headers(self, folder, save):
        header = enhanced([0, 1, 2, 3])
        header.NumberOfFrames, header.PixelData = 3, header.PixelData[: 3 * 96]
        save(header, "enhanced.dcm")
        with pytest.raises(InputError, match=r"pixels of size \(3, 8, 6\), but headers of \(4, 8, 6\)"):
            read_series(folder)
