from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithm.errors import InputError
from algorithm.subtypes import Components, ReferenceComponents, VoteRules, find_components, normal_kld, paint, vote


def components(volume_ml, mean_hu, sd_hu) -> Components:
    n = len(volume_ml)
    arrays = [np.array(values, dtype=float) for values in (volume_ml, mean_hu, sd_hu)]
    return Components(np.arange(n + 1).reshape(1, 1, -1), *arrays, centre_zyx=np.zeros((n, 3)))


def reference(rows) -> ReferenceComponents:
    volume, mean, sd, subtype = (np.array(column) for column in zip(*rows, strict=True))
    return ReferenceComponents(volume.astype(float), mean.astype(float), sd.astype(float), subtype.astype(np.uint8))


def test_components_join_at_corners_and_are_measured():
    lesions = np.zeros((4, 4, 4), dtype=bool)
    lesions[0, 0, 0] = lesions[1, 1, 1] = True  # touch at a corner: one lesion of 26 neighbours
    lesions[3, 3, 3] = True
    hu = np.full((4, 4, 4), -800)
    hu[0, 0, 0], hu[1, 1, 1], hu[3, 3, 3] = -600, -500, -100
    found = find_components(lesions, hu, voxel_ml=0.25)
    order = np.argsort(found.mean_hu)
    assert found.volume_ml[order].tolist() == [0.5, 0.25]
    assert found.mean_hu[order].tolist() == [-550, -100]
    assert found.sd_hu[order].tolist() == [50, 1]  # one voxel has no spread: floored at 1 HU
    assert found.centre_zyx[order].tolist() == [[0.5] * 3, [3.0] * 3]


def test_no_lesion_is_no_component():
    found = find_components(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2)), voxel_ml=1.0)
    assert len(found) == 0
    assert vote(found, reference([(1, -600, 50, 1)])).size == 0


def test_kld_by_hand():
    # ln(2) + (1 + 4) / 8 - 1/2 for N(0, 1) against N(2, 2)
    assert normal_kld(0.0, 1.0, 2.0, 2.0) == pytest.approx(np.log(2) + float(Fraction(5, 8) - Fraction(1, 2)))


@given(st.floats(-900, 100), st.floats(1, 300), st.floats(-900, 100), st.floats(1, 300))
def test_kld_is_not_negative_and_zero_for_itself(mean_p, sd_p, mean_q, sd_q):
    assert normal_kld(mean_p, sd_p, mean_q, sd_q) >= -1e-9
    assert normal_kld(mean_p, sd_p, mean_p, sd_p) == pytest.approx(0, abs=1e-12)


def test_vote_weighs_the_five_nearest_by_rank():
    # ranks by divergence: subtype 2 (weight 5), then four of subtype 1 (4 + 3 + 2 + 1 = 10)
    rows = [(1, -500, 50, 2), (1, -510, 50, 1), (1, -520, 50, 1), (1, -530, 50, 1), (1, -540, 50, 1), (1, -900, 50, 3)]
    assert vote(components([1], [-500], [50]), reference(rows)).tolist() == [1]


def test_a_tie_goes_to_the_lower_divergence():
    rows = [(1, -500, 50, 3), (1, -560, 50, 1)]  # 5 against 4
    assert vote(components([1], [-500], [50]), reference(rows)).tolist() == [3]
    tied = [(1, -500, 50, 2), (1, -510, 50, 1), (1, -520, 50, 1), (1, -530, 50, 2), (1, -540, 50, 3)]  # 7 : 7 : 1
    assert vote(components([1], [-500], [50]), reference(tied)).tolist() == [2]


def test_only_the_ten_nearest_in_volume_can_vote():
    near = [(1 + 0.01 * k, -100, 50, 2) for k in range(10)]
    far = [(500, -600, 80, 1)] * 5
    assert vote(components([1], [-600], [80]), reference(near + far)).tolist() == [2]


def test_order_of_components_does_not_matter():
    rows = [(1, -500, 50, 1), (2, -50, 40, 2), (30, -300, 200, 3), (5, -550, 60, 1), (4, 0, 30, 2)]
    forward = vote(components([1, 2, 30], [-520, -40, -310], [50, 40, 190]), reference(rows))
    backward = vote(components([30, 2, 1], [-310, -40, -520], [190, 40, 50]), reference(rows))
    assert forward.tolist() == backward[::-1].tolist()


def test_paint_gives_each_component_its_subtype():
    assert paint(components([1, 1], [0, 0], [1, 1]), np.array([3, 1], dtype=np.uint8)).tolist() == [[[0, 3, 1]]]


@pytest.mark.parametrize(
    "content, message",
    [
        ("volume_ml,mean_hu,sd_hu\n1,2,3\n", "expected a table with volume_ml, mean_hu, sd_hu, subtype"),
        ("volume_ml,mean_hu,sd_hu,subtype\n", "got no usable rows"),
        ("volume_ml,mean_hu,sd_hu,subtype\n1,nan,3,1\n", "expected at least one row of finite numbers"),
        ("volume_ml,mean_hu,sd_hu,subtype\n1,2,3,7\n", "got an unknown subtype"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, message):
    path = tmp_path / "subtypes.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        ReferenceComponents.read(path)


def test_rules_decide_who_votes_and_how():
    """Nearest in distribution is one mixed lesion, then two of ground-glass."""
    rows = [(1, -500, 50, 3), (1, -520, 50, 1), (1, -530, 50, 1)]
    one = components([1], [-500], [50])
    assert vote(one, reference(rows), VoteRules(voters=1)).tolist() == [3]
    assert vote(one, reference(rows), VoteRules(voters=3, weights="rank")).tolist() == [3]  # 3 : 2 + 1, the best wins
    assert vote(one, reference(rows), VoteRules(voters=3, weights="equal")).tolist() == [1]
    assert vote(one, reference([(2, -500, 50, 3), (1, -800, 50, 1)]), VoteRules(shortlist=1)).tolist() == [1]


def test_divergence_can_be_taken_the_other_way():
    """KL((0, 10) || (0, 30)) = ln 3 + 1/18 - 1/2 = 0.65, the other way -ln 3 + 9/2 - 1/2 = 2.90; for (15, 10) it is
    1.125 both ways."""
    rows = [(1, 0, 30, 1), (1, 15, 10, 2)]
    one = components([1], [0], [10])
    assert vote(one, reference(rows), VoteRules(voters=1)).tolist() == [1]
    assert vote(one, reference(rows), VoteRules(voters=1, divergence="reference||component")).tolist() == [2]
