from __future__ import annotations

import shutil

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume, read_labels
from training.cases import of_split, read_cases, read_scan, read_table
from training.importers.masks import Numbering
from training.importers.table import TableOptions, import_table, parse_column, read_score, recognise_columns
from training.parallel import Workers

HEADER = "case,ct,lobes,lul,lll,rul,rll,rml"


@pytest.fixture
def scans(tmp_path, grid, chest, five_lobes, write_image):
    """ct.mha, a folder below it with lobes.mha and lungmask.nii.gz, and a CT as a folder of DICOM."""
    folder = tmp_path / "scans"
    write_image(Volume(chest, grid), folder / "ct.mha")
    write_image(five_lobes, folder / "masks" / "lobes.mha")
    write_image(five_lobes.with_array(np.uint8(4) * (five_lobes.array == 2)), folder / "lesions.mha")
    swapped = np.array([0, 1, 2, 3, 5, 4], np.uint8)[five_lobes.array]
    write_image(five_lobes.with_array(swapped), folder / "masks" / "lungmask.nii.gz")
    return folder


@pytest.fixture
def run(scans, tmp_path):
    """Imports a table of the given lines, which lies beside the scans."""

    def run(*lines, seed=0, validation=0, test=0, **options):
        (scans / "scores.csv").write_text("\n".join(lines), encoding="utf-8")
        import_table(
            scans / "scores.csv",
            tmp_path / "out" / "data",
            TableOptions(**options),
            seed=seed,
            validation=validation,
            test=test,
            workers=Workers(1),
        )
        return read_cases(tmp_path / "out" / "data")

    return run


def test_scores_are_taken_and_files_stay(run, scans, tmp_path, write_dicom):
    write_dicom(scans / "dicom", series="1.2")
    first, second = run(
        HEADER + ",lesions,split",
        "a,ct.mha,masks/lobes.mha,0,1,2,3,,lesions.mha,train",
        "",
        f"b,dicom,{scans}/masks/lobes.mha,0.0,NA,5,n/a,4,,test",
    )
    assert (first.name, first.scores, first.split) == ("a", {1: 0, 2: 1, 3: 2, 4: 3}, "train")
    assert (second.name, second.scores, second.split) == ("b", {1: 0, 3: 5, 5: 4}, "test")
    assert first.lesions.resolve() == scans / "lesions.mha" and second.lesions is None
    assert read_scan(first).ct.array.shape == read_scan(second).ct.array.shape == (8, 12, 16)
    out = tmp_path / "out" / "data"
    assert [path.name for path in out.iterdir()] == ["cases.csv"]
    row = (out / "cases.csv").read_text().splitlines()[1]
    assert row.startswith("a,../../scans/ct.mha,../../scans/masks/lobes.mha,0,1,2,3,,")


