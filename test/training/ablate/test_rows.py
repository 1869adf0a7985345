import pytest

from algorithm.errors import InputError
from training.ablate.rows import Row, compared_rows, table_rows
from training.settings import Ramp, RegressSettings, TrainingConfig

OFF = Ramp(weight=0.0)
MAIN = RegressSettings(
    steps=7,
    equivariance=Ramp(weight=0.5),
    entropy=Ramp(weight=0.1, start=0.3, full=0.6),
    refinement=Ramp(weight=0.7),
)


def rows_of(**changes: object) -> dict[str, Row]:
    config = TrainingConfig(regress=MAIN.model_copy(update=changes))
    return {row.slug: row for row in table_rows(config)}


def test_rows_are_those_of_the_paper_and_a_threshold():
    names = [row.name for row in table_rows(TrainingConfig())]
    assert names == [
        "threshold (no vessels)",
        "CAM raw",
        "CAM + refinement",
        "dRAM raw",
        "+ regulariser",
        "+ refinement",
        "+ attention",
        "+ vessel suppression",
        "+ context",
        "supervised",
    ]


def test_seven_weak_rows_are_compared_with_the_last_one():
    rows = table_rows(TrainingConfig())
    assert compared_rows(rows) == [row.name for row in rows[1:8]]


@pytest.mark.parametrize(
    ("slug", "switches"),
    [
        ("dram-raw", (OFF, OFF, OFF, False, False)),
        ("dram-regulariser", (MAIN.equivariance, MAIN.entropy, OFF, False, False)),
        ("dram-refinement", (MAIN.equivariance, MAIN.entropy, MAIN.refinement, False, False)),
        ("dram-attention", (MAIN.equivariance, MAIN.entropy, MAIN.refinement, True, False)),
    ],
)
def test_each_row_switches_one_step_on(slug, switches):
    settings = rows_of()[slug].settings
    assert settings is not None
    names = ("equivariance", "entropy", "refinement", "attention", "suppress_vessels")
    assert tuple(getattr(settings, name) for name in names) == switches
    unswitched = {name: getattr(MAIN, name) for name in RegressSettings.model_fields if name not in names}
    assert {name: getattr(settings, name) for name in unswitched} == unswitched


def test_the_row_with_every_step_of_the_regression_reads_the_run_s_own():
    row = rows_of()["dram-vessel-suppression"]
    assert (row.needs, row.settings) == (("prepare", "pseudo"), None)
    assert list(rows_of())[-4:] == ["dram-attention", row.slug, "dram-context", "supervised"]


@pytest.mark.parametrize(
    ("off", "got"),
    [
        ({"attention": False}, "got attention = false, so"),
        ({"suppress_vessels": False}, "got suppress_vessels = false, so"),
        ({"attention": False, "suppress_vessels": False}, "got attention = false and suppress_vessels = false, so"),
    ],
)
def test_the_last_weak_row_builds_on_every_step_before_it(off, got):
    with pytest.raises(InputError, match=rf"settings regress: {got} '\+ context' would build on a weaker network"):
        rows_of(**off)


def test_one_regulariser_is_enough_for_its_row():
    settings = rows_of(equivariance=OFF)["dram-regulariser"].settings
    assert settings is not None
    assert (settings.equivariance, settings.entropy) == (OFF, MAIN.entropy)


def test_a_row_that_would_add_nothing_is_refused():
    with pytest.raises(InputError, match=r"refinement.weight is 0, so row '\+ refinement' would add nothing"):
        rows_of(refinement=OFF)
    with pytest.raises(InputError, match=r"row '\+ regulariser' would add nothing"):
        rows_of(equivariance=OFF, entropy=OFF)
