from __future__ import annotations

import pytest

from batch.errors import InputError
from batch.jobs import FIRST_DELAY_S, LONGEST_DELAY_S, MOST_ACTIVE_JOBS
from batch.manifest import Manifest

NAMES = ["a", "b", "c"]


@pytest.fixture
def refused(open_batch):
    """The error type that the fake platform raises."""
    return open_batch([]).connection.errors[0]


def test_runs_every_case_and_fetches_its_outputs(write_cases, open_batch, platform) -> None:
    delays: list[float] = []
    cases = write_cases(NAMES)
    batch = open_batch(cases)
    batch.run(cases, sleep=delays.append)
    assert platform.started == NAMES
    for name in NAMES:
        record = Manifest.load(batch.folder).cases[name]
        assert (record.status, record.error) == ("Succeeded", None)
        assert record.outputs == ["images/covid-19-lesion-segmentation/uuid.mha", "results.json"]
        assert all((batch.folder / name / output).read_bytes() == b"output" for output in record.outputs)
    assert sorted(path.name for path in batch.folder.iterdir()) == [*NAMES, "manifest.json"]
    assert delays == [FIRST_DELAY_S]


def test_never_more_than_sixteen_active_jobs(write_cases, open_batch, platform) -> None:
    cases = write_cases([f"case{number:02}" for number in range(40)])
    open_batch(cases).run(cases, sleep=lambda seconds: None)
    assert len(platform.started) == 40
    assert platform.most_active == MOST_ACTIVE_JOBS


def test_waits_longer_while_nothing_happens(write_cases, open_batch, platform) -> None:
    delays: list[float] = []
    platform.steps = 12
    cases = write_cases(["a"])
    open_batch(cases).run(cases, sleep=delays.append)
    assert delays[:3] == [FIRST_DELAY_S, 1.5 * FIRST_DELAY_S, 2.25 * FIRST_DELAY_S]
    assert delays[-1] == LONGEST_DELAY_S


def test_finished_cases_are_not_run_again(write_cases, open_batch, platform) -> None:
    cases = write_cases(["a"])
    open_batch(cases).run(cases, sleep=lambda seconds: None)
    cases = write_cases(["a", "b"])
    open_batch(cases).run(cases, sleep=lambda seconds: None)
    assert platform.started == ["a", "b"]


def test_goes_on_with_its_jobs_after_a_stop(write_cases, open_batch, platform) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    cases = write_cases(NAMES)
    with pytest.raises(KeyboardInterrupt):
        open_batch(cases).run(cases, sleep=stop)
    again = open_batch(cases)
    assert [record.job for record in again.manifest.cases.values()] == ["job-0", "job-1", "job-2"]
    again.run(cases, sleep=stop)
    assert platform.started == NAMES
    assert all(record.is_finished for record in again.manifest.cases.values())


def test_the_manifest_knows_each_job_before_the_next_starts(write_cases, open_batch, platform) -> None:
    platform.refusals = [None, KeyboardInterrupt()]
    cases = write_cases(NAMES)
    batch = open_batch(cases)
    with pytest.raises(KeyboardInterrupt):
        batch.run(cases)
    assert [record.job for record in Manifest.load(batch.folder).cases.values()] == ["job-0", None, None]


def test_a_failed_job_is_recorded_and_only_retried_on_request(write_cases, open_batch, platform) -> None:
    platform.endings = {"b": "Failed"}
    cases = write_cases(NAMES)
    batch = open_batch(cases)
    batch.run(cases, sleep=lambda seconds: None)
    assert batch.manifest.cases["b"].error == "Failed, see https://example.org/jobs/job-1/"
    assert not (batch.folder / "b").exists()
    open_batch(cases).run(cases, sleep=lambda seconds: None)
    assert platform.started == NAMES
    platform.endings = {}
    retried = open_batch(cases, retry_failed=True)
    retried.run(cases, sleep=lambda seconds: None)
    assert platform.started == [*NAMES, "b"]
    assert retried.manifest.cases["b"].is_finished


def test_no_room_is_waited_for_without_another_upload(write_cases, open_batch, platform, refused) -> None:
    platform.steps = 5
    platform.refusals = [None, refused("You have too many active jobs")]
    cases = write_cases(["a", "b"])
    events: list[str] = []
    start = platform.start_algorithm_job
    platform.start_algorithm_job = lambda **arguments: (events.append("upload"), start(**arguments))[1]
    open_batch(cases).run(cases, sleep=lambda seconds: events.append("wait"))
    assert events == ["upload", "upload", *["wait"] * 4, "upload", *["wait"] * 4]
    assert platform.started == ["a", "b"]


