"""Splits, and the data directory that cases become."""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels
from training.cases import read_cases, read_scan
from training.importers.dataset import write_dataset
from training.importers.lobes import LobeFiles
from training.importers.source import (
    ImportedCase,
    LeftOut,
    PendingCase,
    Source,
    assign_splits,
    binary_lesions,
    split_of_cases,
)
from training.parallel import Workers

SOURCE = Source("Tiny", "CC0", "Nobody 2020", "https://example.org")
ONE = Workers(count=1)


def case(name, imported, *, sources=(), split="train", **known):
    return PendingCase(name, partial(lambda value: value, imported), sources, split=split, **known)


def failing(name, error):
    def load():
        raise error

    return PendingCase(name, load, (), split="train", brings_lobes=True)


@pytest.fixture
def ct(chest, grid):
    return Volume(chest, grid)


@pytest.fixture
def lesions(five_lobes):
    """A quarter of the left lower lobe: 12 of 48 voxels."""
    array = np.zeros_like(five_lobes.array)
    array[1, 2:8, 13:15] = 4
    return five_lobes.with_array(array)


def test_splits_depend_on_names_and_seed_not_on_order():
    names = [f"p{k}" for k in range(10)]
    splits = split_of_cases(names, seed=3, validation=2, test=3)
    assert sorted(splits.values()) == ["test"] * 3 + ["train"] * 5 + ["validation"] * 2
    assert split_of_cases(names[::-1] + names, seed=3, validation=2, test=3) == splits
    assert any(split_of_cases(names, seed=k, validation=2, test=3) != splits for k in range(5))
    with pytest.raises(InputError, match="got 2 validation and 9 test cases, expected no more than the 10 there are"):
        split_of_cases(names, seed=3, validation=2, test=9)


def test_scans_of_a_patient_share_a_split_and_a_stated_split_stays():
    cases = [PendingCase(f"p{k}_{n}", lambda: None, (), patient=f"p{k}") for k in range(6) for n in range(2)]
    stated = PendingCase("own", lambda: None, (), split="validation")
    assigned = assign_splits([*cases, stated], seed=0, validation=1, test=2)
    by_patient = {k: {c.split for c in assigned if c.patient == f"p{k}"} for k in range(6)}
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert sorted(s for splits in by_patient.values() for s in splits) == ["test"] * 2 + ["train"] * 3 + ["validation"]
    assert assigned[-1] == stated
    assert assign_splits([stated], seed=0, validation=0, test=0) == [stated]
    with pytest.raises(InputError, match="states the splits of its cases; leave out --validation and --test"):
        assign_splits([stated], seed=0, validation=1, test=0)


def test_a_binary_mask_is_of_unknown_subtype_never_ground_glass(grid):
    array = np.zeros(grid.size_zyx, np.float32)
    array[0, 0, 0] = 1
    lesions = binary_lesions(Volume(array, grid))
    assert lesions.array.dtype == np.uint8 and np.unique(lesions.array).tolist() == [0, 4]
    array[0, 0, 1] = 0.5
    with pytest.raises(InputError, match="the lesion mask holds labels 0.5, expected 0 and 1 only"):
        binary_lesions(Volume(array, grid))


