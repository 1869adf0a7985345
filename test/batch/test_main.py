from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import batch.__main__ as main
from batch.cases import find_cases
from batch.connection import TOKEN_VARIABLE
from batch.manifest import HERE, Manifest, only_process
from batch.results import read_case_file, write_case_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, account, platform, inputs, tmp_path, standin):
    """Run a command against the stand-in, with short waits."""
    monkeypatch.setattr("batch.jobs.FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("batch.jobs.LONGEST_DELAY_S", 0.001)
    before = logging.getLogger().handlers[:]

    def invoke(name: str, *options: object, scans: bool = True):
        given = ["--algorithm", standin.SLUG, "--platform", platform.url] if name == "run" else []
        folders = ["--scans", inputs["scans"], "--lobes", inputs["lobes"]] if name == "run" and scans else []
        arguments = [name, *given, *folders, "--out", tmp_path / "out", *options]
        return CliRunner().invoke(main.app, [str(word) for word in arguments], env={"COLUMNS": "250"})

    yield invoke
    logging.getLogger().handlers[:] = before
    logging.getLogger("httpx._client").filters.clear()


def test_run(command, write_cases, account, tmp_path) -> None:
    write_cases(["a", "b"])
    outcome = command("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "a: job job-1" in outcome.stdout
    assert (tmp_path / "out" / "b" / "severity.json").is_file()
    assert (tmp_path / "out" / "severity.csv").read_text().count("\n") == 3
    assert (tmp_path / "out" / "cohort.png").is_file()


def test_run_without_lobes(command, write_cases, account, inputs) -> None:
    write_cases(["a"])
    assert command("run", "--scans", inputs["scans"], scans=False).exit_code == 0
    assert [job.names.keys() for job in account.jobs.values()] == [{"ct-image"}]
    account.interfaces = [("ct-image", "pulmonary-lobes")]
    write_cases(["b"])
    outcome = command("run", "--scans", inputs["scans"], scans=False)
    assert outcome.exit_code == 1
    assert "expected {ct-image, pulmonary-lobes}; give --lobes\n" in outcome.stderr


def test_run_over_an_archive_uploads_nothing(command, account, tmp_path, platform) -> None:
    images = [{"ct-image": account.add_image(f"{name}.mha", b"")} for name in "ab"]
    titles = ["one", "two"]
    account.archives = {
        "cohort": [{"title": title, "images": image} for title, image in zip(titles, images, strict=True)]
    }
    outcome = command("run", "--archive", "cohort", scans=False)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert account.uploaded() == []
    assert [job.images for job in account.jobs.values()] == images
    assert (tmp_path / "out" / "two" / "severity.json").is_file()


def test_a_result_that_exists_already_is_fetched(command, account, tmp_path, platform, monkeypatch) -> None:
    account.archives = {"cohort": [{"title": "one", "images": {"ct-image": account.add_image("a.mha", b"")}}]}
    assert command("run", "--archive", "cohort", scans=False).exit_code == 0
    (tmp_path / "out").rename(tmp_path / "before")
    outcome = command("run", "--archive", "cohort", scans=False)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert len(account.jobs) == 1
    assert (tmp_path / "out" / "one" / "severity.json").is_file()


def test_two_items_with_one_image_share_its_result(command, account, tmp_path) -> None:
    """The platform refuses a second job for the same image."""
    images = {"ct-image": account.add_image("a.mha", b"")}
    account.archives = {"cohort": [{"title": title, "images": images} for title in ("one", "two")]}
    outcome = command("run", "--archive", "cohort", scans=False)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert len(account.jobs) == 1
    assert {record.job for record in Manifest.load(tmp_path / "out").cases.values()} == {"job-1"}
    assert (tmp_path / "out" / "two" / "severity.json").is_file()


def test_run_lists_failures_and_fails(command, write_cases, account) -> None:
    write_cases(["a", "b"])
    account.endings = {"a": "Cancelled"}
    outcome = command("run")
    assert outcome.exit_code == 1
    assert outcome.stderr == "1 of 2 cases failed, 1 are without outputs; see above\n"
    assert "Cancelled, see https://" in outcome.stdout


def test_retry(command, write_cases, account, tmp_path) -> None:
    write_cases(["a", "b"])
    account.endings = {"a": "Failed"}
    command("run")
    outcome = command("retry", "b")
    assert outcome.stderr == "b: got cases that did not fail, expected some of those that did (a)\n"
    account.endings, account.algorithm_image = {}, "image-2"
    outcome = command("retry")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert len(account.jobs) == 3
    assert "Warning: 2 versions of the algorithm made these results" in outcome.stdout
    outcome = command("retry")
    assert "got no case whose job failed or was cancelled" in outcome.stderr


def test_dry_run_connects_to_nothing_and_writes_nothing(command, write_cases, account, inputs, tmp_path, monkeypatch):
    write_cases(["a", "b"])
    (inputs["scans"] / "b.mha").write_text("no scan")
    monkeypatch.setattr(main, "_connect", lambda url: pytest.fail("connected"))
    outcome = command("run", "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (1, "1 of 2 cases cannot be sent; see above\n")
    assert "a_*_ct-image.mha" in outcome.stdout
    assert "a_*_pulmonary-lobes.mha" in outcome.stdout
    assert "b.mha: cannot be read" in outcome.stdout
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv(TOKEN_VARIABLE)
    write_cases(["b"])
    outcome = command("run", "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert account.requests == [] and not (tmp_path / "out").exists()


def test_results_among_the_scans_are_refused(command, write_cases, account, inputs) -> None:
    write_cases(["a"])
    outcome = command("run", "--out", inputs["scans"] / "out")
    assert (outcome.exit_code, account.requests) == (1, [])
    assert "scans/out: got a folder for results in that of the scans" in outcome.stderr
    assert not (inputs["scans"] / "out").exists()


def test_dry_run_shows_only_what_this_call_would_send(command, write_cases, account, inputs, tmp_path) -> None:
    write_cases(["a", "b"])
    account.interfaces = [("ct-image", "pulmonary-lobes")]
    command("run")
    manifest = Manifest.load(tmp_path / "out")
    manifest.cases["a"].status, manifest.cases["a"].job, manifest.cases["a"].outputs = "Starting", None, None
    manifest.save(tmp_path / "out")
    for folder in inputs.values():
        (folder / "a.mha").rename(folder / "c.mha")
    outcome = command("run", "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "c_*_ct-image.mha" in outcome.stdout and "a_*_ct-image.mha" not in outcome.stdout


def test_names_and_messages_are_shown_as_they_are(command, write_cases, account, standin, tmp_path) -> None:
    account.faults = [standin.Fault("POST", "/api/v1/algorithms/jobs/", status=400, text="no [/y] :warning: [red]room")]
    write_cases(["P001[repeat]", "P002[repeat]"])
    assert "P001[repeat]_*_ct-image.mha" in command("run", "--dry-run").stdout
    outcome = command("run")
    assert outcome.stderr == "1 of 2 cases failed, 1 are without outputs; see above\n"
    for shown in (outcome.stdout, command("status").stdout):
        rows = [line for line in shown.splitlines() if "│" in line]
        assert [name for row in rows for name in ("P001[repeat]", "P002[repeat]") if name in row] == [
            "P002[repeat]",
            "P001[repeat]",
        ]
        assert "not started: HTTP 400: no [/y] :warning: [red]room" in rows[-1]
    assert (tmp_path / "out" / "severity.csv").read_text().splitlines()[1].startswith("P002[repeat],")


def test_status_shows_the_manifest(command, write_cases, monkeypatch) -> None:
    write_cases(["a"])
    command("run")
    monkeypatch.setattr(main, "_connect", lambda url: pytest.fail("connected"))
    outcome = command("status")
    assert outcome.exit_code == 0
    assert "Succeeded" in outcome.stdout


def test_fetch_asks_once(command, write_cases, account, standin, tmp_path) -> None:
    account.statuses = ("Queued", "Executing")
    account.faults = [standin.Fault("GET", "/api/v1/algorithms/jobs/job-1/", status=403, text="{}")]
    write_cases(["a"])
    assert command("run").exit_code == 1
    for status in ("Queued", "Executing", "Succeeded"):
        outcome = command("fetch")
        assert outcome.exit_code == 0
        assert status in outcome.stdout
    assert Manifest.load(tmp_path / "out").cases["a"].is_finished
    assert (tmp_path / "out" / "severity.csv").is_file()


def test_collect(command, write_cases, account, tmp_path) -> None:
    write_cases(["a"])
    command("run")
    (tmp_path / "out" / "severity.csv").unlink()
    outcome = command("collect")
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("1 cases in ")
    assert (tmp_path / "out" / "severity.csv").is_file()


def test_the_token_and_signatures_are_told_nowhere(command, write_cases, account, standin, tmp_path) -> None:
    account.faults = [
        standin.Fault("PUT", "/s3/"),
        standin.Fault("GET", "/signed/", what="cut"),
        standin.Fault("POST", "/api/v1/algorithms/jobs/", status=400, text="no credits"),
    ]
    write_cases(["a", "b"])
    outcome = command("run")
    assert "PUT request to https://" in outcome.stdout
    assert outcome.exit_code == 1
    everything = [outcome.output.encode(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    for secret in (b"token-of-the-tests", b"Signature="):
        assert not [content for content in everything if secret in content]


@pytest.mark.parametrize("fails", [False, True])
def test_a_real_process_told_to_log_everything_tells_no_secret(
    write_cases, account, platform, standin, inputs, tmp_path, fails
) -> None:
    """Not even where an unforeseen error ends it with a traceback."""
    write_cases(["a"])
    account.statuses = ()
    options = {"--algorithm": standin.SLUG, "--platform": platform.url, "--out": str(tmp_path / "out")}
    options |= {f"--{kind}": str(folder) for kind, folder in inputs.items()}
    code = "import sys, batch.jobs as jobs; from batch.__main__ import app; jobs.FIRST_DELAY_S = 0.01; "
    code += "jobs.Batch.refresh = None; " if fails else ""
    arguments = [word for pair in options.items() for word in pair]
    process = subprocess.run(
        [sys.executable, "-c", f"{code}app(sys.argv[1:])", "run", *arguments],
        cwd=ROOT,
        env=os.environ | {"HTTPX_LOG_LEVEL": "trace", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
    )
    told = process.stdout + process.stderr
    assert process.returncode == fails and ("Traceback" in told) == fails, told
    assert "HTTP Request: PUT https://" in process.stderr  # httpx did tell
    assert "token-of-the-tests" not in told and "Signature=" not in told
    assert not any("token" in option for option in arguments)


def test_no_option_takes_a_token(command) -> None:
    for name in ("run", "status", "fetch", "retry", "collect"):
        options = re.findall(r"--[a-z-]+", command(name, "--help").stdout)
        assert "--out" in options and not [option for option in options if "token" in option or "auth" in option]


def test_results_without_a_report_and_damaged_ones_are_told(command, write_cases, account, standin, tmp_path) -> None:
    example = standin.example_outputs("x")
    image = {slug: output for slug, output in example.items() if isinstance(output, bytes) and b"NDims" in output}
    others = {"b": image, "c": image | {"covid-19-severity": b"{}"}}
    account.compute = lambda case: others.get(case, example)
    write_cases("ab")
    outcome = command("run")
    assert outcome.exit_code == 0
    assert "Warning: no severity.json and so no row in severity.csv: b\n" in outcome.stdout
    write_cases("c")
    outcome = command("run")
    assert outcome.exit_code == 1
    assert "c/severity.json: got Field required, expected a report of severity" in outcome.stderr
    assert (tmp_path / "out" / "severity.csv").read_text().count("\n") == 2


def test_results_that_were_changed_are_told(command, write_cases, account, tmp_path) -> None:
    write_cases(["a"])
    command("run")
    (tmp_path / "out" / "a" / "lesions.mha").unlink()
    outcome = command("run")
    assert outcome.exit_code == 1 and "out/a is there already; move it away, then run again" in outcome.stdout
    shutil.rmtree(tmp_path / "out" / "a")
    assert command("run").exit_code == 0
    assert (tmp_path / "out" / "a" / "lesions.mha").is_file() and len(account.jobs) == 1


def test_results_computed_here_in_place_of_fetched_ones_count(command, write_cases, account, tmp_path) -> None:
    write_cases(["a"])
    command("run")
    folder = tmp_path / "out" / "a"
    inputs = read_case_file(folder).inputs
    (folder / "lesions.mha").write_bytes(b"other")
    (folder / "case.json").unlink()
    outputs = write_case_file(folder, computed="here", inputs=inputs)
    assert command("run").exit_code == 0
    record = Manifest.load(tmp_path / "out").cases["a"]
    assert (record.status, record.job, record.earlier_jobs, record.outputs) == (HERE, None, ["job-1"], outputs)
    assert command("run").exit_code == 0 and len(account.jobs) == 1


def test_what_is_no_result_of_the_inputs_is_in_no_table(command, write_cases, scan, inputs, account, tmp_path) -> None:
    """Computed here, of a scan that was corrected since."""
    write_cases(["a"])
    command("run")
    folder = tmp_path / "out" / "b"
    folder.mkdir()
    (folder / "severity.json").write_bytes((tmp_path / "out" / "a" / "severity.json").read_bytes())
    write_cases(["b"])
    (case,) = (case for case in find_cases(inputs["scans"], inputs["lobes"]) if case.name == "b")
    write_case_file(folder, computed="here", inputs=case.identity())
    assert command("run").exit_code == 0
    scan(inputs["scans"] / "b.mha", seed=99)
    outcome = command("run", "--dry-run")
    assert outcome.exit_code == 1 and "out/b is there already; move it away, then run again" in outcome.stdout
    assert command("run").exit_code == 1
    assert [line[:2] for line in (tmp_path / "out" / "severity.csv").read_text().splitlines()[1:]] == ["a,"]
    assert command("collect").exit_code == 0
    assert [line[:2] for line in (tmp_path / "out" / "severity.csv").read_text().splitlines()[1:]] == ["a,"]


def test_the_table_of_results_is_written_at_an_early_end(command, write_cases, account, tmp_path, standin) -> None:
    write_cases(["a"])
    command("run")
    (tmp_path / "out" / "severity.csv").unlink()
    write_cases(["b"])
    text = "You have too many active jobs"
    account.faults = [standin.Fault("POST", "/api/v1/algorithms/jobs/", status=400, text=text, times=99)]
    outcome = command("run")
    assert outcome.exit_code == 1 and "no room for your jobs" in outcome.stderr
    assert (tmp_path / "out" / "severity.csv").read_text().count("\n") == 2


def test_nothing_is_cut_off_in_a_pipe(command, write_cases, account, tmp_path, monkeypatch) -> None:
    name = "hospital-of-the-seven-lakes-study-2021-patient-0001"
    write_cases([name])
    account.endings = {name: "Failed"}
    command("run")
    outcome = CliRunner().invoke(main.app, ["status", "--out", str(tmp_path / "out")], env={"COLUMNS": "80"})
    (row,) = (line for line in outcome.stdout.splitlines() if name in line)
    assert "job-1" in row and "Failed, see https://" in row and "…" not in outcome.stdout


def test_an_older_job_on_the_images_of_an_archive_is_not_taken_for_the_lost_one(
    command, account, tmp_path, standin
) -> None:
    account.archives = {"cohort": [{"title": "one", "images": {"ct-image": account.add_image("a.mha", b"")}}]}
    assert command("run", "--archive", "cohort", scans=False).exit_code == 0
    (tmp_path / "out").rename(tmp_path / "out_of_version_1")
    account.algorithm_image = "image-2"
    account.faults = [standin.Fault("POST", "/api/v1/algorithms/jobs/", what="refuse", status=502)]
    assert command("run", "--archive", "cohort", scans=False).exit_code == 0
    assert Manifest.load(tmp_path / "out").cases["one"].job == "job-2"


def test_a_failed_job_of_an_archive_can_be_retried_with_a_new_version_only(command, account, tmp_path) -> None:
    account.archives = {"cohort": [{"title": "one", "images": {"ct-image": account.add_image("a.mha", b"")}}]}
    account.endings = {"a": "Failed"}
    command("run", "--archive", "cohort", scans=False)
    account.endings = {}
    outcome = command("retry")
    assert outcome.exit_code == 1
    assert "its job job-1 ended without success, and the platform runs the same images once" in outcome.stdout
    record = Manifest.load(tmp_path / "out").cases["one"]
    assert (record.status, record.job, record.earlier_jobs) == ("Failed", "job-1", [])
    account.algorithm_image = "image-2"
    assert command("retry").exit_code == 0
    assert Manifest.load(tmp_path / "out").cases["one"].job == "job-2"


@pytest.mark.parametrize("options", [("--algorithm", "other"), ("--platform", "https://127.0.0.1:1/")])
def test_a_manifest_of_another_algorithm_or_platform_is_one_line(command, write_cases, account, options) -> None:
    write_cases(["a"])
    command("run")
    outcome = command("run", *options)
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
    assert " as before; choose another --out" in outcome.stderr


def test_a_platform_that_is_too_new_is_one_line(command, write_cases, platform) -> None:
    write_cases(["a"])
    platform.lowest_version = "99.0"
    outcome = command("run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
    assert "gcapi is too old for the platform" in outcome.stderr


def test_scans_that_are_none_and_empty_folders_are_one_line(command, inputs, scan) -> None:
    outcome = command("run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
    assert "scans: got nothing to use, expected .mha" in outcome.stderr
    for folder in inputs.values():
        scan(folder / "a.mha", labels=True)
    outcome = command("run")
    assert outcome.stderr == "1 of 1 cases failed, 1 are without outputs; see above\n"
    assert "this is no CT, or a picture of one" in outcome.stdout


@pytest.mark.parametrize("name", ["status", "fetch", "retry", "collect"])
def test_no_manifest_is_one_line(command, name) -> None:
    outcome = command(name)
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert "got no such file" in outcome.stderr or "got no case with severity.json" in outcome.stderr


def test_no_token_and_a_wrong_one_are_one_line(command, write_cases, monkeypatch, tmp_path) -> None:
    write_cases(["a"])
    monkeypatch.setenv(TOKEN_VARIABLE, "of-nobody")
    assert "refuses this token" in command("run").stderr
    monkeypatch.delenv(TOKEN_VARIABLE)
    outcome = command("run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
    assert outcome.stderr.startswith(f"{TOKEN_VARIABLE}: not set")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_unknown_algorithm_leaves_no_manifest(command, write_cases, tmp_path) -> None:
    write_cases(["a"])
    outcome = command("run", "--algorithm", "other")
    assert outcome.stderr == "algorithm other: not found, or not open to you; take the slug from its web address\n"
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_gcapi_is_one_line(command, write_cases, monkeypatch) -> None:
    write_cases(["a"])
    monkeypatch.delitem(sys.modules, "batch.connection")
    monkeypatch.setitem(sys.modules, "gcapi", None)
    assert command("run").stderr == "gcapi: not installed; pip install -r batch/requirements.txt\n"


def test_two_commands_on_one_folder_are_refused(command, write_cases, tmp_path) -> None:
    write_cases(["a"])
    with only_process(tmp_path / "out"):
        assert "another command is working on this folder" in command("run").stderr


@pytest.mark.parametrize("options", [(), ("--scans", "x", "--archive", "y")])
def test_scans_or_an_archive(command, options) -> None:
    assert "expected one of them" in command("run", *options, scans=False).stderr


def test_an_archive_has_its_own_lobes(command) -> None:
    outcome = command("run", "--archive", "y", "--lobes", "z", scans=False)
    assert outcome.exit_code == 1 and "got --lobes with --archive" in outcome.stderr
