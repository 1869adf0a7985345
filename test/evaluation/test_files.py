from __future__ import annotations

import pytest

from evaluation.files import json_text, write_files


def test_replaces_files_and_leaves_nothing_else(tmp_path) -> None:
    out = tmp_path / "new" / "folder"
    write_files(out, {"a.txt": "old", "b.txt": "old"})
    write_files(out, {"a.txt": "new ±", "c.txt": ""})
    assert {path.name: path.read_text("utf-8") for path in out.iterdir()} == {
        "a.txt": "new ±",
        "b.txt": "old",
        "c.txt": "",
    }


def test_all_files_or_none(tmp_path) -> None:
    write_files(tmp_path, {"a.txt": "old"})
    with pytest.raises(UnicodeEncodeError):
        write_files(tmp_path, {"a.txt": "new", "b.txt": "\ud800"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_json_is_strict() -> None:
    assert json_text({"value": None}) == '{\n  "value": null\n}\n'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_text({"deep": {"value": value}})
