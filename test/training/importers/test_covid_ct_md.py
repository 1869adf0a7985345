from __future__ import annotations

import numpy as np
import pytest

from algorithm.errors import InputError
from training.importers.covid_ct_md import SOURCE, find_subjects, presence_scores, read, read_presence
from training.importers.dataset import write_dataset
from training.importers.lobes import LobeFiles
from training.importers.source import assign_splits
from training.parallel import Workers

SLICES, LONGEST = 8, 9
LLL, LUL, RLL, RML, RUL = range(5)


@pytest.fixture
def root(tmp_path, write_dicom):
    """P001 has disease in the left lower and right middle lobe, P002 everywhere, cap001 nowhere; P003 has no labels."""
    folder = tmp_path / "COVID-CT-MD"
    for number, subject in enumerate(
        ("COVID-19 Cases/P001", "covid-19 subjects/P002", "COVID-19 subjects/P003", "Cap subjects/cap001"), start=1
    ):
        write_dicom(folder / subject, series=f"1.2.3.{number}")
    write_dicom(folder / "NORMAL Subjects" / "Normal001", series="1.2.3.9")
    write_index(folder, {"P001": 0, "P002": 1, "cap001": 3})
    by_lobe = np.zeros((3, LONGEST, 5), np.int64)
    by_lobe[0, 2:4, LLL] = by_lobe[0, 4, RML] = 1
    by_lobe[1, 1] = 1
    write_labels(folder, by_lobe)
    return folder


def write_index(folder, index):
    rows = [f"{number},COVID-19,./COVID-19/,{name}" for name, number in index.items()]
    (folder / "Index.csv").write_text("\n".join(["Label Index,Diagnosis,Relative Path,Folder/ID", *rows]))


def write_labels(folder, by_lobe, by_slice=None, *, version=""):
    np.save(folder / f"Lobe-level-labels{version}.npy", by_lobe)
    np.save(folder / f"Slice-level-labels{version}.npy", by_lobe.max(axis=2) if by_slice is None else by_slice)


def scores(case):
    return case.load().scores


def test_only_lobes_without_disease_get_a_score(root, capsys):
    cases = {case.name: case for case in read(root)}
    assert list(cases) == ["cap001", "Normal001", "P001"]
    assert scores(cases["P001"]) == {1: 0, 3: 0, 4: 0}  # left upper, right upper, right lower
    assert scores(cases["cap001"]) == scores(cases["Normal001"]) == {1: 0, 2: 0, 3: 0, 4: 0, 5: 0}
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 5 scans, 1 without labels and 1 with disease in every lobe are left out" in printed
    assert "13 have score 0, and 2 are diseased and have no score" in printed


def test_the_scan_is_read_from_the_feet_up(root, chest):
    ct = next(case for case in read(root) if case.name == "P001").load().ct
    assert np.array_equal(ct.array, chest)


@pytest.mark.parametrize("order, label", [(LLL, 2), (LUL, 1), (RLL, 4), (RML, 5), (RUL, 3)])
def test_the_order_of_lobes(order, label):
    presence = np.ones((4, 5), np.bool_)
    presence[:, order] = False
    assert presence_scores(presence) == {label: 0}


def test_rows_follow_the_index_where_there_is_one_for_each_number(root):
    by_lobe = np.zeros((4, LONGEST, 5), np.int64)
    by_lobe[3, 0, RUL] = 1  # cap001; row 2 belongs to nobody
    write_labels(root, by_lobe)
    presence = read_presence(root)
    assert np.argwhere(presence["cap001"]).tolist() == [[0, RUL]]
    assert not presence["p001"].any() and len(presence) == 3


def test_updated_labels_go_first(root):
    write_labels(root, np.zeros((3, LONGEST, 5), np.int64), version="-updated-1")
    assert not any(labels.any() for labels in read_presence(root).values())


def test_an_infected_slice_without_a_lobe_may_be_of_any_lobe(root):
    by_slice = np.zeros((3, LONGEST), np.int64)
    by_slice[2, 4] = 1
    write_labels(root, np.zeros((3, LONGEST, 5), np.int64), by_slice)
    assert np.argwhere(read_presence(root)["cap001"].all(axis=1)).tolist() == [[4]]
    assert "cap001" not in [case.name for case in read(root)]


@pytest.mark.parametrize(
    "shape, last, message",
    [
        ((3, LONGEST, 5), SLICES, r"cap001 has 8 slices, its labels 9 to 9; files are missing"),
        ((3, SLICES - 1, 5), 0, r"3 subjects do not fit their labels: cap001 has 8 slices, its labels 1 to 7; P001"),
    ],
)
def test_refuses_labels_of_another_number_of_slices(root, shape, last, message):
    by_lobe = np.zeros(shape, np.int64)
    by_lobe[2, last, LLL] = 1
    write_labels(root, by_lobe)
    with pytest.raises(InputError, match=message):
        read(root)


@pytest.mark.parametrize(
    "by_lobe, by_slice, message",
    [
        (np.zeros((5, 9, 5)), np.zeros((5, 9)), "got labels of 5 cases, but Index.csv has 3"),
        (np.zeros((3, 9, 4)), np.zeros((3, 9)), r"got shape \(3, 9, 4\) and \(3, 9\) in Slice-level-labels.npy"),
        (np.zeros((3, 9, 5)), np.zeros((3, 8)), r"expected \(cases, slices, 5\) and \(cases, slices\)"),
        (np.full((3, 9, 5), 2), np.ones((3, 9)), "Lobe-level-labels.npy: got values other than 0 and 1"),
        (np.array([{}]), np.zeros((3, 9)), "Lobe-level-labels.npy: got .*expected an array of numbers"),
    ],
)
def test_refuses_labels_that_do_not_fit(root, by_lobe, by_slice, message):
    write_labels(root, by_lobe, by_slice)
    with pytest.raises(InputError, match=message):
        read_presence(root)


def test_refuses_an_index_it_cannot_read(root):
    (root / "Index.csv").write_text("patient\nP001\n")
    with pytest.raises(InputError, match="expected columns Label Index, Folder/ID"):
        read_presence(root)
    write_index(root, {"P001": 0, "P002": 0})
    with pytest.raises(InputError, match="expected one for each labelled subject, each with its own index"):
        read_presence(root)
    (root / "Index.csv").unlink()
    with pytest.raises(InputError, match=r"got no file index\*\.csv"):
        read_presence(root)


def test_refuses_no_subject_and_two_of_one_name(root, tmp_path, write_dicom):
    (tmp_path / "empty" / "P001").mkdir(parents=True)
    with pytest.raises(InputError, match="no folders P001, cap001 or normal001 with .dcm files"):
        find_subjects(tmp_path / "empty")
    write_dicom(root / "Sample data" / "p001", series="1.2.3.1")
    with pytest.raises(InputError, match="expected one folder a subject"):
        find_subjects(root)


def test_import(root, tmp_path, five_lobes, write_image):
    for name in ("P001", "cap001", "Normal001"):
        write_image(five_lobes, tmp_path / "lobes" / f"{name}.nii.gz")
    cases = assign_splits(read(root), seed=0, validation=0, test=0)
    masks = LobeFiles(tmp_path / "lobes", "ours")
    write_dataset(SOURCE, cases, tmp_path / "out", lobes=masks, workers=Workers(1))
    lines = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert lines[0] == "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split"
    assert "P001,images/P001_ct.mha,images/P001_lobes.mha,0,,0,0,,,,train" in lines
    assert "Normal001,images/Normal001_ct.mha,images/Normal001_lobes.mha,0,0,0,0,0,,,train" in lines
