from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batch.cases import Case
from batch.errors import InputError
from batch.manifest import HERE, CaseRecord, Manifest, only_process
from batch.results import write_case_file

ROOT = Path(__file__).parents[2]


def new(**records: CaseRecord) -> Manifest:
    return Manifest(platform="https://p/", algorithm="x", cases=records)


@pytest.fixture
def case(tmp_path) -> Case:
    (tmp_path / "a.mha").write_text("scan")
    return Case("a", {"ct-image": tmp_path / "a.mha"}, {"pulmonary-lobes": "https://p/images/1/"})


def test_survives_a_round_trip(tmp_path) -> None:
    record = CaseRecord(
        files={"ct-image": Path("/x")}, inputs={"ct-image": "ab"}, job="job-1", outputs={"a/b.mha": "0"}
    )
    manifest = new(a=record)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("state", "active", "finished", "unsuccessful", "to_start"),
    [
        ({}, False, False, False, True),
        ({"status": "Uploading"}, False, False, False, True),
        ({"status": "Starting"}, False, False, False, True),
        ({"status": HERE, "outputs": {}}, False, True, False, False),
        ({"job": "1", "status": "Re-Queued"}, True, False, False, False),
        ({"job": "1", "status": "Succeeded"}, False, False, False, False),
        ({"job": "1", "status": "Succeeded", "outputs": {}}, False, True, False, False),
        ({"job": "1", "status": "Failed"}, False, False, True, False),
        ({"job": "1", "status": "Cancelled"}, False, False, True, False),
    ],
)
def test_states(state, active, finished, unsuccessful, to_start) -> None:
    record = CaseRecord(files={}, inputs={}, **state)
    assert (record.is_active, record.is_finished, record.is_unsuccessful) == (active, finished, unsuccessful)
    assert record.is_to_start == to_start


@pytest.mark.parametrize("text", ["{", "[]", '{"algorithm": "x"}', '{"algorithm": "x", "platform": "", "other": 1}'])
def test_refuses_a_damaged_manifest(tmp_path, text) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json: got a damaged manifest"):
        Manifest.load(tmp_path)


def test_refuses_no_manifest_and_those_of_others(tmp_path) -> None:
    with pytest.raises(InputError, match="expected the folder of an earlier run"):
        Manifest.load(tmp_path)
    new().save(tmp_path)
    with pytest.raises(InputError, match="got algorithm y, expected x as before; choose another --out"):
        Manifest.load_or_new(tmp_path, platform="https://p/", algorithm="y")
    with pytest.raises(InputError, match="got platform https://q/, expected https://p/ as before"):
        Manifest.load_or_new(tmp_path, platform="https://q/", algorithm="x")
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"schema_version": 1}))
    with pytest.raises(InputError, match="got version 1, expected 2; finish it with the program that began it"):
        Manifest.load(tmp_path)


def test_plans_a_case_with_files_and_images(case, tmp_path) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    record = manifest.cases["a"]
    assert record.inputs.keys() == {"ct-image", "pulmonary-lobes"}
    assert len(record.inputs["ct-image"]) == 64
    assert record.images == {"pulmonary-lobes": "https://p/images/1/"}


@pytest.mark.parametrize(("status", "job"), [("Starting", None), ("Executing", "job-1"), ("Succeeded", "job-1")])
def test_refuses_inputs_that_changed_after_the_start(case, tmp_path, status, job) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    manifest.cases["a"].status, manifest.cases["a"].job = status, job
    case.files["ct-image"].write_text("changed")
    with pytest.raises(InputError, match=r"other input files than those of 1 earlier jobs \(a\)"):
        manifest.plan([case], tmp_path)


def test_takes_inputs_that_changed_before_the_start(case, tmp_path) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    manifest.cases["a"].begin()
    manifest.cases["a"].uploads = {"ct-image": "https://p/uploads/1/"}
    case.files["ct-image"].write_text("changed")
    manifest.plan([case], tmp_path)
    assert manifest.cases["a"] == CaseRecord(files=case.files, inputs=case.identity())


