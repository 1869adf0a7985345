"""The shell scripts where no container engine is needed, and the Python scripts of the container test."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BASE_PYTORCH = "2.12.0"
BASE_PYTORCH_REQUIRES = (  # of its METADATA, what is not for CUDA
    "filelock",
    "fsspec>=0.8.5",
    "jinja2",
    "networkx>=2.5.1",
    "setuptools<82",
    "sympy>=1.13.3",
    "typing-extensions>=4.10.0",
)
SPACING, ORIGIN, DIRECTION = (0.7, 0.7, 1.3), (-100.1, 3.3, 12.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "test" / "container" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_input = load("make_input")
check_output = load("check_output")
evaluation_case = load("evaluation_case")


def run_script(*command: str, root: Path = ROOT, engine: str = "false") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CONTAINER_ENGINE": engine}
    return subprocess.run(
        [f"./{command[0]}", *command[1:]], cwd=root, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", ["build.sh", "test.sh", "export.sh"])
def test_scripts_explain_themselves(script: str) -> None:
    result = run_script(script, "-h")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: ./{script}")
    assert run_script(script, "--no-such-option").returncode == 2


def test_the_constraints_allow_what_the_base_images_pytorch_requires() -> None:
    """An image of the base's name may hold another PyTorch where the tests run: its build shows no such conflict."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f" pytorch/pytorch:{BASE_PYTORCH}-" in dockerfile
    chosen = re.search(r"(grep .* constraints\.txt) >others\.txt", dockerfile)
    assert chosen
    lines = subprocess.run(shlex.split(chosen[1]), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pins = [Requirement(line) for line in lines.splitlines() if not line.startswith("#")]
    assert len(pins) > 50 and "torch" not in {pin.name for pin in pins}
    for needed in map(Requirement, BASE_PYTORCH_REQUIRES):
        for pin in (pin for pin in pins if pin.name == needed.name):
            (version,) = pin.specifier
            assert needed.specifier.contains(version.version), f"{pin}, but PyTorch {BASE_PYTORCH} requires {needed}"


@pytest.mark.parametrize("script", ["build.sh", "export.sh"])
def test_an_unknown_api_method_is_refused(script: str) -> None:
    result = run_script(script, "--api-method", "http")
    assert result.returncode == 1
    assert result.stderr == f"{script}: API method is 'http', expected one of: invoke exec\n"


def test_an_engine_asked_for_must_answer() -> None:
    result = run_script("build.sh")
    assert result.returncode == 1
    assert "CONTAINER_ENGINE=false does not answer" in result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the project as export.sh needs."""
    for name in (".ci/common.sh", "export.sh", "algorithm/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "export.sh").chmod(0o755)
    return tmp_path


def test_the_model_tarball_unpacks_in_place_even_without_an_engine(checkout: Path) -> None:
    model = checkout / "my model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    (model / "lesion.safetensors").write_bytes(b"weights")
    result = run_script("export.sh", "--model", str(model), root=checkout)
    assert result.returncode == 1
    assert result.stderr == "export.sh: no image was packed: the container engine 'false' does not answer\n"
    (tarball,) = (checkout / "dist").iterdir()
    assert tarball.match("covid-lesion-dram_model_*.tar.gz")
    with tarfile.open(tarball) as tar:
        assert {Path(name).as_posix() for name in tar.getnames()} == {".", "model.json", "lesion.safetensors"}


def test_an_image_that_was_not_saved_whole_is_not_there(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "algorithm" / "model").mkdir()
    (checkout / "algorithm" / "model" / "model.json").write_text("{}")
    engine = checkout / "engine"
    engine.write_text('#!/bin/sh\n[ "$1" != save ] || { echo half; exit 1; }\n')
    engine.chmod(0o755)
    result = run_script("export.sh", root=checkout, engine=str(engine))
    assert result.returncode != 0
    assert [path.name for path in (checkout / "dist").iterdir() if "_model_" not in path.name][0].endswith(".partial")
    assert "invoke.tar.gz" not in result.stdout


def test_a_folder_without_a_model_is_not_packed(checkout: Path) -> None:
    result = run_script("export.sh", root=checkout)
    assert result.returncode == 1
    assert result.stderr == "export.sh: algorithm/model is no model directory: it holds no model.json\n"


def write_image(array: np.ndarray, path: Path, origin: tuple[float, ...] = ORIGIN) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(origin)
    image.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A sample case with its expected outputs."""
    folder = tmp_path / "sample"
    lesions = np.zeros((4, 10, 10), np.uint8)
    lesions[:2] = 1  # 200 voxels
    lesions[2, :5] = 3  # 50 voxels
    write_image(np.full((4, 10, 10), -800, np.int16), folder / "ct.mha")
    write_image(np.ones((4, 10, 10), np.uint8), folder / "lobes.mha")
    write_image(lesions, folder / "expected/lesions.mha")
    lobes: list[dict[str, Any]] = [
        {"name": "left upper", "label": 1, "volume_ml": 0.25, "lesion_ml": 0.16, "percent": 62.5, "score": 4},
        {"name": "left lower", "label": 2, "volume_ml": 0.0, "lesion_ml": 0.0, "percent": None, "score": None},
    ]
    severity = {"lobes": lobes, "total_score": None}
    (folder / "expected/severity.json").write_text(json.dumps(severity))
    return folder


@pytest.fixture
def output(sample: Path) -> Path:
    """Outputs as the platform gets them, equal to the expected ones."""
    folder = sample.parent / "output"
    lesions = folder / "images/covid-19-lesion-segmentation/output.mha"
    lesions.parent.mkdir(parents=True)
    lesions.write_bytes((sample / "expected/lesions.mha").read_bytes())
    (folder / "covid-19-severity.json").write_bytes((sample / "expected/severity.json").read_bytes())
    return folder


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_a_case_is_laid_out_as_on_the_platform(sample: Path, tmp_path: Path, key: str) -> None:
    destination = tmp_path / "input"
    (destination / "images/old").mkdir(parents=True)
    make_input.make_input(sample, destination, ["ct-image", "pulmonary-lobes"], key)
    entries = json.loads((destination / "inputs.json").read_text())
    assert [entry[key]["slug"] for entry in entries] == ["ct-image", "pulmonary-lobes"]
    assert sorted(path.name for path in (destination / "images").iterdir()) == ["ct", "pulmonary-lobes"]
    for entry, name in zip(entries, ("ct.mha", "lobes.mha"), strict=True):
        (image,) = (destination / entry[key]["relative_path"]).iterdir()
        assert image.read_bytes() == (sample / name).read_bytes()
        assert entry["image"]["name"] == name


def check(sample: Path, output: Path) -> None:
    check_output.check(output, "platform", sample / "ct.mha", lobes=None, expected=sample / "expected")


def test_the_expected_outputs_pass(sample: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(sample, output)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["left", "upper", "0.25", "0.16", "62.5", "4"]
    assert lines[2] == ["left", "lower", "0", "0", "-", "-"]


def changed_lesions(output: Path, **change: Any) -> None:
    path = output / "images/covid-19-lesion-segmentation/output.mha"
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if "voxels" in change:
        array[0].flat[: change["voxels"]] = 0
    if "label" in change:
        array[3, 0, 0] = change["label"]
    write_image(array.astype(change.get("dtype", np.uint8)), path, change.get("origin", ORIGIN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxels": 9}, r"Dice of label 1 with the expected is 0\.977, below 0\.98"),
        ({"label": 4}, r"labels of the lesions are \[0, 1, 3, 4\]"),
        ({"label": 2}, r"Dice of label 2 .* is 0\.000"),
        ({"dtype": np.int16}, r"lesions are of type 16-bit signed integer"),
        ({"origin": (-100.1, 3.3, 12.0000001)}, r"origin of the lesions is .*, the CT's is"),
    ],
)
def test_wrong_lesions_are_found(sample: Path, output: Path, change: dict[str, Any], message: str) -> None:
    changed_lesions(output, **change)
    with pytest.raises(check_output.CheckError, match=message):
        check(sample, output)


def test_lesions_within_tolerance_pass(sample: Path, output: Path) -> None:
    changed_lesions(output, voxels=7)
    check(sample, output)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("62.5", "63.1", r"percent of left upper is 63\.1, expected 62\.5 ± 0\.5"),
        ("62.5", "null", r"percent of left upper is None"),
        ('"score": 4', '"score": 3', r"score of left upper is 3, expected 4"),
        ('"total_score": null', '"total_score": 4', r"total score is 4, expected None"),
        ("left upper", "upper left", r"lobes are \['upper left'"),
        ("62.5", "NaN", r"holds NaN, which is not JSON"),
        ("}", "", r"is not JSON"),
    ],
)
def test_wrong_severity_is_found(sample: Path, output: Path, old: str, new: str, message: str) -> None:
    path = output / "covid-19-severity.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(check_output.CheckError, match=message):
        check(sample, output)


