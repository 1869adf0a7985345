from __future__ import annotations

import pytest

from evaluation.files import write_json, write_text


def test_replaces_a_file_whole(tmp_path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_json(tmp_path / "a.txt", {"value": None})
    assert (tmp_path / "a.txt").read_text() == '{\n  "value": null\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_numbers_that_are_not_finite_and_keeps_the_old_file(tmp_path, value) -> None:
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"deep": {"value": value}})
    assert (tmp_path / "a.json").read_text() == "old"
