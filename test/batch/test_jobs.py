from __future__ import annotations

import json

import pytest

from batch.cases import find_cases, sha256
from batch.errors import InputError
from batch.jobs import FIRST_DELAY_S, LONGEST_DELAY_S, MOST_ACTIVE_JOBS, Batch
from batch.manifest import HERE, STARTING, Manifest
from batch.results import CASE_FILE, write_case_file

NAMES = ["a", "b", "c"]
JOBS = "/api/v1/algorithms/jobs/"
UPLOADS = "/api/v1/uploads/"


def test_runs_every_case_and_fetches_its_outputs(write_cases, open_batch, account, require_home) -> None:
    write_cases(NAMES)
    batch = open_batch()
    batch.run()
    require_home(batch, NAMES)
    assert account.uploaded_cases() == NAMES
    assert [job.names["ct-image"][:1] for job in account.jobs.values()] == NAMES
    assert sorted(path.name for path in batch.folder.iterdir()) == [*NAMES, "manifest.json"]
    assert sorted(path.name for path in (batch.folder / "a").iterdir()) == [CASE_FILE, "lesions.mha", "severity.json"]
    assert batch.delays == [FIRST_DELAY_S] * 2


def test_asks_for_a_job_as_the_client_itself_does(write_cases, open_batch, account, connection, inputs) -> None:
    from gcapi import SocketValueSpec

    write_cases(["a"])
    open_batch().run()
    files = {"ct-image": inputs["scans"] / "a.mha", "pulmonary-lobes": inputs["lobes"] / "a.mha"}
    specs = [SocketValueSpec(socket_slug=slug, file=file) for slug, file in files.items()]
    connection._client.start_algorithm_job(algorithm_slug="covid-lesions", inputs=specs)
    ours, theirs = (json.loads(body) for method, path, body in account.requests if (method, path) == ("POST", JOBS))
    for values in (ours["inputs"], theirs["inputs"]):
        for value in values:
            assert len(value.pop("user_uploads")) == 1
    assert ours == theirs


def test_never_more_than_sixteen_active_jobs(write_cases, open_batch, account, require_home) -> None:
    account.most_active = 99  # the platform would not stop it
    names = [f"case{number:02}" for number in range(20)]
    write_cases(names)
    batch = open_batch()
    batch.run()
    require_home(batch, names)
    assert account.peak == MOST_ACTIVE_JOBS


def test_uploads_nothing_while_sixteen_jobs_are_active(write_cases, open_batch, account, require_home) -> None:
    names = [f"case{number:02}" for number in range(18)]
    write_cases(names)
    batch = open_batch()
    batch.run()
    require_home(batch, names)
    kinds = [(method, path) for method, path, _ in account.requests if method in ("GET", "POST")]
    questions = [number for number, (method, path) in enumerate(kinds) if method == "GET" and path.startswith(JOBS)]
    first_round, later = kinds[: questions[0]], kinds[questions[0] :]
    assert first_round.count(("POST", UPLOADS)) == 2 * MOST_ACTIVE_JOBS
    assert first_round.count(("POST", JOBS)) == MOST_ACTIVE_JOBS
    assert later.count(("POST", UPLOADS)) == 4 and later.count(("POST", JOBS)) == 2  # no start was refused


def test_waits_longer_while_nothing_happens(write_cases, open_batch, account) -> None:
    account.statuses = ("Executing",) * 12
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    assert batch.delays[:3] == [FIRST_DELAY_S, 1.5 * FIRST_DELAY_S, 2.25 * FIRST_DELAY_S]
    assert batch.delays[-1] == LONGEST_DELAY_S


def test_finished_cases_are_not_run_again(write_cases, open_batch, account) -> None:
    write_cases(["a"])
    open_batch().run()
    write_cases(["b"])
    open_batch().run()
    assert account.uploaded_cases() == ["a", "b"]


def test_results_that_are_gone_are_fetched_again(write_cases, open_batch, account, require_home) -> None:
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    for path in (batch.folder / "a").iterdir():
        path.unlink()
    (batch.folder / "a").rmdir()
    again = open_batch()
    again.run()
    require_home(again, ["a"])
    assert len(account.jobs) == 1


def test_cases_computed_here_are_not_sent(write_cases, open_batch, account) -> None:
    write_cases(["a", "b"])
    batch = open_batch()
    folder = batch.folder / "a"
    folder.mkdir()
    (folder / "severity.json").write_text("{}")
    write_case_file(folder, computed="here", inputs=batch.manifest.cases["a"].inputs)
    batch = open_batch()
    batch.run()
    assert account.uploaded_cases() == ["b"]
    assert batch.manifest.cases["a"].status == HERE
    assert set(batch.manifest.cases["a"].outputs) == {"severity.json"}