def test_drops_other_cases_that_have_no_job(case, tmp_path, caplog) -> None:
    kept = {
        "c": CaseRecord(files={}, inputs={}, status="Starting"),
        "d": CaseRecord(files={}, inputs={}, status="Executing", job="1"),
        "e": CaseRecord(files={}, inputs={}, status="Failed", job="2"),
        "f": CaseRecord(files={}, inputs={}, status=HERE, outputs={}),
    }
    uploading = CaseRecord(files={}, inputs={}, status="Uploading")
    manifest = new(x=CaseRecord(files={}, inputs={}), b=uploading, **kept)
    assert manifest.plan([case], tmp_path) == ["a"]
    assert manifest.cases.keys() == {"a", *kept}
    assert caplog.messages == ["dropped, for they are no longer among the cases and have no job: b, x"]


@pytest.mark.parametrize("status", ["Failed", "Cancelled"])
def test_takes_inputs_that_changed_after_a_failure_and_starts_nothing(case, tmp_path, status) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    failed = manifest.cases["a"] = manifest.cases["a"].model_copy(update={"job": "1", "status": status, "error": "e"})
    case.files["ct-image"].write_text("mended")
    manifest.plan([case], tmp_path)
    assert manifest.cases["a"] == failed.model_copy(update={"inputs": case.identity()})
    manifest.retry([])
    case.files["ct-image"].write_text("mended again")
    manifest.plan([case], tmp_path)
    assert manifest.cases["a"] == CaseRecord(files=case.files, inputs=case.identity(), earlier_jobs=["1"])


def test_counts_what_was_computed_here_only_from_the_same_inputs(case, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "severity.json").write_text("{}")
    outputs = write_case_file(tmp_path / "a", computed="here", inputs=case.identity())
    manifest = new()
    manifest.plan([case], tmp_path)
    assert (manifest.cases["a"].status, manifest.cases["a"].outputs) == (HERE, outputs)
    (tmp_path / "a" / "severity.json").write_text("{ }")
    manifest.plan([case], tmp_path)
    assert (manifest.cases["a"].status, manifest.cases["a"].outputs) == ("Pending", None)
    write_case_file(tmp_path / "a", computed="here", inputs={"ct-image": "other"})
    manifest.plan([case], tmp_path)
    assert manifest.cases["a"].status == "Pending"


def test_retries_those_that_failed(tmp_path) -> None:
    failed = CaseRecord(files={}, inputs={"ct-image": "0"}, job="2", status="Failed", earlier_jobs=["1"], error="e")
    manifest = new(a=failed, b=failed.model_copy(update={"status": "Cancelled"}), c=CaseRecord(files={}, inputs={}))
    with pytest.raises(
        InputError, match=r"c, d: got cases that did not fail, expected some of those that did \(a, b\)"
    ):
        manifest.retry(["a", "c", "d"])
    assert manifest.retry(["a"]) == ["a"]
    assert manifest.cases["a"] == CaseRecord(files={}, inputs={"ct-image": "0"}, earlier_jobs=["1", "2"])
    assert manifest.retry([]) == ["b"]
    assert manifest.retry([]) == []
    assert manifest.jobs() == {"1", "2"}


def test_retries_with_the_files_as_they_are_now(case, tmp_path) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    manifest.cases["a"].job, manifest.cases["a"].status = "1", "Failed"
    case.files["ct-image"].write_text("mended")
    manifest.retry([])
    assert manifest.cases["a"] == CaseRecord(files=case.files, inputs=case.identity(), earlier_jobs=["1"])


def test_retries_nothing_where_a_file_is_gone(case, tmp_path) -> None:
    manifest = new()
    manifest.plan([case], tmp_path)
    manifest.cases["a"].job, manifest.cases["a"].status = "1", "Failed"
    case.files["ct-image"].unlink()
    with pytest.raises(InputError, match=r"a\.mha: cannot be read \(No such file .*; put it back, or name other cases"):
        manifest.retry([])
    assert manifest.cases["a"].status == "Failed"


def test_keeps_other_processes_out_and_removes_what_killed_ones_left(tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; from batch.manifest import only_process\n"
        "with only_process(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    (tmp_path / "out" / ".partial-x").mkdir(parents=True)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(InputError, match="another command is working on this folder"),
            only_process(tmp_path / "out"),
        ):
            pass
        other.kill()
    with only_process(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_refuses_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), only_process(tmp_path / "file" / "out"):
        pass
