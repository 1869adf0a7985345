from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from algorithm.errors import InputError
from training.cases import UNKNOWN_SUBTYPE, read_cases
from training.importers.dataset import write_dataset
from training.importers.lobes import LobeFiles
from training.importers.ricord import SOURCE, fill_outline, find_series, read, read_annotations
from training.importers.source import assign_splits
from training.parallel import Workers

ANNOTATIONS = "MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8.json"
LABELS = {
    "L_op": "Infectious opacity",
    "L_tib": "Infectious TIB/micronodules",
    "L_at": "Atelectasis",
    "L_typ": "Typical Appearance",
}


def box(*, x, y):
    """Corners of a rectangle that holds the pixels x[0] to x[1] and y[0] to y[1], both ends included."""
    low_x, high_x, low_y, high_y = x[0] - 0.4, x[1] + 0.4, y[0] - 0.4, y[1] + 0.4
    return [[low_x, low_y], [high_x, low_y], [high_x, high_y], [low_x, high_y]]


def mark(label, *, series="1.2.3.1", slice_uid=None, vertices=None):
    return {
        "labelId": label,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": series if slice_uid else None,
        "SOPInstanceUID": slice_uid,
        "data": None if vertices is None else {"vertices": vertices},
    }


def write_annotations(root, *annotations, labels=LABELS):
    content = {
        "labelGroups": [
            {"id": "G", "labels": [{"id": key, "name": name, "scope": "INSTANCE"} for key, name in labels.items()]}
        ],
        "datasets": [{"id": "D", "annotations": list(annotations)}, {"id": "empty", "annotations": []}],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / ANNOTATIONS).write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path, write_dicom):
    """Series 1 has outlines of two slices, series 2 has none, series 3 has outlines but no images."""
    folder = tmp_path / "ricord"
    first = write_dicom(folder / "MIDRC-RICORD-1A" / "p1" / "study" / "4.0-NA", series="1.2.3.1")
    write_dicom(folder / "MIDRC-RICORD-1A" / "p1" / "study" / "5.0-NA", series="1.2.3.2")
    write_annotations(
        folder,
        mark("L_typ"),
        mark("L_op", slice_uid=first[2], vertices=box(x=(4, 5), y=(5, 7))),
        mark("L_op", slice_uid=first[2], vertices=box(x=(5, 6), y=(7, 7))),
        mark("L_tib", slice_uid=first[5], vertices=box(x=(1, 1), y=(3, 3))),
        mark("L_at", slice_uid=first[5], vertices=box(x=(8, 12), y=(3, 9))),
        mark("L_op", slice_uid=first[6]),
        mark("L_op", series="1.2.3.3", slice_uid="1.2.3.3.1", vertices=box(x=(1, 2), y=(1, 2))),
    )
    return folder


EXPECTED = {(2, y, x) for y in (5, 6, 7) for x in (4, 5)} | {(2, 7, 6), (5, 3, 1)}


def test_outlines_become_a_mask(root, chest, capsys):
    (case,) = read(root)
    assert case.name == "1.2.3.1"
    imported = case.load()
    assert np.array_equal(imported.ct.array, chest)
    assert {tuple(index) for index in np.argwhere(imported.lesions.array).tolist()} == EXPECTED
    assert set(np.unique(imported.lesions.array)) == {0, UNKNOWN_SUBTYPE}
    assert imported.lesions.geometry == imported.ct.geometry and not imported.scores
    printed = capsys.readouterr().out
    assert "of 2 series, 1 without outlines of lesions are left out" in printed
    assert f"1 outlined series are not in {root}" in printed and "1 lesions are marked without an outline" in printed


def test_scores_follow_from_outlines_and_lobes(root, tmp_path, five_lobes, write_image):
    """Of 48 voxels each, the right lower lobe has 6 of lesion (12.5 %) and the right upper lobe 1 (2 %)."""
    write_image(five_lobes, tmp_path / "lobes" / "1.2.3.1.mha")
    cases = assign_splits(read(root), seed=0, validation=0, test=0)
    masks = LobeFiles(tmp_path / "lobes", "ours")
    write_dataset(SOURCE, cases, tmp_path / "out", lobes=masks, workers=Workers(1))
    (case,) = read_cases(tmp_path / "out")
    assert case.scores == {1: 0, 2: 0, 3: 1, 4: 2, 5: 0}
    assert case.lesions.is_file()


def copy_slice(folder, name, **changes):
    header = pydicom.dcmread(folder / name)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    header.save_as(folder / f"copy of {name}")
    return header


