from __future__ import annotations

import pytest
from typer.testing import CliRunner

import batch.__main__ as main
from batch.manifest import Manifest


@pytest.fixture
def command(monkeypatch, open_batch, inputs, tmp_path):
    """Run a command against the fake platform; with one step a job there is nothing to wait for."""
    connection = open_batch([]).connection
    (tmp_path / "out").rmdir()
    monkeypatch.setattr(main, "connect", lambda: connection)
    folders = ["--scans", str(inputs["scans"]), "--lobes", str(inputs["lobes"])]

    def invoke(name: str, *options: str):
        given = ["--algorithm", "covid-lesions", *folders] if name == "run" else []
        arguments = [name, *given, "--out", str(tmp_path / "out"), *options]
        return CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})

    return invoke


def test_run(command, write_cases, platform, tmp_path) -> None:
    write_cases(["a", "b"])
    platform.steps = 1
    outcome = command("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "a: started job job-0" in outcome.stdout
    assert (tmp_path / "out" / "b" / "results.json").is_file()


def test_run_lists_failures_and_fails(command, write_cases, platform) -> None:
    write_cases(["a", "b"])
    platform.steps = 1
    platform.endings = {"a": "Cancelled"}
    outcome = command("run")
    assert outcome.exit_code == 1
    assert outcome.stderr == "1 of 2 cases failed, 1 are without outputs; see above\n"
    assert "Cancelled, see https://example.org/jobs/job-0/" in outcome.stdout


def test_dry_run_connects_to_nothing_and_writes_nothing(command, write_cases, monkeypatch, tmp_path) -> None:
    write_cases(["a", "b"])
    monkeypatch.setattr(main, "connect", lambda: pytest.fail("connected"))
    outcome = command("run", "--dry-run")
    assert outcome.exit_code == 0
    assert outcome.stdout.count("Pending") == 2
    assert not (tmp_path / "out").exists()


def test_status_shows_the_manifest(command, write_cases, open_batch, platform) -> None:
    cases = write_cases(["a"])
    batch = open_batch(cases)
    platform.steps = 1
    batch.run(cases)
    outcome = command("status")
    assert outcome.exit_code == 0
    assert "Succeeded" in outcome.stdout


def test_fetch_asks_once(command, write_cases, open_batch, platform, tmp_path) -> None:
    platform.steps = 3
    cases = write_cases(["a"])
    with pytest.raises(KeyboardInterrupt):
        open_batch(cases).run(cases, sleep=interrupt)
    outcome = command("fetch")
    assert outcome.exit_code == 0
    assert "Executing" in outcome.stdout
    outcome = command("fetch")
    assert outcome.exit_code == 0
    assert Manifest.load(tmp_path / "out").cases["a"].is_finished


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["status", "fetch"])
def test_no_manifest_is_one_line(command, name) -> None:
    outcome = command(name)
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert "manifest.json: got no such file" in outcome.stderr
