from __future__ import annotations

import pytest

from batch.errors import InputError
from batch.manifest import CaseRecord, Manifest


def test_survives_a_round_trip(tmp_path) -> None:
    record = CaseRecord(inputs={"ct-image": "ab"}, job="job-1", status="Succeeded", outputs=["a/b.mha"])
    manifest = Manifest(algorithm="x", cases={"a": record})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("record", "active", "finished", "unsuccessful"),
    [
        (CaseRecord(inputs={}), False, False, False),
        (CaseRecord(inputs={}, job="1", status="Re-Queued"), True, False, False),
        (CaseRecord(inputs={}, job="1", status="Succeeded"), False, False, False),
        (CaseRecord(inputs={}, job="1", status="Succeeded", outputs=["f"]), False, True, False),
        (CaseRecord(inputs={}, job="1", status="Failed"), False, False, True),
        (CaseRecord(inputs={}, job="1", status="Cancelled"), False, False, True),
    ],
)
def test_states(record, active, finished, unsuccessful) -> None:
    assert (record.is_active, record.is_finished, record.is_unsuccessful) == (active, finished, unsuccessful)


@pytest.mark.parametrize("text", ["{", '{"algorithm": "x", "schema_version": 2}', '{"algorithm": "x", "other": 1}'])
def test_refuses_a_damaged_manifest(tmp_path, text) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json: got a damaged manifest"):
        Manifest.load(tmp_path)


def test_refuses_no_manifest_and_another_algorithm(tmp_path) -> None:
    with pytest.raises(InputError, match="expected the folder of an earlier run"):
        Manifest.load(tmp_path)
    Manifest(algorithm="x").save(tmp_path)
    with pytest.raises(InputError, match="got algorithm y, expected x as before"):
        Manifest.load_or_new(tmp_path, algorithm="y")


def test_refuses_inputs_that_changed_after_the_start(write_cases) -> None:
    cases = write_cases(["a", "b"])
    manifest = Manifest(algorithm="x")
    manifest.plan(cases)
    manifest.cases["a"].job = "job-0"
    for case in cases:
        case.files["ct-image"].write_text("changed")
    with pytest.raises(InputError, match=r"other input files than those of 1 earlier jobs \(a\)"):
        manifest.plan(cases)
    assert manifest.cases["b"].inputs == cases[1].sha256()
