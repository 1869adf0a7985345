import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume, write_labels
from training.cases import of_split, read_cases, read_scan

HEADER = "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"


@pytest.fixture
def data(tmp_path):
    for name in ("ct.mha", "lobes.mha"):
        (tmp_path / name).touch()
    return tmp_path


def write(data, *rows):
    (data / "cases.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))


def test_reads_scores_and_what_is_unknown(data):
    write(data, "a,ct.mha,lobes.mha,0,1,2,,5,,,train", "b,ct.mha,lobes.mha,0,0,0,0,0,lobes.mha,,test")
    first, second = read_cases(data)
    assert first.scores == {1: 0, 2: 1, 3: 2, 5: 5} and first.lesions is None
    assert second.lesions == data / "lobes.mha"
    assert [case.name for case in of_split([first, second], "test")] == ["b"]


def test_all_problems_are_reported_together_with_lines(data):
    write(
        data,
        "a,ct.mha,lobes.mha,0,1,2,6,5,,,train",
        "b,gone.mha,lobes.mha,0,1,2,3,5,,,train",
        "c,ct.mha,lobes.mha,0,1,2,3,5,,,training",
        "a,ct.mha,lobes.mha,0,1,2,3,5,,,test",
    )
    with pytest.raises(InputError) as caught:
        read_cases(data)
    message = str(caught.value)
    assert "4 problems" in message and "\n" not in message
    assert "line 2: rll: got score '6', expected 0 to 5 or nothing" in message
    assert "line 3: ct: no file gone.mha" in message
    assert "line 4: split: got 'training', expected one of train, validation, test" in message
    assert "case a occurs 2 times" in message


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a,ct.mha,lobes.mha,0,1,2,3,4,,,test"], "no case with split train"),
        (["a,ct.mha,lobes.mha,0,0,0,0,0,,,train"], "no training case with a lesion: every score is 0"),
        (["a,ct.mha,lobes.mha,,,,,,,,train"], "no lobe of a training case has a score"),
    ],
)
def test_tables_that_cannot_be_trained_on(data, rows, message):
    write(data, *rows)
    with pytest.raises(InputError, match=message):
        read_cases(data)


def test_missing_table_and_columns(data):
    with pytest.raises(InputError, match=r"cases\.csv: no such file; expected the table of cases"):
        read_cases(data)
    (data / "cases.csv").write_text("case,ct\na,b\n")
    with pytest.raises(InputError, match="columns missing: lobes, lul"):
        read_cases(data)


def test_a_scored_lobe_must_have_voxels(phantoms, tmp_path):
    case = read_cases(phantoms)[0]
    lobes = read_scan(case).lobes
    write_labels(
        Volume(np.where(lobes.array == 5, 0, lobes.array).astype(np.uint8), lobes.geometry), tmp_path / "l.mha"
    )
    changed = type(case)(**{**case.__dict__, "lobes": tmp_path / "l.mha"})
    with pytest.raises(InputError, match="right middle lobe has a score but no voxel in l.mha"):
        read_scan(changed)
