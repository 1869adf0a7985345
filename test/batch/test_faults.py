"""What goes wrong on the way, and what becomes of the cases."""

from __future__ import annotations

import pytest

from batch.connection import Lookup
from batch.errors import InputError, TokenRefusedError
from batch.jobs import MOST_IDLE_ROUNDS

NAMES = ["a", "b", "c"]
JOBS = "/api/v1/algorithms/jobs/"
UPLOADS = "/api/v1/uploads/"


@pytest.mark.parametrize(
    ("method", "path", "what", "times"),
    [
        ("POST", UPLOADS, "refuse", 3),
        ("POST", UPLOADS, "refuse", 12),  # more than the client repeats by itself
        ("PUT", "/s3/", "refuse", 12),
        ("GET", JOBS, "refuse", 12),
        ("GET", "/signed/", "refuse", 12),
        ("PATCH", UPLOADS, "refuse", 3),
        ("GET", JOBS, "refuse", 3),
        ("POST", JOBS, "refuse", 2),
        ("POST", JOBS, "lose", 1),
        ("POST", JOBS, "drop", 1),
        ("POST", JOBS, "cut", 1),
        ("PATCH", ".*/complete-multipart-upload/", "lose", 1),
        ("PATCH", ".*/complete-multipart-upload/", "cut", 1),
        ("PUT", "/s3/", "drop", 2),
        ("PUT", "/s3/", "cut", 1),
        ("GET", "/signed/", "cut", 2),
        ("GET", "/signed/", "shorten", 2),
        ("GET", "/signed/", "drop", 2),
        ("GET", JOBS, "shorten", 2),
    ],
)
def test_survives(write_cases, open_batch, account, standin, method, path, what, times, require_home) -> None:
    account.faults = [standin.Fault(method, path, what, times=times)]
    write_cases(["a", "b"])
    batch = open_batch()
    batch.run()
    require_home(batch, ["a", "b"])
    assert account.faults[0].times == 0
    assert account.uploaded_cases() == ["a", "b"]
    assert len(account.jobs) == 2
    assert not [upload for upload in account.uploads.values() if upload.status == "Initialized"]


def test_a_job_that_the_platform_shows_late_is_found(write_cases, open_batch, account, standin, monkeypatch) -> None:
    account.faults = [standin.Fault("POST", JOBS, "lose")]
    write_cases(["a"])
    batch = open_batch()
    find, looks = batch.connection.find_job, []

    def late(*arguments, **options):
        looks.append(1)
        return Lookup(None, is_certain=True) if len(looks) == 1 else find(*arguments, **options)

    monkeypatch.setattr(batch.connection, "find_job", late)
    batch.run()
    assert (len(looks), list(account.jobs)) == (2, ["job-1"])