def test_found_lobes_are_compared_with_the_given_ones(sample: Path, output: Path) -> None:
    def check_with_lobes() -> None:
        lobes = sample / "lobes.mha"
        check_output.check(output, "platform", sample / "ct.mha", lobes=lobes, expected=sample / "expected")

    found = output / "images/pulmonary-lobes/output.mha"
    with pytest.raises(check_output.CheckError, match=r"expected \[.*images/pulmonary-lobes/output\.mha"):
        check_with_lobes()
    lobes = np.ones((4, 10, 10), np.uint8)
    write_image(lobes, found)
    check_with_lobes()
    with pytest.raises(check_output.CheckError, match=r"files are \[.*pulmonary-lobes.*\], expected"):
        check(sample, output)
    lobes[0, :5] = 0  # 350 of 400 voxels are left: 2 * 350 / 750
    write_image(lobes, found)
    check_with_lobes()
    lobes[0] = 0
    write_image(lobes, found)
    with pytest.raises(check_output.CheckError, match=r"Dice of both lungs with the given lobes is 0\.857, below 0\.9"):
        check_with_lobes()
    write_image(np.full((4, 10, 10), 6, np.uint8), found)
    with pytest.raises(check_output.CheckError, match=r"labels of the lobes are \[6\]"):
        check_with_lobes()


