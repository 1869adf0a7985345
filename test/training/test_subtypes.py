import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.subtypes import ReferenceComponents
from training.cases import read_cases
from training.parallel import Workers
from training.settings import SubtypeSettings, TrainingConfig
from training.stages import Run
from training.subtypes import chosen_shortlist, left_out_iou, reference_components, subtypes

SHAPE = (8, 16, 20)
GRID = Geometry(SHAPE, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
HEADER = "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"


def write_case(data, name, lesions):
    """Five lobes of 6 x 12 x 3 voxels of 2 cubic mm side by side; HU -800 and -700 in turn in planes of y."""
    lobes = np.zeros(SHAPE, dtype=np.uint8)
    for label in range(1, 6):
        lobes[1:7, 2:14, 3 * label : 3 * label + 3] = label
    ct = np.full(SHAPE, -1000, dtype=np.int16)
    ct[:, 0::2], ct[:, 1::2] = -800, -700
    for kind, array in {"ct": ct, "lobes": lobes, "lesions": lesions}.items():
        sitk.WriteImage(Volume(array, GRID).to_sitk(), str(data / f"{name}_{kind}.mha"))


def labelled(*boxes):
    lesions = np.zeros(SHAPE, dtype=np.uint8)
    for label, z, y, x in boxes:
        lesions[z, y, x] = label
    return lesions


@pytest.fixture
def run(tmp_path):
    (tmp_path / "out").mkdir()
    rows = ["a,a_ct.mha,a_lobes.mha,1,1,1,1,1,a_lesions.mha,,train"]
    rows += [f"{name},{name}_ct.mha,{name}_lobes.mha,1,1,1,1,1,{name}_lesions.mha,,validation" for name in "bc"]
    for name in "abc":
        write_case(tmp_path, name, labelled())
    (tmp_path / "cases.csv").write_text(HEADER + "\n".join(rows))
    return Run(tmp_path, tmp_path / "run", TrainingConfig(), workers=Workers(1))


def test_lesions_of_known_subtype_that_are_large_enough_are_the_table(run):
    whole, half = slice(1, 7), slice(2, 4)
    write_case(
        run.data,
        "b",
        labelled(
            (1, whole, slice(2, 6), slice(3, 6)),  # 6 * 4 * 3 voxels, half of them -800, half -700
            (3, whole, slice(6, 7), slice(3, 9)),  # touches it, and is its own: 6 * 1 * 6 voxels of -800
            (2, half, slice(12, 16), slice(12, 17)),  # 2 * 4 * 5 voxels, half of them outside the lobes: too small
            (4, whole, slice(2, 14), slice(12, 15)),  # of unknown subtype, over part of that
        ),
    )
    table = reference_components(read_cases(run.data)[1])
    assert table["subtype"].tolist() == [1, 3]
    np.testing.assert_allclose(table["volume_ml"], [0.144, 0.072])
    np.testing.assert_allclose(table["mean_hu"], [-750, -800])
    assert table["sd_hu"].iloc[0] == pytest.approx(50, rel=0.01)


def test_the_validation_cases_make_the_table(run):
    lesion = (slice(1, 7), slice(2, 6), slice(3, 6))
    write_case(run.data, "a", labelled((3, *lesion)))
    write_case(run.data, "b", labelled((1, *lesion)))
    write_case(run.data, "c", labelled((2, *lesion)))
    folder = run.data / "out"
    assert subtypes(run, folder) == {
        "cases": 2,
        "components": {"ground-glass": 1, "consolidation": 1, "mixed": 0},
        "shortlist": 10,
        "left_out_iou": {"10": 0.0},  # of two lesions, each named by the other
    }
    assert [path.name for path in folder.iterdir()] == ["subtypes.csv"]
    assert list(pd.read_csv(folder / "subtypes.csv").columns) == ["volume_ml", "mean_hu", "sd_hu", "subtype"]
    assert ReferenceComponents.read(folder / "subtypes.csv").subtype.tolist() == [1, 2]


def test_lesions_of_unknown_subtype_alone_make_none(run):
    write_case(run.data, "b", labelled((4, slice(1, 7), slice(2, 6), slice(3, 6))))
    with pytest.raises(
        InputError, match=r"lesions of the validation cases are empty, smaller than 0\.05 ml or of unkn"
    ):
        subtypes(run, run.data / "out")
    assert list((run.data / "out").iterdir()) == []


def test_no_validation_case_with_lesions(run):
    table = (run.data / "cases.csv").read_text().replace("validation", "test")
    (run.data / "cases.csv").write_text(table)
    with pytest.raises(InputError, match="no validation case with reference lesions; a few scans"):
        subtypes(run, run.data / "out")


def two_scans():
    """25 faint lesions of 1 ml in each, and 3 dense ones, of 1.5 ml in one scan and of 0.3 ml in the other."""
    columns = ["volume_ml", "mean_hu", "sd_hu", "subtype", "case"]
    faint = [(1.0, -650.0, 100.0, 1, case) for case in "ab" for _ in range(25)]
    dense = [(volume, -200.0, 150.0, 2, case) for case, volume in (("a", 1.5), ("b", 0.3)) for _ in range(3)]
    return pd.DataFrame(faint + dense, columns=columns)


def test_the_shortlist_is_the_one_under_which_scans_name_each_others_lesions_best():
    shortlist, tried = chosen_shortlist(two_scans(), SubtypeSettings())
    faint_alone = (25 / (25 + 4.5) + 25 / (25 + 0.9)) / 2  # ten or twenty of the nearest hold no dense one
    assert shortlist == 40
    assert tried == pytest.approx({10: faint_alone / 2, 20: faint_alone / 2, 40: 1.0})


def test_a_shortlist_of_the_settings_stays_and_one_scan_cannot_choose_any():
    assert chosen_shortlist(two_scans(), SubtypeSettings(shortlist=7)) == (7, {})
    one = two_scans().query("case == 'a'")
    assert chosen_shortlist(one, SubtypeSettings()) == (10, {})


def test_a_subtype_that_is_in_no_scan_does_not_count():
    table = two_scans().query("subtype == 1")
    assert left_out_iou(table, SubtypeSettings().rules(10)) == 1.0
