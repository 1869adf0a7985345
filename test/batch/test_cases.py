from __future__ import annotations

import hashlib

import pytest

from batch.cases import pair_cases, shortened
from batch.errors import InputError


def test_pairs_by_name_and_hashes(write_cases, inputs) -> None:
    first, second = write_cases(["b", "a.1"])
    assert (first.name, second.name) == ("a.1", "b")
    assert first.files == {"ct-image": inputs["scans"] / "a.1.mha", "pulmonary-lobes": inputs["lobes"] / "a.1.mha"}
    assert first.sha256()["ct-image"] == hashlib.sha256(b"scans of a.1").hexdigest()


def test_other_files_are_left_alone_and_named(write_cases, inputs, caplog) -> None:
    (inputs["scans"] / "notes.txt").write_text("")
    (inputs["scans"] / ".hidden").write_text("")
    assert [case.name for case in write_cases(["a"])] == ["a"]
    assert "left alone, not .mha: notes.txt" in caplog.text


def test_refuses_files_without_a_partner(write_cases, inputs) -> None:
    write_cases(["a", "b"])
    (inputs["lobes"] / "b.mha").unlink()
    (inputs["lobes"] / "c.mha").write_text("")
    with pytest.raises(InputError, match=r"got 2 files without a partner of the same name \(b, c\)"):
        pair_cases(**inputs)


def test_refuses_empty_and_missing_folders(inputs, tmp_path) -> None:
    with pytest.raises(InputError, match="got no .mha file"):
        pair_cases(**inputs)
    with pytest.raises(InputError, match="none: got no such folder"):
        pair_cases(scans=tmp_path / "none", lobes=inputs["lobes"])


def test_long_lists_are_shortened() -> None:
    assert shortened("fedcba") == "a, b, c, d, e, ..."