def test_copies_of_slices_are_dropped(root, chest):
    (series,) = [series for uid, series in find_series(root).items() if uid == "1.2.3.1"]
    header = copy_slice(series.folder, "001.dcm", SOPInstanceUID=generate_uid())  # the uppermost slice, number 7
    copy_slice(series.folder, "006.dcm")
    content = json.loads((root / ANNOTATIONS).read_text())["datasets"][0]["annotations"]
    write_annotations(
        root, *content, mark("L_op", slice_uid=str(header.SOPInstanceUID), vertices=box(x=(9, 9), y=(9, 9)))
    )
    imported = read(root)[0].load()
    assert np.array_equal(imported.ct.array, chest)
    assert {tuple(index) for index in np.argwhere(imported.lesions.array).tolist()} == EXPECTED | {(7, 9, 9)}


def test_different_slices_at_one_position_are_refused(root):
    (case,) = read(root)
    folder = find_series(root)["1.2.3.1"].folder
    header = pydicom.dcmread(folder / "001.dcm")
    copy_slice(folder, "001.dcm", PixelData=bytes(len(header.PixelData)))
    with pytest.raises(InputError, match="got two slices at one position"):
        case.load()


def test_missing_slices_are_refused(root):
    (case,) = read(root)
    next(find_series(root)["1.2.3.1"].folder.glob("006.dcm")).unlink()
    with pytest.raises(InputError, match="1 outlined slices are missing; download the series again"):
        case.load()


@pytest.mark.parametrize("damaged", [rb"xxxx\7.5", rb"-5.0 7.5"])
def test_a_damaged_position_is_refused_with_its_file(root, damaged):
    (case,) = read(root)
    path = find_series(root)["1.2.3.1"].folder / "006.dcm"
    path.write_bytes(path.read_bytes().replace(rb"-5.0\7.5", damaged))
    with pytest.raises(InputError, match="006.dcm: got no ImagePositionPatient, expected a CT slice"):
        case.load()


def test_an_outline_holds_the_centres_of_pixels():
    triangle = np.array([[0.6, 1.6], [3.7, 1.6], [0.6, 4.7]])  # x > 0.6, y > 1.6, x + y < 5.3
    assert np.argwhere(fill_outline(triangle, (6, 7))).tolist() == [[2, 1], [2, 2], [2, 3], [3, 1], [3, 2], [4, 1]]


def test_what_an_outline_encloses_twice_is_outside():
    angles = np.deg2rad(90 + 144 * np.arange(5))  # a pentagram
    star = 20 + 18 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = fill_outline(star, (41, 41))
    assert not mask[20, 20] and mask[20 + 14, 20] and not mask[20 - 14, 20]


def test_outlines_are_cut_off_at_the_edge():
    assert np.argwhere(fill_outline(np.array(box(x=(-3, 0), y=(2, 9))), (4, 3))).tolist() == [[2, 0], [3, 0]]
    assert not fill_outline(np.array(box(x=(8, 9), y=(-9, -8))), (4, 3)).any()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected annotations as MD.ai exports them"),
        ("{}", "got KeyError.'labelGroups'.*expected annotations as MD.ai exports them"),
        ('{"labelGroups": [], "datasets": [{"annotations": [{"labelId": "L_1"}]}]}', "got KeyError.'L_1'"),
        ('{"labelGroups": [], "datasets": []}', "got no outline of the labels Infectious opacity"),
    ],
)
def test_damaged_annotations_are_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "a.json")


def test_refuses_what_is_not_the_data_set(tmp_path, root, write_dicom):
    with pytest.raises(InputError, match=r"got 0 files \*annotations_labelgroup\*.json"):
        read(root / "MIDRC-RICORD-1A")
    write_annotations(tmp_path / "b", mark("L_op", slice_uid="1.2", vertices=box(x=(1, 2), y=(1, 2))))
    write_dicom(tmp_path / "b" / "other", series="7.7")
    with pytest.raises(InputError, match="got 1 DICOM series, expected some that have outlines of lesions"):
        read(tmp_path / "b")
    write_dicom(root / "again", series="1.2.3.2")
    with pytest.raises(InputError, match="got series 1.2.3.2 in .* and .*; keep one of them"):
        find_series(root)
    (root / "again" / "001.dcm").write_text("no DICOM")
    with pytest.raises(InputError, match="001.dcm: damaged or no DICOM file"):
        find_series(root)