def test_files_too_many_or_too_few_are_found(sample: Path, output: Path) -> None:
    extra = output / "images/covid-19-lesion-segmentation/second.mha"
    extra.write_bytes(b"")
    with pytest.raises(check_output.CheckError, match=r"files are \[.*second\.mha.*\], expected"):
        check(sample, output)
    extra.unlink()
    (output / "covid-19-severity.json").unlink()
    with pytest.raises(check_output.CheckError, match=r"files are \['images"):
        check(sample, output)


def test_the_evaluation_case_is_a_perfect_submission(sample: Path, tmp_path: Path) -> None:
    evaluation_case.lay_out(sample, sample / "expected/lesions.mha", tmp_path / "in", tmp_path / "truth")
    assert (tmp_path / "truth/reference.csv").read_text() == (
        "case,lesions,lobes,lul,lll\nfirst,lesions.mha,lobes.mha,4,\nsecond,lesions.mha,lobes.mha,4,\n"
    )
    first, job = json.loads((tmp_path / "in/predictions.json").read_text())
    assert first["pk"] != job["pk"]
    submitted = tmp_path / "in" / job["pk"] / "output/images/covid-19-lesion-segmentation/lesions.mha"
    assert submitted.read_bytes() == (tmp_path / "truth/lesions.mha").read_bytes()
    evaluation_case.spoil(tmp_path / "in")
    assert len(submitted.read_bytes()) == len((tmp_path / "truth/lesions.mha").read_bytes()) - 100


@pytest.mark.parametrize(("iou", "scans"), [(0.98, 2), (1.0, 1), (None, 2)])
def test_an_imperfect_evaluation_is_found(tmp_path: Path, iou: float | None, scans: int) -> None:
    metrics = tmp_path / "metrics.json"
    aggregates = {"iou": {"overall": {"mean": iou}}, "scans": {"n": scans}, "kappa": {"value": None}}
    metrics.write_text(json.dumps({"aggregates": aggregates}))
    with pytest.raises(SystemExit, match=rf"IoU {iou} over {scans} scans, expected at least 0\.99 over 2"):
        evaluation_case.check(metrics)


def test_a_refusal_names_the_job_and_nothing_of_the_reference(tmp_path: Path) -> None:
    error = tmp_path / "stderr"
    error.write_text("job-second: lesions.mha is truncated\n")
    evaluation_case.check_refusal(error)
    for text in ("", "job-first: is truncated\n", "job-second: ground_truth/lesions.mha\n", "a warning\njob-second\n"):
        error.write_text(text)
        with pytest.raises(SystemExit, match="expected one line that names job-second"):
            evaluation_case.check_refusal(error)
