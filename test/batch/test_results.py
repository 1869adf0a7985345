from __future__ import annotations

import pytest

from algorithm.sockets import LESIONS, SEVERITY
from batch.results import LESIONS_SLUG, SEVERITY_SLUG, finished_here, read_case_file, write_case_file


def test_sockets_are_those_of_the_algorithm() -> None:
    assert (LESIONS_SLUG, SEVERITY_SLUG) == (LESIONS.slug, SEVERITY.slug)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "images" / "x.mha").write_text("x")
    (tmp_path / "a" / "severity.json").write_text("{}")
    return tmp_path / "a"


def test_case_file(folder) -> None:
    outputs = write_case_file(folder, computed="job-1", inputs={"ct-image": "0"})
    assert list(outputs) == ["images/x.mha", "severity.json"]
    case_file = read_case_file(folder)
    assert (case_file.computed, case_file.inputs, case_file.outputs) == ("job-1", {"ct-image": "0"}, outputs)
    assert finished_here(folder, {"ct-image": "0"}) is None


def test_finished_here(folder) -> None:
    outputs = write_case_file(folder, computed="here", inputs={"ct-image": "0"})
    assert finished_here(folder, {"ct-image": "0"}) == outputs
    assert finished_here(folder, {"ct-image": "1"}) is None
    (folder / "severity.json").write_text("{ }")
    assert finished_here(folder, {"ct-image": "0"}) is None
    (folder / "severity.json").unlink()
    assert finished_here(folder, {"ct-image": "0"}) is None


@pytest.mark.parametrize("text", ["{", "{}", '{"computed": "here", "inputs": {}, "outputs": {}, "more": 1}'])
def test_a_damaged_case_file_says_nothing(folder, text) -> None:
    (folder / "case.json").write_text(text)
    assert read_case_file(folder) is None
