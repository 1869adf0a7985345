from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from algorithm.errors import InputError as AlgorithmError
from algorithm.images import read_ct, read_labels
from algorithm.lobes import check_lobes
from batch.cases import LOBES_SLUG, SCAN_SLUG, find_cases
from batch.errors import InputError
from batch.jobs import Batch
from batch.manifest import Manifest
from batch.scans import convert

SECRETS = {
    "PatientName": "Muster^Erika",
    "PatientID": "ID4711X",
    "PatientBirthDate": "19631224",
    "PatientAddress": "Lindenweg 4711",
    "OtherPatientIDs": "ALT0815",
    "AccessionNumber": "ACC99887",
    "InstitutionName": "Klinikum Seeblick",
    "ReferringPhysicianName": "Brinkmann^Klaus",
    "StudyDescription": "Thorax Frau Muster",
    "SeriesDescription": "Lunge weich Muster",
    "StudyDate": "20210317",
    "DeviceSerialNumber": "SN556677",
    "ImageComments": "call Mrs Muster back",
}
KNOWN_FIELDS = (
    "ObjectType NDims BinaryData BinaryDataByteOrderMSB CompressedData CompressedDataSize TransformMatrix Offset "
    "CenterOfRotation AnatomicalOrientation ElementSpacing DimSize ElementType ElementDataFile"
)


def write_series(folder: Path, array: np.ndarray, **changes: object) -> Path:
    """A series whose slices are stored from the top down, with all that names the patient."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), "1.2.276.0.7230010.3.4711"
    for number, pixels in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = f"Muster_Erika_{len(array) - number}"
        dataset = FileDataset(name, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, study, "CT"
        for keyword, value in SECRETS.items():
            setattr(dataset, keyword, value)
        dataset.private_block(0x0099, "SEEBLICK", create=True).add_new(0x01, "LO", "Privatpatientin Muster")
        dataset.ImagePositionPatient = [-10.5, 20.25, -300.0 + 2.5 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.7]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        for keyword, value in changes.items():
            setattr(dataset, keyword, value(number) if callable(value) else value)
        pydicom.dcmwrite(folder / name, dataset)
    return folder


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(1).integers(-1000, 100, (4, 5, 6)).astype(np.int16)


def sent(path: Path, tmp_path: Path) -> tuple[sitk.Image, bytes]:
    """What is sent of a scan."""
    folder = tmp_path / "sent"
    folder.mkdir()
    (written,) = convert({SCAN_SLUG: path}, folder).values()
    return sitk.ReadImage(str(written)), written.read_bytes()


def test_a_dicom_series_keeps_its_voxels_and_geometry(array, tmp_path) -> None:
    image, _ = sent(write_series(tmp_path / "case", array), tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetPixelIDTypeAsString() == "16-bit signed integer"
    assert image.GetSpacing() == pytest.approx((0.7, 0.8, 2.5))
    assert image.GetOrigin() == (-10.5, 20.25, -300.0)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_a_dicom_series_is_read_as_the_algorithm_reads_it(array, tmp_path) -> None:
    folder = write_series(tmp_path / "case", array)
    image, _ = sent(folder, tmp_path)
    ours = read_ct(folder)
    assert np.array_equal(sitk.GetArrayFromImage(image), ours.array)
    assert image.GetSpacing()[::-1] == pytest.approx(ours.geometry.spacing_zyx_mm)
    assert image.GetOrigin() == pytest.approx(ours.geometry.origin_xyz_mm)


def test_every_slice_is_rescaled_by_its_own_header(array, tmp_path) -> None:
    changes = {"RescaleSlope": lambda number: 1 + number / 2, "RescaleIntercept": lambda number: -1024 - 100 * number}
    folder = write_series(tmp_path / "case", array, **changes)
    image, _ = sent(folder, tmp_path)
    values = np.maximum(sitk.GetArrayFromImage(image), -1024)  # as the algorithm does, on either side
    assert np.array_equal(values, read_ct(folder).array)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nii"])
def test_files_keep_their_voxels_and_geometry(scan, tmp_path, suffix) -> None:
    image, _ = sent(scan(tmp_path / f"case{suffix}"), tmp_path)
    assert np.array_equal(
        sitk.GetArrayFromImage(image), np.random.default_rng(0).integers(-1000, 100, (3, 4, 5)).astype(np.int16)
    )
    assert image.GetSpacing() == pytest.approx((0.7, 0.8, 2.5))
    assert image.GetOrigin() == pytest.approx((-10.5, 20.25, -300.0))


def nifti_with_secrets(path: Path, source: Path) -> None:
    """Fill every text field of a NIfTI header, and an extension behind it, with what names the patient."""
    sitk.WriteImage(sitk.ReadImage(str(source)), str(path))
    content = bytearray(path.read_bytes())
    fields = {4: b"Muster1", 14: b"Muster2 db_name", 148: b"Muster3 descrip", 228: b"Muster4 aux_file", 328: b"Muster5"}
    for offset, text in fields.items():
        content[offset : offset + len(text)] = text
    content[348] = 1  # an extension follows
    struct.pack_into("<f", content, 108, 352.0 + 32.0)
    extension = struct.pack("<2i", 32, 6) + b"Muster6 comment".ljust(24, b"\0")
    path.write_bytes(bytes(content[:352]) + extension + bytes(content[352:]))


def metaimage_with_secrets(path: Path, source: Path) -> None:
    """Fields of MetaIO's own, such as a comment, and free ones, as other programs write them."""
    fields = b"Comment = Muster1\nName = Muster2\nStudyID = Muster3\n0010|0010 = Muster4\nPatientName = Muster^Erika\n"
    head, _, rest = source.read_bytes().partition(b"NDims")
    path.write_bytes(head + fields + b"NDims" + rest)


