"""A tiny chest, a stand-in for the network, and the folders as Grand Challenge lays them out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import save as to_safetensors

from algorithm.images import Geometry, Volume
from algorithm.lobe_segmenter import FoundLobes
from algorithm.lobes import LOBES
from algorithm.model import Architecture, LobeNetwork, Model, ModelDescription, Preprocessing, load_model, sha256
from algorithm.network import UNet3D
from algorithm.report import LobeEntry, ModelIdentity, SeverityReport, Timings

SIZE_ZYX = (6, 8, 10)


class FakeSegmenter:
    """Marks each voxel of the right upper lobe as ground-glass; remembers how often, and can be made to fail.

    Where no lobes are given it finds one that fills the scan, with a doubt about it.
    """

    lobes_by = "model"

    def __init__(self) -> None:
        self.cases = 0
        self.is_warm = False
        self.precision = "fp32"
        self.error: Exception | None = None
        self.before: Callable[[], object] = lambda: None

    def find_lobes(self, ct: Volume) -> FoundLobes:
        if self.error is not None:
            raise self.error
        return FoundLobes(ct.with_array(np.full(ct.array.shape, 3, np.uint8)), "model", {3: 0.75}, ["a doubt"])

    def warm_up(self) -> None:
        self.is_warm = True

    def segment(
        self, ct: Volume, lobes: Volume | None = None, *, progress: Callable[[str, float], None] | None = None
    ) -> Any:
        tell = progress or (lambda step, fraction: None)
        prepared = self.prepare(ct, lobes)
        return self.finish(prepared, self.predict(prepared, progress=lambda fraction: tell("network", fraction)))

    def prepare(self, ct: Volume, lobes: Volume | None) -> tuple[Volume, Volume, str]:
        if lobes is None:
            return ct, self.find_lobes(ct).labels, self.lobes_by
        return ct, lobes, "given"

    def predict(self, prepared: tuple[Volume, Volume, str], *, progress: Callable[[float], None] | None = None) -> Any:
        self.before()
        if progress is not None:
            progress(0.5)
        if self.error is not None:
            raise self.error
        self.cases += 1
        ct, lobes, _ = prepared
        return ct.with_array((lobes.array == 3).astype(np.uint8))

    def finish(self, prepared: tuple[Volume, Volume, str], predicted: Volume) -> Any:
        _, lobes, source = prepared
        report = _report().model_copy(update={"lobes_source": source, "precision": self.precision})
        return SimpleNamespace(labels=predicted, lobes=lobes, report=report)


def _report() -> SeverityReport:
    return SeverityReport(
        algorithm_version="0",
        model=ModelIdentity(name="fake", version="0", weights_sha256="0"),
        device="cpu",
        lobes=[
            LobeEntry(name=lobe.name, label=lobe.label, volume_ml=10.0, lesion_ml=1.25, percent=12.5, score=2)
            if lobe.key != "rml"
            else LobeEntry(name=lobe.name, label=lobe.label, volume_ml=0.0, lesion_ml=0.0, percent=None, score=None)
            for lobe in LOBES
        ],
        total_score=None,
        lesion_ml=5.0,
        subtype_ml={"ground-glass": 5.0},
        components=[],
        warnings=["right middle lobe absent from the lobe mask: no total score"],
        timings=Timings(preprocess_s=0.0, network_s=0.0, postprocess_s=0.0),
    )


@pytest.fixture
def fake_segmenter() -> FakeSegmenter:
    return FakeSegmenter()


@pytest.fixture
def geometry() -> Geometry:
    """An oblique, left-handed grid far from the origin."""
    angle = np.deg2rad(12.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return Geometry(
        size_zyx=SIZE_ZYX,
        spacing_zyx_mm=(2.5, 0.7, 0.8),
        origin_xyz_mm=(-173.123456789, 21.987654321, -1200.5),
        direction=tuple((turn @ np.diag([1.0, 1.0, -1.0])).ravel().tolist()),
    )


@pytest.fixture
def ct(geometry: Geometry) -> Volume:
    """Air, with soft tissue around it."""
    array = np.random.default_rng(0).integers(-1000, -700, SIZE_ZYX).astype(np.int16)
    array[:, 0] = 40
    return Volume(array, geometry)


@pytest.fixture
def lobes(geometry: Geometry) -> Volume:
    """Labels 1 to 4; the middle lobe is absent."""
    array = np.zeros(SIZE_ZYX, np.uint8)
    for label in (1, 2, 3, 4):
        array[:, 2:6, 2 * label - 1 : 2 * label + 1] = label
    return Volume(array, geometry)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a volume under a name in the test's folder."""

    def save_as(volume: Volume, name: str, *, compressed: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume.to_sitk(), str(path), useCompression=compressed)
        return path

    return save_as


@pytest.fixture
def input_dir(tmp_path: Path, ct: Volume, lobes: Volume, save: Callable[..., Path]) -> Path:
    """A case with a CT and lobes, as the platform mounts it."""
    save(ct, "input/images/ct/0b1f9cf4.mha")
    save(lobes, "input/images/pulmonary-lobes/7c3f2a10.mha")
    values = [_socket_value("ct-image", "images/ct"), _socket_value("pulmonary-lobes", "images/pulmonary-lobes")]
    (tmp_path / "input" / "inputs.json").write_text(json.dumps(values))
    return tmp_path / "input"


def _socket_value(slug: str, relative_path: str | None = None, *, key: str = "socket") -> dict[str, Any]:
    descriptor = {"title": slug, "slug": slug, "kind": "Image", "pk": 1, "relative_path": relative_path}
    return {key: descriptor, "value": None, "file": None, "image": {"pk": "7", "name": "case01.mha"}, "pk": 1}


@pytest.fixture
def socket_value() -> Callable[..., dict[str, Any]]:
    """Makes one entry of inputs.json."""
    return _socket_value


@pytest.fixture(scope="session")
def _tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as training writes it, with random weights of width 1."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    weights = to_safetensors(UNet3D(out_channels=3, width=1, padding="valid").state_dict())
    rows = ["volume_ml,mean_hu,sd_hu,subtype", "5,-550,80,1", "2,-600,60,1", "3,-100,280,2", "8,-80,250,2"]
    lobe_network = LobeNetwork(width=1, spacing_mm=1.5, fold=2, fissure_width=1, window_hu=(-1024.0, 400.0))
    lobe_weights = to_safetensors(lobe_network.untrained().state_dict())
    files = {
        "lesion.safetensors": weights,
        "lobes.safetensors": lobe_weights,
        "subtypes.csv": "\n".join(rows).encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    description = ModelDescription(
        name="tiny",
        version="0",
        architecture=Architecture(width=1),
        preprocessing=Preprocessing(spacing_mm=1.5),
        lobe_network=lobe_network,
        training={},
        results={},
        intended_use="tests",
        licence="Apache-2.0",
        files={name: sha256(content) for name, content in files.items()},
    )
    (directory / "model.json").write_text(description.model_dump_json())
    return directory


@pytest.fixture
def model_directory(_tiny_model_directory: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(_tiny_model_directory, tmp_path / "model")


@pytest.fixture
def tiny_model(_tiny_model_directory: Path) -> Model:
    return load_model(_tiny_model_directory)