def test_data_and_scans_can_be_moved_together(run, tmp_path):
    run(HEADER, "a,ct.mha,masks/lobes.mha,0,1,2,3,4")
    (tmp_path / "elsewhere").mkdir()
    for name in ("out", "scans"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    (case,) = read_cases(tmp_path / "elsewhere" / "out" / "data")
    assert read_scan(case).lobes.array.max() == 5


def test_headers_of_other_kinds(run, capsys):
    (case,) = run(
        "\ufeffCase,CT,Lobes,LUL,Left_Lower_Lobe,right upper,Score RLL,Mitte,age",
        "a,ct.mha,masks/lobes.mha,0,1,2,3,4,61",
        columns={"rml": "Mitte"},
    )
    assert case.scores == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert "columns not used: age" in capsys.readouterr().out


def test_semicolons_and_decimal_commas(run):
    (case,) = run(HEADER.replace(",", ";"), "a;ct.mha;masks/lobes.mha;0;2,5;5;;", percent=True)
    assert case.scores == {1: 0, 2: 1, 3: 2}


def test_percentages_become_scores(run):
    (case,) = run(
        "case,ct,lobes,lul %,lll percent,rul,rll,rml", "a,ct.mha,masks/lobes.mha,0,0.4,5%,74.9,100", percent=True
    )
    assert case.scores == {1: 0, 2: 1, 3: 2, 4: 4, 5: 5}


@pytest.mark.parametrize(
    "percent, score",
    [("0", "0"), ("0,1", "1"), ("4.99", "1"), ("5", "2"), ("25", "3"), ("50", "4"), ("75", "5"), ("100", "5")],
)
def test_bands_of_percentages(percent, score):
    assert read_score(percent, percent=True) == score


@pytest.mark.parametrize(
    "text, score", [("0", "0"), ("5", "5"), ("3.0", "3"), ("2,0", "2"), ("", ""), ("NA", ""), ("n/a", ""), ("NaN", "")]
)
def test_scores(text, score):
    assert read_score(text, percent=False) == score


@pytest.mark.parametrize("text", ["6", "-1", "2.5", "5%", "x", "inf"])
def test_what_is_no_score(text):
    assert read_score(text, percent=False) == text


@pytest.mark.parametrize("text", ["101", "-0.1", "1.000,5", "inf", "x"])
def test_what_is_no_percentage(text):
    assert read_score(text, percent=True) == f"{text} percent"


@pytest.mark.parametrize(
    "headers, chosen, message",
    [
        ("case,ct,lobes,lul,lll,rul,rll", {}, "no column for rml; got columns case, ct, .*--column NAME=HEADER"),
        ("case,ct,lobes,lul %,lll,rul,rll,rml", {}, "no column for lul"),
        (HEADER + ",LUL score", {}, "several columns for lul: lul, LUL score"),
        (HEADER, {"lul": "left"}, "no column 'left'"),
        (HEADER, {"upper": "lul"}, "no column upper is known, only case, ct"),
    ],
)
def test_columns_that_are_missing_or_ambiguous(headers, chosen, message):
    with pytest.raises(InputError, match=message):
        recognise_columns(headers.split(","), chosen, percent=False)


def test_a_chosen_column_goes_before_what_is_recognised():
    columns = recognise_columns([*HEADER.split(","), "LUL score"], {"lul": "LUL score"}, percent=False)
    assert columns["lul"] == "LUL score"


@pytest.mark.parametrize("text", ["lul", "=x", "lul="])
def test_columns_that_cannot_be_taken_apart(text):
    with pytest.raises(InputError, match=f"--column {text}: expected NAME=HEADER"):
        parse_column(text)


def test_headers_may_hold_equals_signs():
    assert parse_column("lul=a=b") == ("lul", "a=b")


def test_all_problems_of_the_table_come_together(run, tmp_path):
    with pytest.raises(InputError) as caught:
        run(
            HEADER,
            "a,ct.mha,masks/lobes.mha,0,1,2,3,6",
            "",
            "b,gone.mha,,0,1,2,3,4",
            "a,ct.mha,masks/lobes.mha,0,1,2,3,4",
            "../c,ct.mha,masks/lobes.mha,0,1,2,3,4",
        )
    first, *others = str(caught.value).splitlines()
    assert first == f"{tmp_path}/scans/scores.csv: 5 problems"
    assert [line.split(":")[0].strip() for line in others] == ["line 2", "line 4", "line 4", "line 5", "line 6"]
    assert "rml: got score '6', expected 0, 1, 2, 3, 4, 5 or nothing" in others[0]
    assert "lobes is empty" in others[1] and f"ct: {tmp_path}/scans/gone.mha: no such file" in others[2]
    assert "case a is also on line 2" in others[3] and "case: got '../c', expected a name" in others[4]
    assert not (tmp_path / "out").exists()


def test_a_percentage_beyond_100(run):
    with pytest.raises(InputError, match="scores.csv: line 2: rll: got score '120 percent'"):
        run(HEADER, "a,ct.mha,masks/lobes.mha,0,10,20,120,", percent=True)


def test_problems_of_lobe_masks_come_together(run, scans, five_lobes, write_image, tmp_path):
    write_image(five_lobes.with_array(np.where(five_lobes.array == 5, 0, five_lobes.array)), scans / "four.mha")
    with pytest.raises(InputError) as caught:
        run(
            HEADER,
            "a,ct.mha,masks/lungmask.nii.gz,0,1,2,3,4",
            "b,ct.mha,masks/lobes.mha,0,1,2,3,4",
            "c,ct.mha,four.mha,0,1,2,3,4",
        )
    message = str(caught.value)
    assert f"{scans}/scores.csv: 2 problems\n  line 2: lobes: " in message and "--lobe-labels" in message
    assert f"line 4: lobes: right middle lobe has a score but no voxel in {scans}/four.mha" in message
    assert not (tmp_path / "out").exists()


def test_lobes_of_lungmask_are_renumbered(run, five_lobes, tmp_path):
    (case,) = run(HEADER, "a,ct.mha,masks/lungmask.nii.gz,0,1,2,3,4", numbering=Numbering(lobes="lungmask"))
    assert case.lobes == tmp_path / "out" / "data" / "images" / "a_lobes.mha"
    assert np.array_equal(read_labels(case.lobes).array, five_lobes.array)


def test_splits_are_drawn_patient_by_patient(run, scans):
    names = ("a1", "a2", "b1", "b2", "c1", "d1")
    for name in names:
        shutil.copy(scans / "ct.mha", scans / f"{name}.mha")
    rows = [f"{name},{name}.mha,masks/lobes.mha,0,1,2,3,4,{name[0]}" for name in names]
    cases = run(HEADER + ",patient", *rows, seed=3, validation=1, test=2)
    patients = {split: {case.name[0] for case in of_split(cases, split)} for split in ("train", "validation", "test")}
    assert [len(patients[split]) for split in ("train", "validation", "test")] == [1, 1, 2]
    assert set.union(*patients.values()) == set("abcd")


def test_stated_splits(run):
    row = "ct.mha,masks/lobes.mha,0,1,2,3,4"
    with pytest.raises(InputError, match="states splits; leave out --validation and --test, or its column split"):
        run(HEADER + ",split", f"a,{row},train", validation=1)
    with pytest.raises(
        InputError, match=r"(?s)line 3: split: got '', expected one of .* line 4: split: got 'training'"
    ):
        run(HEADER + ",split", f"a,{row},train", f"b,{row},", f"c,{row},training")


def test_a_patient_in_two_stated_splits(run):
    row = "ct.mha,masks/lobes.mha,0,1,2,3,4"
    with pytest.raises(InputError, match=r"patient p \(lines 2, 4\): got splits test, train, expected one"):
        run(HEADER + ",patient,split", f"a,{row},p,train", f"b,{row},q,train", f"c,{row},p,test")


@pytest.mark.parametrize(
    ("row", "lack"),
    [
        ("0,0,0,0,0,train", "no training case with a lesion: every score is 0"),
        (",,,,,train", "no lobe of a training case has a score"),
        ("0,1,2,3,4,test", "no case with split train"),
    ],
)
def test_what_cannot_be_trained_on_alone_is_imported_and_said(run, scans, tmp_path, capsys, row, lack):
    """Healthy scans, lobes alone and held-out cases are rows to be joined with others."""
    with pytest.raises(InputError, match=lack):
        run(HEADER + ",split", f"a,ct.mha,masks/lobes.mha,{row}")
    assert f"not to be trained on alone: {lack}" in capsys.readouterr().out
    assert [case.name for case in read_table(tmp_path / "out" / "data")] == ["a"]


def test_lesion_masks_that_tell_no_subtypes(run, scans, five_lobes, write_image, capsys, tmp_path):
    write_image(five_lobes.with_array((five_lobes.array == 2).astype(np.uint8)), scans / "binary.mha")
    row = "ct.mha,masks/lobes.mha,0,1,2,3,4"
    run(HEADER + ",lesions", f"a,{row},binary.mha", f"b,{row},lesions.mha")
    assert "--lesion-labels binary" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    run(HEADER + ",lesions", f"a,{row},binary.mha", f"b,{row},")
    assert "every lesion is labelled 1, ground-glass; if the masks do not tell subtypes" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    (case,) = run(HEADER + ",lesions", f"a,{row},binary.mha", numbering=Numbering(lesions="binary"))
    assert case.lesions == tmp_path / "out" / "data" / "images" / "a_lesions.mha"
    assert np.array_equal(read_labels(case.lesions).array == 4, five_lobes.array == 2)
    assert case.lobes.resolve() == scans / "masks" / "lobes.mha"


def test_lesion_masks_of_other_labels(run, scans, five_lobes, write_image, tmp_path):
    row = "ct.mha,masks/lobes.mha,0,1,2,3,4"
    with pytest.raises(InputError, match="line 2: lesions: the lesion mask holds labels 5, expected 0 and 1, 2, 3, 4"):
        run(HEADER + ",lesions", f"a,{row},masks/lobes.mha")
    with pytest.raises(InputError, match="line 2: lesions: the lesion mask holds labels 4, expected 0 and 1 only"):
        run(HEADER + ",lesions", f"a,{row},lesions.mha", numbering=Numbering(lesions="binary"))
    assert not (tmp_path / "out").exists()


def test_fractions_for_percentages_are_said(run, tmp_path, capsys):
    run(HEADER, "a,ct.mha,masks/lobes.mha,0,0.1,0.3,1,", percent=True)
    assert "no percentage exceeds 1; if these are fractions of a lobe" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    run(HEADER, "a,ct.mha,masks/lobes.mha,0,0.1,0.3,2%,", percent=True)
    assert "if these are fractions" not in capsys.readouterr().out


def test_another_data_set_is_not_overwritten(run):
    run(HEADER, "a,ct.mha,masks/lobes.mha,0,1,2,3,4")
    with pytest.raises(InputError, match="cases.csv exists; choose another directory, or delete it"):
        run(HEADER, "a,ct.mha,masks/lobes.mha,0,1,2,3,5")


def test_a_table_that_is_missing_or_none(tmp_path, run):
    options = {"seed": 0, "validation": 0, "test": 0}
    with pytest.raises(InputError, match="none.csv: no such file"):
        import_table(tmp_path / "none.csv", tmp_path / "out", TableOptions(), **options)
    with pytest.raises(InputError, match="line 2: got 9 values; expected 8 as in the first line"):
        run(HEADER, "a,ct.mha,masks/lobes.mha,0,1,2,3,4,5")
    with pytest.raises(InputError, match="expected comma-separated values in UTF-8"):
        run(HEADER, '"a')
    with pytest.raises(InputError, match="no column for case"):
        run("")
    with pytest.raises(InputError, match="scores.csv: got no case, expected a line for each"):
        run(HEADER)