def test_a_failed_job_is_recorded_and_only_retried_on_request(write_cases, open_batch, account, require_home) -> None:
    account.endings = {"b": "Failed", "c": "Cancelled"}
    write_cases(NAMES)
    batch = open_batch()
    batch.run()
    assert batch.manifest.cases["b"].error.startswith("Failed, see https://")
    assert batch.manifest.cases["c"].error.startswith("Cancelled, see https://")
    assert not (batch.folder / "b").exists()
    open_batch().run()
    assert len(account.jobs) == 3
    account.endings = {}
    retried = open_batch(retry=True)
    retried.run()
    require_home(retried, NAMES)
    assert retried.manifest.cases["b"].earlier_jobs == ["job-2"]
    assert account.uploaded_cases() == [*NAMES, "b", "c"]


def rename(inputs, old: str, new: str) -> None:
    for folder in inputs.values():
        (folder / f"{old}.mha").rename(folder / f"{new}.mha")


@pytest.mark.parametrize("uploading", [False, True])
def test_a_case_that_was_renamed_before_its_start_is_not_sent(
    write_cases, open_batch, account, inputs, require_home, uploading
) -> None:
    write_cases(["Doe_John", "other"])
    interrupted = open_batch()
    if uploading:
        interrupted.manifest.cases["Doe_John"].begin()
    interrupted.manifest.save(interrupted.folder)
    rename(inputs, "Doe_John", "case1")
    batch = open_batch()
    batch.run()
    require_home(batch, ["case1", "other"])
    assert sorted(account.uploaded_cases()) == ["case1", "other"]
    assert batch.manifest.cases.keys() == {"case1", "other"}


@pytest.mark.parametrize("started", [False, True])
def test_a_case_that_was_renamed_at_its_start_is_only_looked_for(
    write_cases, open_batch, account, standin, inputs, require_home, started
) -> None:
    account.faults = [standin.Fault("POST", JOBS, "lose" if started else "drop")]
    write_cases(["Doe_John"])
    killed = open_batch()
    killed._sleep = lambda seconds: pytest.fail("killed")
    with pytest.raises(pytest.fail.Exception, match="killed"):
        killed.run()
    assert Manifest.load(killed.folder).cases["Doe_John"].status == STARTING
    if not started:
        account.uploads.clear()  # the platform removes them after a day
    rename(inputs, "Doe_John", "case1")
    sent = len(account.requests)
    batch = open_batch()
    batch.run()
    assert b"Doe_John" not in b"".join(body for _, _, body in account.requests[sent:])
    require_home(batch, ["case1", "Doe_John"] if started else ["case1"])
    if not started:
        assert batch.manifest.cases["Doe_John"].error.startswith("not sent: it has no job and is not among the cases")
        assert open_batch().manifest.cases.keys() == {"case1"}


def test_a_retry_sends_nothing_else(write_cases, open_batch, account, require_home) -> None:
    account.endings = {"a": "Failed"}
    write_cases(["a"])
    open_batch().run()
    write_cases(["b"])
    account.endings = {}
    batch = open_batch(retry=True)
    batch.run()
    require_home(batch, ["a"])
    assert batch.manifest.cases["b"].status == "Pending"
    assert account.uploaded_cases() == ["a", "a"]


def test_a_retry_sends_and_names_the_mended_scan(
    write_cases, open_batch, account, inputs, out, scan, connection, require_home
) -> None:
    account.endings = {"a": "Failed"}
    write_cases(["a"])
    open_batch().run()
    mended = scan(inputs["scans"] / "a.mha", seed=7)
    account.endings = {}
    manifest = Manifest.load(out)
    Batch(connection, manifest, out, wanted=manifest.retry([]), sleep=lambda seconds: None).run()
    assert json.loads((out / "a" / CASE_FILE).read_text())["inputs"]["ct-image"] == sha256(mended)
    require_home(open_batch(), ["a"])


def test_a_scan_that_changes_during_a_run_is_not_sent(write_cases, open_batch, account, inputs, scan) -> None:
    write_cases(["a"])
    batch = open_batch()
    scan(inputs["scans"] / "a.mha", seed=7)
    batch.run()
    assert batch.manifest.cases["a"].error == "not sent: its files have changed since this command began; run again"
    assert account.uploaded() == []
    again = open_batch()
    again.run()
    assert again.manifest.cases["a"].is_finished


def test_a_scan_that_is_no_ct_is_not_sent(write_cases, open_batch, account, inputs, require_home) -> None:
    write_cases(NAMES)
    (inputs["scans"] / "b.mha").write_text("not a scan")
    batch = open_batch()
    batch.run()
    require_home(batch, ["a", "c"])
    assert batch.manifest.cases["b"].error.startswith(f"not sent: {inputs['scans']}/b.mha: cannot be read")
    assert account.uploaded_cases() == ["a", "c"]


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_that_is_there_already_is_not_overwritten(write_cases, open_batch, account, late) -> None:
    write_cases(["a"])
    batch = open_batch()

    def make_folder(case: str) -> dict[str, bytes]:
        (batch.folder / case).mkdir()
        (batch.folder / case / "mine").write_text("mine")
        return {"covid-19-severity": b"{}"}

    if late:
        account.compute = make_folder
    else:
        make_folder("a")
    batch.run()
    assert "is there already; move it away" in batch.manifest.cases["a"].error
    assert len(account.jobs) == late
    assert [path.name for path in (batch.folder / "a").iterdir()] == ["mine"]