@pytest.mark.parametrize("suffix", [".mha", ".nii"])
def test_fields_in_other_headers_are_left_out(scan, tmp_path, suffix) -> None:
    original = scan(tmp_path / "scan.mha")
    path = tmp_path / f"case{suffix}"
    (metaimage_with_secrets if suffix == ".mha" else nifti_with_secrets)(path, original)
    assert path.read_bytes().count(b"Muster") >= 5
    image, content = sent(path, tmp_path)
    header, _, voxels = content.partition(b"ElementDataFile = LOCAL\n")
    assert b"Muster" not in content + zlib.decompress(voxels)
    assert {line.partition(b" = ")[0].decode() for line in header.splitlines()} <= set(KNOWN_FIELDS.split())
    expected = sitk.ReadImage(str(original))
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    assert image.GetSpacing() == pytest.approx(expected.GetSpacing())
    assert image.GetOrigin() == pytest.approx(expected.GetOrigin())


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".mha", "lobes"])
def test_files_that_are_cut_short_are_not_sent(scan, tmp_path, kind) -> None:
    """SimpleITK would fill the missing end of a NIfTI file with zeros."""
    files = {SCAN_SLUG: scan(tmp_path / "ct.mha")}
    files |= {LOBES_SLUG: scan(tmp_path / "l.nii.gz", labels=True)} if kind == "lobes" else {}
    files |= {SCAN_SLUG: scan(tmp_path / f"x{kind}")} if kind != "lobes" else {}
    path = files[LOBES_SLUG if kind == "lobes" else SCAN_SLUG]
    path.write_bytes(path.read_bytes()[:-7])
    (tmp_path / "sent").mkdir()
    with pytest.raises(InputError, match=r"cannot be read \(.*cut short or damaged.*\); copy or export it again"):
        convert(files, tmp_path / "sent")
    assert list((tmp_path / "sent").iterdir()) == []