def test_a_data_directory_that_training_reads(ct, five_lobes, lesions, tmp_path, capsys):
    healthy = ImportedCase(ct, five_lobes, scores=dict.fromkeys(range(1, 6), 0))
    cases = [
        case("ill", ImportedCase(ct, five_lobes, lesions), brings_lobes=True),
        case("well", healthy, split="test", brings_lobes=True),
    ]
    write_dataset(SOURCE, cases, tmp_path / "new" / "out", workers=ONE)
    out = tmp_path / "new" / "out"
    assert (out / "cases.csv").read_text() == (
        "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"
        "ill,images/ill_ct.mha,images/ill_lobes.mha,0,3,0,0,0,images/ill_lesions.mha,,train\n"
        "well,images/well_ct.mha,images/well_lobes.mha,0,0,0,0,0,,,test\n"
    )
    ill, well = read_cases(out)
    assert ill.scores == {1: 0, 2: 3, 3: 0, 4: 0, 5: 0} and well.lesions is None
    scan = read_scan(ill)
    assert scan.ct.geometry == ct.geometry and scan.ct.array.dtype == np.int16
    assert np.array_equal(scan.ct.array, ct.array) and np.array_equal(scan.lobes.array, five_lobes.array)
    assert np.array_equal(scan.lesions.array, lesions.array)
    assert (out / "LICENCE.txt").read_text().splitlines()[:4] == [
        "Tiny", "Licence: CC0", "Cite: Nobody 2020", "From: https://example.org",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "Tiny: 2 cases (1 train, 1 test)" in printed and "licence: CC0, see LICENCE.txt" in printed
    assert "lobes by score: 0: 9, 3: 1\n" in printed and "without a score" not in printed


def test_nothing_is_scored_without_masks_or_scores(ct, five_lobes, tmp_path):
    write_dataset(SOURCE, [case("a", ImportedCase(ct, five_lobes), brings_lobes=True)], tmp_path, workers=ONE)
    (row,) = pd.read_csv(tmp_path / "cases.csv", dtype=str).to_dict("records")
    assert row["lobes"] == "images/a_lobes.mha"
    assert all(pd.isna(row[key]) for key in ("lul", "lll", "rul", "rll", "rml", "lesions", "vessels"))


def test_scores_of_absent_lobes_are_dropped_and_unscored_lobes_are_named(ct, five_lobes, tmp_path, capsys):
    lobes = five_lobes.with_array(np.where(five_lobes.array == 5, 0, five_lobes.array))
    some = ImportedCase(ct, lobes, scores={1: 2, 2: 1, 3: 0, 5: 0})
    complete = ImportedCase(ct, five_lobes, scores=dict.fromkeys(range(1, 6), 1))
    cases = [case("a", some, brings_lobes=True), case("b", complete, brings_lobes=True)]
    write_dataset(SOURCE, cases, tmp_path, workers=ONE)
    assert [known.scores for known in read_cases(tmp_path)] == [{1: 2, 2: 1, 3: 0}, complete.scores]
    assert "lobes without a score (cut by the field of view, or not scored): a rll\n" in capsys.readouterr().out


def test_without_lobes_the_cts_are_written_and_the_error_says_how_to_go_on(
    ct, five_lobes, lesions, tmp_path, write_image
):
    cases = [case("a", ImportedCase(ct, lesions=lesions))]
    with pytest.raises(InputError, match="lungmask CASE_ct.mha LOBES/CASE.nii.gz --modelname LTRCLobes_R231") as caught:
        write_dataset(SOURCE, cases, tmp_path / "out", workers=ONE)
    assert "--lobe-labels" in str(caught.value) and "\n" not in str(caught.value)
    assert np.array_equal(read_ct(tmp_path / "out" / "images" / "a_ct.mha").array, ct.array)
    assert not (tmp_path / "out" / "cases.csv").exists()

    theirs = five_lobes.with_array(np.array([0, 1, 2, 3, 5, 4], np.uint8)[five_lobes.array])  # as lungmask numbers
    write_image(theirs, tmp_path / "lobes" / "a.nii.gz")
    write_dataset(SOURCE, cases, tmp_path / "out", lobes=LobeFiles(tmp_path / "lobes", "lungmask"), workers=ONE)
    written = read_labels(tmp_path / "out" / "images" / "a_lobes.mha")
    assert np.array_equal(written.array, five_lobes.array)
    assert read_cases(tmp_path / "out")[0].scores == {1: 0, 2: 3, 3: 0, 4: 0, 5: 0}

    with pytest.raises(InputError, match="a: the centre of right lower lobe is not behind"):
        write_dataset(SOURCE, cases, tmp_path / "new", lobes=LobeFiles(tmp_path / "lobes", "ours"), workers=ONE)


def test_complete_cases_are_not_read_again_unless_lobes_change(ct, five_lobes, lesions, tmp_path, write_image):
    files = LobeFiles(tmp_path / "lobes", "ours")
    write_image(five_lobes, files.folder / "a.mha")
    ready = case("a", ImportedCase(ct, lesions=lesions))
    write_dataset(SOURCE, [ready], tmp_path / "out", lobes=files, workers=ONE)
    unreadable = replace(ready, load=failing("a", InputError("read again")).load, split="test")
    write_dataset(SOURCE, [unreadable], tmp_path / "out", lobes=files, workers=ONE)
    assert pd.read_csv(tmp_path / "out" / "cases.csv").loc[0, ["lll", "split"]].tolist() == [3, "test"]

    (tmp_path / "out" / "images" / "a_lobes.mha").unlink()
    with pytest.raises(InputError, match="1 of 1 cases cannot be used: a: read again"):
        write_dataset(SOURCE, [unreadable], tmp_path / "out", lobes=files, workers=ONE)
    assert not (tmp_path / "out" / "cases.csv").exists()

    write_dataset(SOURCE, [ready], tmp_path / "out", lobes=files, workers=ONE)
    (tmp_path / "out" / "images" / "a.json").write_text('{"images": ')
    with pytest.raises(InputError, match="a: read again"):
        write_dataset(SOURCE, [unreadable], tmp_path / "out", lobes=files, workers=ONE)
    write_dataset(SOURCE, [ready], tmp_path / "out", lobes=files, workers=ONE)
    other = LobeFiles(tmp_path / "other", "ours")
    write_image(five_lobes, other.folder / "a.mha")
    with pytest.raises(InputError, match="a: read again"):
        write_dataset(SOURCE, [unreadable], tmp_path / "out", lobes=other, workers=ONE)


def test_a_case_is_read_again_when_its_files_have_changed(ct, five_lobes, lesions, tmp_path):
    (tmp_path / "series").mkdir()
    for name in ("mask", "series/1.dcm"):
        (tmp_path / name).write_text("first")
    sources = (tmp_path / "mask", tmp_path / "series")

    def scores(imported: ImportedCase) -> list[int]:
        write_dataset(SOURCE, [case("a", imported, sources=sources, brings_lobes=True)], tmp_path / "out", workers=ONE)
        return pd.read_csv(tmp_path / "out" / "cases.csv").loc[0, ["lul", "lll", "rul"]].tolist()

    healthy = ImportedCase(ct, five_lobes, scores=dict.fromkeys(range(1, 6), 0))
    diseased = replace(healthy, scores=dict.fromkeys(range(1, 6), 4))
    assert scores(healthy) == scores(diseased) == [0, 0, 0]
    (tmp_path / "mask").write_text("corrected")
    assert scores(diseased) == [4, 4, 4]
    assert scores(healthy) == [4, 4, 4]
    (tmp_path / "series" / "2.dcm").write_text("one more")
    assert scores(healthy) == [0, 0, 0]


def test_all_problems_come_together_and_can_be_skipped_aloud(ct, five_lobes, tmp_path, capsys):
    cases = [
        case("good", ImportedCase(ct, five_lobes), brings_lobes=True),
        failing("bad", InputError("no HU")),
        failing("worse", InputError("sheared")),
        failing("legs", LeftOut("no lobe in the scan")),
    ]
    with pytest.raises(InputError, match="2 of 4 cases cannot be used: bad: no HU; worse: sheared"):
        write_dataset(SOURCE, cases, tmp_path, workers=ONE)
    assert not (tmp_path / "cases.csv").exists()
    write_dataset(SOURCE, cases, tmp_path, skip_unusable=True, workers=ONE)
    assert pd.read_csv(tmp_path / "cases.csv")["case"].tolist() == ["good"]
    printed = capsys.readouterr().out
    assert "unusable: bad: no HU\nunusable: worse: sheared\n" in printed
    assert "left out: 1 cases, no lobe in the scan\n" in printed
    with pytest.raises(InputError, match="none of 2 cases can be used: bad: no HU"):
        write_dataset(SOURCE, [cases[1], cases[3]], tmp_path, skip_unusable=True, workers=ONE)


def test_a_full_disk_is_no_fault_of_the_case(ct, five_lobes, tmp_path, monkeypatch):
    def full(image, path, **options):
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    cases = [case("a", ImportedCase(ct, five_lobes), brings_lobes=True)]
    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(InputError, match=r"a_ct\.mha: no space left on the disk, .* run the same command again"):
        write_dataset(SOURCE, cases, tmp_path, skip_unusable=True, workers=ONE)
    assert list((tmp_path / "images").iterdir()) == []
    assert not (tmp_path / "cases.csv").exists()


def test_what_a_killed_import_left_is_removed(ct, five_lobes, tmp_path):
    left = tmp_path / "images" / "a_ct.mha.0f.tmp"
    left.mkdir(parents=True)
    (left / "a_ct.mha").touch()
    write_dataset(SOURCE, [case("a", ImportedCase(ct, five_lobes), brings_lobes=True)], tmp_path, workers=ONE)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a.json", "a_ct.mha", "a_lobes.mha"]


def test_masks_on_another_grid_or_with_other_labels_are_refused(ct, five_lobes, lesions, tmp_path):
    moved = Volume(lesions.array, replace(lesions.geometry, origin_xyz_mm=(0.0, 0.0, 0.0)))
    odd = lesions.with_array(np.where(lesions.array == 4, 6, 0).astype(np.uint8))
    cases = [
        case("a", ImportedCase(ct, five_lobes, moved), brings_lobes=True),
        case("b", ImportedCase(ct, five_lobes, odd), brings_lobes=True),
        case("c", ImportedCase(ct, five_lobes.with_array(five_lobes.array + 5)), brings_lobes=True),
    ]
    with pytest.raises(InputError) as caught:
        write_dataset(SOURCE, cases, tmp_path, workers=ONE)
    message = str(caught.value)
    assert "a: the lesion mask is not on the CT's grid: got origin in mm (0, 0, 0)" in message
    assert "b: the lesion mask holds labels 6, expected 0 and 1, 2, 3, 4 only" in message
    assert "c: the lobe mask holds labels 6, 7, 8, 9, 10" in message


def test_a_directory_of_another_source_and_repeated_names_are_refused(ct, five_lobes, tmp_path):
    cases = [case("a", ImportedCase(ct, five_lobes), brings_lobes=True)]
    write_dataset(SOURCE, cases, tmp_path, workers=ONE)
    with pytest.raises(InputError, match="holds another data set .see LICENCE.txt., expected Other"):
        write_dataset(replace(SOURCE, name="Other"), cases, tmp_path, workers=ONE)
    with pytest.raises(InputError, match="cases occur twice: a; expected one of each"):
        write_dataset(SOURCE, cases * 2, tmp_path, workers=ONE)
    with pytest.raises(InputError, match="no case to import"):
        write_dataset(SOURCE, [], tmp_path, workers=ONE)
    with pytest.raises(InputError, match="gone: no such folder; expected lobe masks"):
        write_dataset(SOURCE, cases, tmp_path, lobes=LobeFiles(tmp_path / "gone", "ours"), workers=ONE)
    with pytest.raises(InputError, match="the data set has lobes of its own; leave --lobes out"):
        write_dataset(SOURCE, cases, tmp_path, lobes=LobeFiles(tmp_path, "ours"), workers=ONE)


def test_a_mask_taken_away_from_a_complete_case_hides_no_other_problem(ct, five_lobes, tmp_path, write_image):
    files = LobeFiles(tmp_path / "lobes", "ours")
    for name in "ab":
        write_image(five_lobes, files.folder / f"{name}.mha")
    cases = [case(name, ImportedCase(ct)) for name in "ab"]
    write_dataset(SOURCE, cases, tmp_path / "out", lobes=files, workers=ONE)
    (files.folder / "a.mha").unlink()
    write_image(five_lobes.with_array(five_lobes.array + 5), files.folder / "b.mha")
    with pytest.raises(InputError, match="2 of 2 cases cannot be used: a: a: got 0 lobe masks .*; b: got lobe labels"):
        write_dataset(SOURCE, cases, tmp_path / "out", lobes=files, workers=ONE)