def test_outputs_of_other_sockets_keep_their_paths(write_cases, open_batch, account, standin) -> None:
    account.compute = lambda case: {"covid-19-ct-severity-score": 7} | standin.example_outputs(case)
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    assert (batch.folder / "a" / "covid-19-ct-severity-score.json").read_text() == "7"


@pytest.mark.parametrize("with_lobes", [False, True])
def test_takes_all_outputs_of_an_algorithm_that_finds_the_lobes_itself(
    write_cases, open_batch, account, standin, inputs, out, connection, platform, with_lobes
) -> None:
    """Its other outputs come home too, whatever the platform calls them, and take nobody's place."""
    image = standin.example_outputs("x")["covid-19-lesion-segmentation"]
    more = {"pulmonary-lobes": image, "heat-map": image, "other-severity": b"{}", "other-case": b"[]"}
    account.compute = lambda case: dict(list(more.items()) if case == "a" else []) | standin.example_outputs(case)
    write_cases(["a", "b"])
    manifest = Manifest.load_or_new(out, platform=platform.url, algorithm=standin.SLUG)
    wanted = manifest.plan(find_cases(inputs["scans"], inputs["lobes"] if with_lobes else None), out)
    Batch(connection, manifest, out, wanted=wanted, sleep=lambda seconds: None).run()
    assert [set(job.names) for job in account.jobs.values()] == [
        {"ct-image", "pulmonary-lobes"} if with_lobes else {"ct-image"}
    ] * 2
    pks = {pk for pk in account.images if account.images[pk][0] == "output.mha"}
    (heat_map,) = (path for path in manifest.cases["a"].outputs if path.startswith("images/heat-map/"))
    assert heat_map.removeprefix("images/heat-map/").removesuffix(".mha") in pks
    assert manifest.cases["a"].outputs.keys() == {
        *("lesions.mha", "severity.json", "lobes.mha", heat_map),
        *("other-severity/severity.json", "other-case/case.json"),
    }
    assert (out / "a" / "lobes.mha").read_bytes() == image
    assert (out / "a" / "other-severity" / "severity.json").read_bytes() == b"{}"
    assert json.loads((out / "a" / "severity.json").read_text())["total_score"] == 15
    assert manifest.cases["b"].outputs.keys() == {"lesions.mha", "severity.json"}


def test_a_case_appears_only_when_its_last_output_is_whole(write_cases, open_batch, account, standin) -> None:
    account.compute = lambda case: standin.example_outputs(case) | {"heat-map": b"no image"}
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    assert batch.manifest.cases["a"].error.startswith("not fetched: image-")
    assert [path.name for path in batch.folder.iterdir()] == ["manifest.json"]


def test_a_job_without_outputs_is_an_error(write_cases, open_batch, account) -> None:
    account.compute = lambda case: {}
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    assert batch.manifest.cases["a"].error.startswith("no outputs, see https://")


@pytest.mark.parametrize(
    ("interfaces", "message"),
    [
        ([("ct-image",)], r"got the inputs {ct-image, pulmonary-lobes} for case a, expected {ct-image}$"),
        ([], "expected nothing"),
        ([("covid-19-severity",), ("ct-image",)], r"expected {covid-19-severity} or {ct-image}"),
    ],
)
def test_refuses_an_algorithm_with_other_inputs(write_cases, open_batch, account, interfaces, message) -> None:
    account.interfaces = interfaces
    write_cases(["a"])
    batch = open_batch()
    with pytest.raises(InputError, match=message):
        batch.run()
    assert account.uploaded() == []
    assert not (batch.folder / "manifest.json").exists()


def test_asks_again_for_an_algorithm_that_is_not_told(write_cases, open_batch, account, standin, require_home) -> None:
    account.faults = [standin.Fault("GET", "/api/v1/algorithms/$", what="drop", times=2)]
    write_cases(["a"])
    batch = open_batch()
    batch.run()
    require_home(batch, ["a"])
    assert account.faults[0].times == 0


def test_refuses_an_unknown_algorithm(write_cases, open_batch) -> None:
    write_cases(["a"])
    batch = open_batch()
    batch.manifest.algorithm = "other"
    with pytest.raises(InputError, match="algorithm other: not found, or not open to you; take the slug from"):
        batch.run()
    assert not (batch.folder / "manifest.json").exists()