def test_nothing_that_names_the_patient_leaves_this_machine(
    array, tmp_path, out, connection, account, platform
) -> None:
    """Every byte of every request, with compressed voxels as they are and decompressed."""
    write_series(tmp_path / "scans" / "case01", array)
    manifest = Manifest.load_or_new(out, platform=platform.url, algorithm="covid-lesions")
    wanted = manifest.plan(find_cases(tmp_path / "scans", None), out)
    Batch(connection, manifest, out, wanted=wanted, sleep=lambda seconds: None).run()
    assert manifest.cases["case01"].is_finished
    everything = b"".join(f"{method} {path}\n".encode() + body for method, path, body in account.requests)
    (upload,) = account.taken.values()
    header, _, voxels = upload.content.partition(b"ElementDataFile = LOCAL\n")
    everything += zlib.decompress(voxels)
    everything += "".join(account.heads).encode()
    words = {word for value in SECRETS.values() for word in re.split(r"[\^ ]", value) if len(word) > 4}
    words |= {"SEEBLICK", "4711", "Muster_Erika", "1.2.276", "1.2.826", str(tmp_path)}
    for word in sorted(words):
        assert word.encode() not in everything, word
        assert word.encode("utf-16-le") not in everything, word
    fields = {line.partition(b" = ")[0].decode() for line in header.splitlines()}
    assert fields | {"ElementDataFile"} == set(KNOWN_FIELDS.split())
    assert upload.filename == f"case01_{manifest.cases['case01'].attempt}_ct-image.mha"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Modality": "MR"}, "got modality MR, expected CT"),
        ({"SeriesInstanceUID": lambda number: f"1.2.{number}"}, "got 4 series, expected one"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "got a localiser"),
        ({"NumberOfFrames": 2}, "got several frames in a file"),
        ({"PixelSpacing": None}, "got no readable position, orientation and spacing"),
        ({"PixelSpacing": lambda number: [0.8, 0.7 + number]}, "got slices of different orientation or spacing"),
        (
            {"ImagePositionPatient": lambda number: [0, 0, [0.0, 2.5, 5.0, 10.0][number]]},
            "got steps of 2.5 to 5 mm between slices, expected even ones",
        ),
        ({"ImagePositionPatient": lambda number: [0, 0, 0]}, "got steps of 0 to 0 mm"),
        ({"ImagePositionPatient": lambda number: [0, number, 2.5 * number]}, "shift sideways"),
    ],
)
def test_refuses_what_is_no_ct_series(array, tmp_path, changes, message) -> None:
    folder = write_series(tmp_path / "case", array, **changes)
    with pytest.raises(InputError, match=message):
        convert({SCAN_SLUG: folder}, tmp_path)


def test_refuses_a_folder_without_a_series(tmp_path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "readme.txt").write_text("no DICOM")
    with pytest.raises(InputError, match="got 0 DICOM files, expected the slices of one CT series"):
        convert({SCAN_SLUG: tmp_path / "case"}, tmp_path)
    damaged = write_series(tmp_path / "damaged", np.zeros((2, 3, 4)), NumberOfFrames=2)
    for path in damaged.iterdir():
        path.write_bytes(path.read_bytes().replace(b"IS\x02\x002 ", b"IS\x02\x00x "))
    with pytest.raises(InputError, match="damaged DICOM header"):
        convert({SCAN_SLUG: damaged}, tmp_path)
    (tmp_path / "case" / "1.dcm").write_text("no DICOM")
    with pytest.raises(InputError, match=r"1\.dcm: damaged or no DICOM file"):
        convert({SCAN_SLUG: tmp_path / "case"}, tmp_path)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros((3, 4, 5), np.int16), "values 0 to 0, expected a CT in Hounsfield units"),
        (np.arange(60, dtype=np.uint8).reshape(3, 4, 5), "8-bit unsigned integer values 0 to 59"),
        (np.linspace(-1e4, 1e4, 60).astype(np.float32).reshape(3, 4, 5) * np.nan, "values nan to nan"),
        (np.full((3, 4), -1000, np.int16), r"got size \(4, 3\)"),
        (np.full((1, 4, 5), -1000, np.int16), r"got size \(5, 4, 1\)"),
    ],
)
def test_refuses_what_is_no_ct(tmp_path, voxels, message) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "case.mha"))
    with pytest.raises(InputError, match=message):
        convert({SCAN_SLUG: tmp_path / "case.mha"}, tmp_path)


