import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.complete import require_complete

HEADER = "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"
SHAPE = (4, 5, 6)
GRID = Geometry(SHAPE, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
HEALTHY = "h,ct.mha,image.mha,0,0,0,0,0,image.mha,,train"
ILL = "i,ct.mha,image.mha,0,1,2,3,5,image.mha,,train"
VALIDATION = "v,ct2.mha,image.mha,0,1,2,3,5,image.mha,,validation"
TEST = "t,ct3.mha,image.mha,0,1,2,3,5,image.mha,,test"

VESSELS = "no training case with score 0 in all five lobes, to learn vessels from"
REGRESS = "no validation case with a score, to tell the best network by"
SUBTYPES = (
    "no validation case with reference lesions of known subtype {1: 'ground-glass', 2: 'consolidation', 3: 'mixed'}"
)
TESTS = "no test case with reference lesions, to compare on"


@pytest.fixture
def data(tmp_path):
    for name in ("ct", "ct2", "ct3"):
        image = Volume(np.zeros(SHAPE, dtype=np.int16), GRID)
        sitk.WriteImage(image.to_sitk(), str(tmp_path / f"{name}.mha"))
    for name, label in (("image", 2), ("unknown", 4)):
        image = Volume(np.full(SHAPE, label, dtype=np.uint8), GRID)
        sitk.WriteImage(image.to_sitk(), str(tmp_path / f"{name}.mha"))
    return tmp_path


def lacks(data, *rows, with_comparison=False):
    (data / "cases.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    with pytest.raises(InputError) as caught:
        require_complete(data, with_comparison=with_comparison)
    lines = str(caught.value).removeprefix(f"{data}/cases.csv: ").split("\n  ")
    return lines if len(lines) == 1 else lines[1:]


def test_cases_for_everything_are_enough(data):
    (data / "cases.csv").write_text("\n".join([HEADER.strip(), HEALTHY, ILL, VALIDATION, TEST]))
    require_complete(data, with_comparison=True)
    (data / "cases.csv").write_text("\n".join([HEADER.strip(), HEALTHY, ILL.replace("image.mha,,", ",,"), VALIDATION]))
    require_complete(data, with_comparison=False)


def test_all_that_is_lacking_is_told_together(data):
    found = lacks(data, HEALTHY.replace("train", "test"), with_comparison=True)
    assert found == ["no case with split train", VESSELS, REGRESS, f"{SUBTYPES}, for the vote"]
    found = lacks(data, ILL.replace("0,1,2,3,5,image.mha", "1,1,2,3,5,"), with_comparison=True)
    assert found[:3] == [VESSELS, REGRESS, f"{SUBTYPES}, for the vote"]
    assert found[3:] == [
        "no training lobe with score 0, which the baseline must tell from diseased ones",
        "no reference lesions of training case i, for the supervised upper bound",
        TESTS,
    ]


@pytest.mark.parametrize(
    "rows, lack",
    [
        ((ILL, VALIDATION, TEST), VESSELS),
        ((HEALTHY.replace("0,0,0,0,0", "0,0,0,0,"), ILL, VALIDATION, TEST), VESSELS),
        ((HEALTHY, ILL, VALIDATION.replace("0,1,2,3,5", ",,,,"), TEST), REGRESS),
        ((HEALTHY, ILL, VALIDATION.replace("5,image.mha", "5,"), TEST), f"{SUBTYPES}, for the vote"),
        ((HEALTHY, ILL, VALIDATION.replace("5,image.mha", "5,unknown.mha"), TEST), f"{SUBTYPES}, for the vote"),
        ((HEALTHY, ILL, VALIDATION), TESTS),
        ((HEALTHY, ILL, VALIDATION, TEST.replace("5,image.mha", "5,")), TESTS),
    ],
)
def test_each_lack_by_itself(data, rows, lack):
    assert lacks(data, *rows, with_comparison=True) == [lack]


def test_what_is_lacking_is_told_with_the_problems_of_the_rows(data):
    row = "line 3: lll: got score '7', expected 0, 1, 2, 3, 4, 5 or nothing"
    assert lacks(data, HEALTHY, ILL.replace("0,1", "0,7"), VALIDATION, TEST) == [row]
    found = lacks(data, HEALTHY, ILL.replace("0,1", "0,7"), TEST.replace("image.mha,,", "gone.mha,,"))
    gone = f"line 4: lesions: {data}/gone.mha: no such file or folder"
    assert found == [REGRESS, f"{SUBTYPES}, for the vote", row, gone]


def test_lesions_that_cannot_be_read_may_have_a_subtype(data):
    gone = VALIDATION.replace("5,image.mha", "5,gone.mha")
    found = lacks(data, HEALTHY, ILL, gone, TEST)
    assert found == [f"line 4: lesions: {data}/gone.mha: no such file or folder"]
