from __future__ import annotations

import pytest

from evaluation.errors import GroundTruthError
from evaluation.reference import case_name, read_reference

HEADER = "case,lesions,lobes,lul,lll,rul,rll,rml"


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("a.mha", "a"),
        ("a.NII.GZ", "a"),
        ("1.2.840.5", "1.2.840.5"),
        ("1.2.840.mha", "1.2.840"),
        ("a.nrrd", "a"),
        ("a", "a"),
    ],
)
def test_case_name(file_name, name) -> None:
    assert case_name(file_name) == name


def test_reads_scores_and_paths(reference) -> None:
    cases = read_reference(reference)
    assert list(cases) == ["a", "b"]
    assert cases["a"].scores == {"lul": 2, "lll": 2, "rul": 0, "rll": 0, "rml": None}
    assert cases["a"].lesions == reference / "secret-a.mha"


@pytest.mark.parametrize(
    ("cells", "total"),
    [("1,2,0,5,3,", 11), ("1,2,0,5,3,11", 11), ("1,2,0,5,3,11.0", 11), ("1,,0,5,3,", None), ("1,,0,5,3,12", 12)],
)
def test_the_total_is_the_sum_or_what_is_given(tmp_path, cells, total) -> None:
    (tmp_path / "reference.csv").write_text(f"{HEADER},total,ct\na,l.mha,o.mha,{cells},images/a.mha\n")
    case = read_reference(tmp_path)["a"]
    assert case.total == total
    assert case.ct == tmp_path / "images" / "a.mha"


def test_total_and_ct_may_be_left_out(reference) -> None:
    cases = read_reference(reference)
    assert (cases["a"].total, cases["b"].total) == (None, 1)
    assert cases["a"].ct is None


def test_scores_may_be_written_as_floats_and_other_columns_stay(tmp_path) -> None:
    text = (
        f"{HEADER},split,,\na,l.mha,o.mha,1.0,,0,5,3,test,,\n"  # two columns without a name, as spreadsheets leave them
    )
    (tmp_path / "reference.csv").write_text(text, encoding="utf-8-sig")
    assert read_reference(tmp_path)["a"].scores == {"lul": 1, "lll": None, "rul": 0, "rll": 5, "rml": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,lesions,lobes,lul,lll,rul,rll\n", "got no column rml"),
        (HEADER + "\n", "got no case"),
        (HEADER + ",lul\na,l,o,1,1,1,1,1,2\n", "got several columns lul, expected one of each"),
        (HEADER + ",total,total\na,l,o,1,1,1,1,1,5,5\n", "got several columns total"),
        (HEADER + "\na,l,o,1,1,1,1,1\na.mha,l,o,1,1,1,1,1\n", "case a is listed twice"),
        (HEADER + "\na,l,o,1,1,1,1,6\n", "case a: rml: got '6', expected 0 to 5"),
        (HEADER + "\na,l,o,1,1,1,1,-1\n", "case a: rml: got '-1', expected 0 to 5"),
        (HEADER + "\na,l,o,1,1,1,1,1.5\n", "case a: rml: got '1.5', expected 0 to 5"),
        (HEADER + ",total\na,l,o,1,1,1,1,1,26\n", "case a: total: got '26', expected 0 to 25"),
        (HEADER + ",total\na,l,o,1,1,1,1,1,6\n", "case a: got total 6, but its lobes' scores add up to 5 to 5"),
        (HEADER + ",total\na,l,o,1,1,1,1,,3\n", "case a: got total 3, but its lobes' scores add up to 4 to 9"),
        (HEADER + "\na,,o,1,1,1,1,1\n", "case 'a' has no lesions"),
        (HEADER + "\na,l,o,1,1,1,1\n", "row 1 has not as many cells"),
        (HEADER + "\na,l,o,1,1,1,1,1,1\n", "row 1 has not as many cells"),
    ],
)
def test_refuses_other_tables(tmp_path, text, message) -> None:
    (tmp_path / "reference.csv").write_text(text)
    with pytest.raises(GroundTruthError, match=message):
        read_reference(tmp_path)


def test_refuses_a_missing_table_and_missing_masks(tmp_path, reference) -> None:
    with pytest.raises(GroundTruthError, match="reference.csv: cannot be read"):
        read_reference(tmp_path)
    (reference / "secret-a.mha").unlink()
    with pytest.raises(GroundTruthError, match="reference case a: secret-a.mha: got no such file"):
        read_reference(reference)["a"].read()