def test_refuses_what_is_no_lobe_mask_of_the_ct(scan, tmp_path) -> None:
    ct, lobes = scan(tmp_path / "ct.mha"), scan(tmp_path / "lobes.mha", labels=True)
    files = {SCAN_SLUG: ct, "pulmonary-lobes": lobes}
    written = convert(files, tmp_path)
    assert sitk.ReadImage(str(written["pulmonary-lobes"])).GetPixelIDTypeAsString() == "8-bit unsigned integer"
    image = sitk.ReadImage(str(lobes))
    sitk.WriteImage(image + 3, str(lobes))
    with pytest.raises(InputError, match=r"got the labels 6, 7, 8, expected a lobe mask with 0 to 5"):
        convert(files, tmp_path)
    image.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(image, str(lobes))
    with pytest.raises(InputError, match="expected the grid of its CT"):
        convert(files, tmp_path)


def moved(x_mm: float) -> Callable[[sitk.Image], None]:
    return lambda image: image.SetOrigin((image.GetOrigin()[0] + x_mm, *image.GetOrigin()[1:]))


def stretched(z_mm: float) -> Callable[[sitk.Image], None]:
    return lambda image: image.SetSpacing((*image.GetSpacing()[:2], image.GetSpacing()[2] + z_mm))


def turned(radians: float) -> Callable[[sitk.Image], None]:
    cosine, sine = math.cos(radians), math.sin(radians)
    return lambda image: image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))


def filled(value: float) -> Callable[[sitk.Image], None]:
    def fill(image: sitk.Image) -> None:
        image[:, :, :] = value

    return fill


MASKS = [
    (sitk.sitkUInt8, moved(0.0), True),
    (sitk.sitkUInt8, moved(0.003), True),
    (sitk.sitkUInt8, moved(0.0065), True),
    (sitk.sitkUInt8, moved(0.0075), False),
    (sitk.sitkUInt8, stretched(9e-5), True),
    (sitk.sitkUInt8, stretched(5e-4), False),
    (sitk.sitkUInt8, turned(9e-5), True),
    (sitk.sitkUInt8, turned(5e-4), False),
    (sitk.sitkUInt8, filled(5), True),
    (sitk.sitkUInt8, filled(6), False),
    (sitk.sitkUInt8, filled(0), False),
    (sitk.sitkInt16, filled(-1), False),
    (sitk.sitkFloat32, filled(3), True),
    (sitk.sitkFloat32, filled(2.5), False),
    (sitk.sitkFloat32, filled(0), False),
    (sitk.sitkFloat32, filled(math.nan), False),
]


@pytest.mark.parametrize(("pixels", "change", "usable"), MASKS)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_takes_the_masks_that_the_algorithm_takes(scan, tmp_path, pixels, change, usable, end) -> None:
    ct, path = scan(tmp_path / "ct.mha"), scan(tmp_path / "mask.mha", labels=True)
    mask = sitk.Cast(sitk.ReadImage(str(path)), pixels)
    change(mask)
    sitk.WriteImage(mask, str(path))
    path.write_bytes(path.read_bytes() + end)
    if not usable:
        with pytest.raises(AlgorithmError):
            check_lobes(read_labels(path), read_ct(ct))
        with pytest.raises(InputError, match=r"mask\.mha: got "):
            convert({SCAN_SLUG: ct, LOBES_SLUG: path}, tmp_path)
        return
    expected = check_lobes(read_labels(path), read_ct(ct))
    written = read_labels(convert({SCAN_SLUG: ct, LOBES_SLUG: path}, tmp_path)[LOBES_SLUG])
    assert np.array_equal(written.array, expected.array) and written.array.dtype == np.uint8
    assert written.geometry == expected.geometry


def patched(path: Path, offset: int, field: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(field)] = field
    path.write_bytes(content)