@pytest.mark.parametrize("path", [UPLOADS, JOBS])
def test_waits_as_long_as_the_platform_asks(
    write_cases, open_batch, account, standin, path, monkeypatch, require_home
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("gcapi.transports.sleep", waits.append)
    account.faults = [standin.Fault("POST", path, status=429, headers={"Retry-After": "17"}, text="throttled")]
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    require_home(batch, ["a"])
    assert waits == [17.0]
    assert len(account.jobs) == 1


def test_no_room_is_waited_for_without_another_upload(write_cases, open_batch, account, require_home) -> None:
    account.most_active = 1
    write_cases(NAMES)
    batch = open_batch()
    batch.run()
    require_home(batch, NAMES)
    assert account.uploaded_cases() == NAMES
    assert account.peak == 1


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_quota_of_uploads_is_waited_for(write_cases, open_batch, account, require_home, room) -> None:
    account.most_uploads = room  # for the scan, or not even for that
    write_cases(["a", "b"])
    batch = open_batch()
    waits: list[int] = []

    def wait(seconds: float) -> None:
        waits.append(len(account.uploaded()))
        account.most_uploads = 9

    batch._sleep = wait
    batch.run()
    require_home(batch, ["a", "b"])
    assert waits[0] == room
    assert account.uploaded_cases() == ["a", "b"] and len(account.jobs) == 2


@pytest.mark.parametrize("limit", ["most_active", "most_uploads"])
def test_no_room_at_all_ends_the_run_after_a_while(write_cases, open_batch, account, limit, require_home) -> None:
    setattr(account, limit, 0)
    write_cases(["a"])
    batch = open_batch()
    with pytest.raises(InputError, match="no answer or no room for your jobs for a while; run again later"):
        batch.run()
    assert len(batch.delays) == MOST_IDLE_ROUNDS - 1
    assert len(account.jobs) == 0
    setattr(account, limit, 16)
    again = open_batch()
    again.run()
    require_home(again, ["a"])
    assert account.uploaded_cases() == ["a"]


def test_a_refused_start_leaves_the_others_alone_and_is_tried_again(
    write_cases, open_batch, account, standin, require_home
) -> None:
    account.faults = [standin.Fault("POST", JOBS, status=400, text="You have run out of\nalgorithm credits")]
    write_cases(NAMES)
    batch = open_batch()
    batch.run()
    require_home(batch, ["b", "c"])
    assert batch.manifest.cases["a"].error == "not started: HTTP 400: You have run out of algorithm credits"
    again = open_batch()
    again.run()
    require_home(again, NAMES)
    assert account.uploaded_cases() == NAMES


def test_uploads_that_the_platform_has_removed_are_sent_again(
    write_cases, open_batch, account, standin, require_home
) -> None:
    account.faults = [standin.Fault("POST", JOBS, status=400, text="no credits")]
    write_cases(["a"])
    open_batch().run()
    account.uploads.pop("upload-1")
    again = open_batch()
    again.run()
    require_home(again, ["a"])


def test_three_refusals_in_a_row_stop_the_uploads(write_cases, open_batch, account, standin) -> None:
    account.faults = [standin.Fault("POST", JOBS, status=400, text="no credits", times=9)]
    write_cases("abcdef")
    batch = open_batch()
    batch.run()
    assert account.uploaded_cases() == NAMES
    assert [name for name, record in batch.manifest.cases.items() if record.error] == NAMES


def test_a_silent_platform_is_left_after_some_tries(write_cases, open_batch, account, standin, require_home) -> None:
    write_cases(["a"])
    account.faults = [standin.Fault("GET", JOBS + "job-1/", status=500, text="oops", times=99)]
    batch = open_batch()
    batch.run()
    assert batch.manifest.cases["a"].error == "no answer: HTTP 500: oops"
    account.faults = []
    again = open_batch()
    again.run()
    require_home(again, ["a"])
    assert len(account.jobs) == 1


def test_does_not_wait_for_ever_behind_a_job_that_does_not_answer(write_cases, open_batch, account, standin) -> None:
    write_cases(["a", "b"])
    account.most_active = 1
    account.faults = [standin.Fault("GET", JOBS + "job-1/", status=403, text="{}", times=99)]
    batch = open_batch()
    with pytest.raises(InputError, match="no room for your jobs for a while"):
        batch.run()
    assert [record.job for record in batch.manifest.cases.values()] == ["job-1", None]


def test_a_job_that_is_gone_is_told_at_once(write_cases, open_batch, account, standin) -> None:
    write_cases(["a"])
    batch = open_batch()
    account.faults = [standin.Fault("GET", JOBS + "job-1/", status=404, text="{}")]
    batch.run()
    assert batch.manifest.cases["a"].error == "no answer: not found, or not open to you"


def test_a_token_that_is_refused_later_ends_the_run_at_once(write_cases, open_batch, account, standin) -> None:
    write_cases(NAMES)
    batch = open_batch()
    account.faults = [standin.Fault("POST", UPLOADS, status=401, text="{}")]
    with pytest.raises(TokenRefusedError, match="GRAND_CHALLENGE_AUTHORIZATION: the platform refuses this token"):
        batch.run()
    assert account.uploaded() == []


@pytest.mark.parametrize("seed", [1, 2])
def test_forty_cases_come_home_through_faults_in_a_tenth_of_all_requests(
    write_cases, open_batch, account, standin, require_home, seed
) -> None:
    names = [f"case{number:02}" for number in range(40)]
    write_cases(names)
    account.faults = faults = standin.RandomFaults(seed)
    for _ in range(3):
        batch = open_batch()
        batch.run()
        if all(case.status == "Succeeded" and not case.error for case in batch.manifest.cases.values()):
            break
    require_home(batch, names)
    assert account.uploaded_cases() == names and len(account.jobs) == 40
    assert faults.asked > 800 and sum(faults.made.values()) > 50 and len(faults.made) == 5
    print(f"{len(names)} cases home; {len(account.uploaded_cases())} scans uploaded, {len(account.jobs)} jobs started")
    print(f"{sum(faults.made.values())} faults in {faults.asked} requests: {dict(faults.made)}")
