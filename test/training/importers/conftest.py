"""Miniature data sets: CT as DICOM series, and label maps on the same grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from algorithm.images import Geometry, Volume

SIZE_ZYX = (8, 12, 16)
SPACING_ZYX_MM = (2.0, 0.8, 0.7)
ORIGIN_XYZ_MM = (-5.0, 7.5, -40.0)
LOBE_STARTS = {3: (3, 2, 1), 4: (1, 4, 4), 5: (1, 2, 7), 1: (3, 2, 10), 2: (1, 2, 13)}


@pytest.fixture
def grid() -> Geometry:
    """Of every miniature scan."""
    return Geometry(SIZE_ZYX, SPACING_ZYX_MM, ORIGIN_XYZ_MM, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.fixture
def chest() -> NDArray[np.int16]:
    """Air with soft tissue around it, HU."""
    array = np.random.default_rng(0).integers(-1000, -700, SIZE_ZYX).astype(np.int16)
    array[:, 0] = 40
    return array


@pytest.fixture
def five_lobes(grid: Geometry) -> Volume:
    """Five boxes of 4 x 6 x 2 = 48 voxels side by side, placed in order as in a patient; none touches a face."""
    array = np.zeros(SIZE_ZYX, np.uint8)
    for label, (z, y, x) in LOBE_STARTS.items():
        array[z : z + 4, y : y + 6, x : x + 2] = label
    return Volume(array, grid)


@pytest.fixture
def write_image() -> Callable[[Volume, Path], Path]:
    """Writes a volume, and the folders above it."""

    def write(volume: Volume, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume.to_sitk(), str(path))
        return path

    return write


@pytest.fixture
def write_dicom(chest: NDArray[np.int16]) -> Callable[..., list[str]]:
    """Writes a CT series whose file names run against its positions; returns SOPInstanceUIDs from the feet up."""

    def write(folder: Path, *, series: str, patient: str = "p1") -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        uids = [f"{series}.{number + 1}" for number in range(len(chest))]
        for number, uid in enumerate(uids):
            header = _header(uid)
            header.SeriesInstanceUID, header.StudyInstanceUID, header.PatientID = series, "1.2.3", patient
            x, y, z = ORIGIN_XYZ_MM
            header.ImagePositionPatient = [x, y, z + number * SPACING_ZYX_MM[0]]
            header.SliceLocation = z + number * SPACING_ZYX_MM[0]
            header.PixelData = (chest[number] + 1024).astype(np.int16).tobytes()
            header.save_as(folder / f"{len(chest) - number:03d}.dcm", enforce_file_format=True)
        return uids

    return write


def _header(uid: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
    header.Modality = "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = SIZE_ZYX[1:]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = list(SPACING_ZYX_MM[1:])
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    return header