def test_no_room_at_all_ends_the_run(write_cases, open_batch, platform, refused) -> None:
    platform.refusals = [refused("too many active jobs")]
    cases = write_cases(["a"])
    with pytest.raises(InputError, match="no room: HTTP 400: too many active jobs; wait for your other jobs"):
        open_batch(cases).run(cases)


def test_a_refused_start_leaves_the_others_alone_and_is_tried_again(write_cases, open_batch, platform, refused) -> None:
    platform.refusals = [None, refused("bad\nimage")]
    cases = write_cases(NAMES)
    batch = open_batch(cases)
    batch.run(cases, sleep=lambda seconds: None)
    assert platform.started == ["a", "c"]
    assert batch.manifest.cases["b"].error == "not started: HTTP 400: bad image"
    again = open_batch(cases)
    again.run(cases, sleep=lambda seconds: None)
    assert platform.started == ["a", "c", "b"]
    assert again.manifest.cases["b"].is_finished


def test_three_refusals_in_a_row_stop_the_uploads(write_cases, open_batch, platform, refused) -> None:
    platform.refusals = [None, *[refused("no credits")] * 3]
    cases = write_cases("abcdef")
    batch = open_batch(cases)
    batch.run(cases, sleep=lambda seconds: None)
    assert platform.started == ["a"]
    assert batch.manifest.cases["a"].is_finished
    assert [name for name, record in batch.manifest.cases.items() if record.error] == ["b", "c", "d"]


def test_an_interrupted_download_leaves_nothing_and_is_tried_again(write_cases, open_batch, platform) -> None:
    platform.broken_downloads = 1
    cases = write_cases(["a"])
    batch = open_batch(cases)
    batch.run(cases, sleep=lambda seconds: None)
    assert batch.manifest.cases["a"].error == "not fetched: HTTP 410: gone"
    assert [path.name for path in batch.folder.iterdir()] == ["manifest.json"]
    again = open_batch(cases)
    again.run(cases)
    assert platform.started == ["a"]
    assert again.manifest.cases["a"].is_finished
    assert again.manifest.cases["a"].error is None


def test_outputs_that_are_there_already_are_not_overwritten(write_cases, open_batch) -> None:
    cases = write_cases(["a"])
    batch = open_batch(cases)
    (batch.folder / "a").mkdir()
    batch.run(cases, sleep=lambda seconds: None)
    assert "is there already; move it away" in batch.manifest.cases["a"].error
    assert list((batch.folder / "a").iterdir()) == []


def test_a_few_silent_polls_are_sat_out(write_cases, open_batch, platform) -> None:
    platform.silent_polls = 9
    cases = write_cases(["a"])
    batch = open_batch(cases)
    batch.run(cases, sleep=lambda seconds: None)
    assert batch.manifest.cases["a"].is_finished


def test_a_silent_platform_ends_the_run(write_cases, open_batch, platform) -> None:
    platform.silent_polls = 10
    cases = write_cases(["a"])
    batch = open_batch(cases)
    with pytest.raises(InputError, match="no answer in 10 rounds; run again to go on"):
        batch.run(cases, sleep=lambda seconds: None)
    assert Manifest.load(batch.folder).cases["a"].job == "job-0"


@pytest.mark.parametrize(
    ("slugs", "message"),
    [(("ct-image",), "got inputs ct-image, expected ct-image, pulmonary-lobes"), ((), "got inputs none")],
)
def test_refuses_an_algorithm_with_other_inputs(write_cases, open_batch, platform, slugs, message) -> None:
    platform.input_slugs = slugs
    cases = write_cases(["a"])
    with pytest.raises(InputError, match=message):
        open_batch(cases).run(cases)
    assert platform.started == []


def test_refuses_an_unknown_algorithm(write_cases, open_batch) -> None:
    cases = write_cases(["a"])
    batch = open_batch(cases)
    batch.manifest.algorithm = "other"
    with pytest.raises(InputError, match="algorithm other: not found, or not open to you: HTTP 404"):
        batch.run(cases)
