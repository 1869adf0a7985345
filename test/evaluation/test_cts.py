from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.comparison import judge_methods
from evaluation.cts import check_ct, read_ct
from evaluation.errors import GroundTruthError
from evaluation.reference import read_reference


def test_reads_the_scan_of_a_case(with_cts) -> None:
    case = read_reference(with_cts)["a"]
    check_ct(case)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(with_cts / "ct-a.mha")))
    assert np.array_equal(sitk.GetArrayFromImage(read_ct(case)), expected)


def test_a_case_without_a_scan_needs_none(reference) -> None:
    check_ct(read_reference(reference)["a"])


@pytest.fixture(params=["grid", "missing", "colours", "flat", "no image", "no mask"])
def unusable(request, with_cts, write_mask) -> str:
    """Spoil the scan of case b, or its mask; gives what the error must say."""
    ct = with_cts / "ct-b.mha"
    if request.param == "grid":
        write_mask(ct, np.zeros((6, 4, 5), np.int16), shift_mm=3.0)
        return "case b: .*ct-b.mha: got size_zyx .* expected the reference's size_zyx"
    if request.param == "colours":
        sitk.WriteImage(sitk.Image([5, 4, 6], sitk.sitkVectorUInt8, 3), str(ct))
        return "case b: .*ct-b.mha: got 3 dimensions and 3 channels, expected a CT with 3 and 1"
    if request.param == "flat":
        write_mask(ct, np.zeros((4, 5), np.int16))
        return "case b: .*ct-b.mha: got 2 dimensions and 1 channels, expected a CT with 3 and 1"
    if request.param == "no mask":
        (with_cts / "secret-b.mha").unlink()
        return "case b: secret-b.mha: got no such file"
    ct.unlink() if request.param == "missing" else ct.write_text("no image")
    return "case b: .*ct-b.mha: got no readable CT; correct or empty the column ct"


def test_an_unusable_scan_is_refused_before_anything_is_judged(with_cts, methods, monkeypatch, unusable) -> None:
    def judge_scan(task) -> None:
        raise AssertionError("judged")

    monkeypatch.setattr("evaluation.comparison.judge_scan", judge_scan)
    with pytest.raises(GroundTruthError, match=unusable):
        judge_methods(reference_directory=with_cts, methods=methods, against=None, resample=False, seed=0)