def replaced(path: Path, pattern: bytes, text: bytes) -> None:
    path.write_bytes(re.sub(pattern, text, path.read_bytes(), count=1))


def emptied(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(image * 0 - 1000, str(path))


BAD_SCANS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no spacing": (".mha", lambda path: replaced(path, rb"ElementSpacing = .*\n", b""), "states no spacing"),
    "no number": (".mha", lambda path: replaced(path, rb"Offset = .*\n", b"Offset = nan 0 0\n"), "Offset = 'nan 0 0'"),
    "odd channels": (
        ".mha",
        lambda path: replaced(path, rb"ElementType", b"ElementNumberOfChannels = many\nElementType"),
        "cut short or damaged",
    ),
    "one value": (".mha", emptied, "values -1000 to -1000, expected a CT"),
    "spacing 0": (".nii", lambda path: patched(path, 80, struct.pack("<f", 0.0)), "got the spacing"),
    "no form": (".nii", lambda path: patched(path, 252, struct.pack("<2h", 0, 0)), "states no orientation"),
    "two spacings": (".nii", lambda path: patched(path, 80, struct.pack("<f", 0.9)), "in pixdim but"),
    "two orientations": (
        ".nii",
        lambda path: patched(path, 280, struct.pack("<f", -struct.unpack_from("<f", path.read_bytes(), 280)[0])),
        "another orientation in sform than in qform",
    ),
    "no offset": (".nii", lambda path: patched(path, 108, struct.pack("<f", math.nan)), "voxels begin at byte nan"),
}


@pytest.mark.parametrize("name", BAD_SCANS)
def test_refuses_the_scans_that_the_algorithm_refuses(scan, tmp_path, name) -> None:
    suffix, change, message = BAD_SCANS[name]
    path = scan(tmp_path / f"ct{suffix}")
    read_ct(path)
    change(path)
    if name != "no offset":  # the algorithm takes the voxels to follow the header
        with pytest.raises(AlgorithmError):
            read_ct(path)
    with pytest.raises(InputError, match=message):
        convert({SCAN_SLUG: path}, tmp_path)


def test_takes_an_oblique_scan_as_the_algorithm_takes_it(scan, tmp_path) -> None:
    """Both of a NIfTI file's orientations, from other formulas, say the same."""
    image = sitk.ReadImage(str(scan(tmp_path / "ct.mha")))
    turn = sitk.VersorTransform((0.48, 0.6, 0.64), 0.7)
    image.SetDirection((np.reshape(turn.GetMatrix(), (3, 3)) @ np.diag([1.0, 1.0, -1.0])).ravel().tolist())
    path = tmp_path / "oblique.nii.gz"
    sitk.WriteImage(image, str(path))
    ours = read_ct(path)
    written, _ = sent(path, tmp_path)
    assert written.GetDirection() == pytest.approx(ours.geometry.direction, abs=1e-5)


def test_slices_that_drift_from_even_steps_are_refused(tmp_path) -> None:
    """Each step is within a tenth of the mean, but the middle slice is two slices off its place."""
    array = np.random.default_rng(1).integers(-1000, 100, (41, 5, 6)).astype(np.int16)

    def position(number: int) -> list[float]:
        return [0.0, 0.0, 0.9 * min(number, 20) + 1.1 * max(number - 20, 0)]

    folder = write_series(tmp_path / "case", array, ImagePositionPatient=position)
    with pytest.raises(AlgorithmError, match="slices are missing or uneven"):
        read_ct(folder)
    with pytest.raises(InputError, match=r"got steps of 0\.9 to 1\.1 mm"):
        convert({SCAN_SLUG: folder}, tmp_path)


def test_refuses_a_damaged_file(scan, tmp_path) -> None:
    path = scan(tmp_path / "ct.nii.gz")
    path.write_bytes(b"not a scan")
    with pytest.raises(InputError, match=r"ct\.nii\.gz: cannot be read"):
        convert({SCAN_SLUG: path}, tmp_path)
