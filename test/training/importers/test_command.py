from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from algorithm.errors import InputError
from algorithm.images import Volume
from training.cases import read_cases
from training.importers.command import IMPORTERS, app


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.mark.parametrize("name", IMPORTERS)
def test_each_data_set_has_a_command_that_says_its_licence(run, tmp_path, name):
    result = run(name, "--root", tmp_path, "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError) and str(tmp_path) in str(result.exception)
    source = IMPORTERS[name].SOURCE
    assert f"{source.name}, {source.url}; licence: {source.licence}" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*IMPORTERS, "table"])
def test_help_shows_the_layout(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert name == "table" or "ROOT/" in result.output


@pytest.fixture
def ricord(tmp_path, write_dicom):
    root = tmp_path / "ricord"
    labels = [{"id": "L", "name": "Infectious opacity"}]
    annotations = [
        {
            "labelId": "L",
            "SeriesInstanceUID": series,
            "SOPInstanceUID": write_dicom(root / series, series=series, patient=series)[3],
            "data": {"vertices": [[9.6, 2.6], [11.4, 2.6], [11.4, 4.4], [9.6, 4.4]]},
        }
        for series in ("1.1", "1.2", "1.3", "1.4")
    ]
    content = {"labelGroups": [{"labels": labels}], "datasets": [{"annotations": annotations}]}
    (root / "annotations_labelgroup_all.json").write_text(json.dumps(content))
    return root


def test_a_data_set_is_imported_in_two_steps(run, ricord, tmp_path, five_lobes, write_image):
    """First the CTs, to make lobes from, then the rest; 4 of 48 voxels of the left upper lobe are lesion."""
    out, options = tmp_path / "out", ["--seed", 5, "--validation", 1, "--test", 1, "--workers", 1]
    result = run("ricord", "--root", ricord, "--out", out, *options)
    assert "lungmask" in str(result.exception)
    for path in (out / "images").glob("*_ct.mha"):
        write_image(five_lobes, tmp_path / "lobes" / path.name.replace("_ct.mha", ".nii.gz"))
    result = run("ricord", "--root", ricord, "--out", out, *options, "--lobes", tmp_path / "lobes")
    assert result.exit_code == 0, result.exception
    cases = read_cases(out)
    assert sorted(case.split for case in cases) == ["test", "train", "train", "validation"]
    assert [case.scores for case in cases] == [{1: 2, 2: 0, 3: 0, 4: 0, 5: 0}] * 4
    assert "4 cases (2 train, 1 " in result.output and "CC BY-NC 4.0" in result.output


def test_the_numbering_of_lobes_is_passed_on(run, ricord, tmp_path, five_lobes, write_image):
    for series in ("1.1", "1.2", "1.3", "1.4"):
        write_image(five_lobes, tmp_path / "lobes" / f"{series}.mha")
    command = ["ricord", "--root", ricord, "--out", tmp_path / "out", "--lobes", tmp_path / "lobes", "--workers", 1]
    result = run(*command, "--lobe-labels", "lungmask")
    assert "4 of 4 cases cannot be used" in str(result.exception)
    write_image(five_lobes.with_array((five_lobes.array == 1).astype("uint8")), tmp_path / "lobes" / "1.1.mha")
    result = run(*command, "--skip-unusable")
    assert result.exit_code == 0, result.exception


def test_a_table_is_imported(run, tmp_path, grid, chest, five_lobes, write_image):
    for name in "abc":
        write_image(Volume(chest, grid), tmp_path / "scans" / f"{name}.mha")
    write_image(five_lobes, tmp_path / "scans" / "lobes.mha")
    rows = [f"{name},{name}.mha,lobes.mha,0,10,,60,90\n" for name in "abc"]
    (tmp_path / "t.csv").write_text("case,ct,lobes,lul,lll,rul,rll,M\n" + "".join(rows))
    result = run(
        "table", "--table", tmp_path / "t.csv", "--out", tmp_path / "out", "--root", tmp_path / "scans",
        "--column", "rml=M", "--percent", "--validation", 1, "--test", 1, "--workers", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    cases = read_cases(tmp_path / "out")
    assert [case.scores for case in cases] == [{1: 0, 2: 2, 4: 4, 5: 5}] * 3
    assert sorted(case.split for case in cases) == ["test", "train", "validation"]
    assert "lobes by score: 0: 3, 1: 0, 2: 3, 3: 0, 4: 3, 5: 3; without a score: 3" in result.output


def test_a_column_must_be_named(run, tmp_path):
    result = run("table", "--table", tmp_path / "t.csv", "--out", tmp_path / "out", "--column", "lul")
    assert "--column lul: expected NAME=HEADER" in str(result.exception)
