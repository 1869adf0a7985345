"""The stand-in for the platform, and scans to send to it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from batch.cases import find_cases
from batch.connection import TOKEN_VARIABLE, Connection
from batch.jobs import Batch
from batch.manifest import Manifest


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    """The package of the stand-in; there are no importable packages under test/."""
    folder = Path(__file__).with_name("standin")
    spec = importlib.util.spec_from_file_location(
        "batch_standin", folder / "server.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _server(standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    certificate, key = standin.make_certificate(tmp_path_factory.mktemp("certificate"))
    with standin.Platform(certificate, key).serving() as platform:
        yield platform, certificate


@pytest.fixture
def platform(_server, monkeypatch, standin) -> Iterator[Any]:
    """The stand-in, whose certificate the client is told to trust."""
    platform, certificate = _server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr("batch.connection.FIRST_DELAY_S", 0.001)
    yield platform
    platform.accounts.clear()
    platform.lowest_version = platform.latest_version


@pytest.fixture
def account(platform, monkeypatch) -> Iterator[Any]:
    """The account of the token in the environment; the requests must have had the shape that the platform demands."""
    monkeypatch.setenv(TOKEN_VARIABLE, "token-of-the-tests")
    account = platform.account("token-of-the-tests")
    yield account
    assert account.breaches == []


@pytest.fixture
def connection(platform, account) -> Iterator[Connection]:
    with Connection(platform.url) as connection:
        yield connection


def write_scan(path: Path, *, seed: int = 0, labels: bool = False) -> Path:
    """A CT, or a lobe mask on its grid, of 3 x 4 x 5 voxels."""
    array = np.random.default_rng(seed).integers(-1000, 100, (3, 4, 5)).astype(np.int16)
    image = sitk.GetImageFromArray((array % 6).astype(np.uint8) if labels else array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10.5, 20.25, -300.0))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def scan() -> Callable[..., Path]:
    return write_scan


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Folders for scans and lobes."""
    folders = {"scans": tmp_path / "scans", "lobes": tmp_path / "lobes"}
    for folder in folders.values():
        folder.mkdir()
    return folders


@pytest.fixture
def write_cases(inputs: dict[str, Path]) -> Callable[[Iterable[str]], None]:
    """Write the files of some cases."""

    def write(names: Iterable[str]) -> None:
        for name in names:
            for kind, folder in inputs.items():
                write_scan(folder / f"{name}.mha", seed=sum(name.encode()), labels=kind == "lobes")

    return write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def open_batch(out, inputs, connection, platform, standin) -> Callable[..., Batch]:
    """A batch on the output folder as its manifest has it, with the cases planned; its waits are kept in `delays`."""

    def open_(*, retry: bool = False) -> Batch:
        manifest = Manifest.load_or_new(out, platform=platform.url, algorithm=standin.SLUG)
        wanted = manifest.plan(find_cases(inputs["scans"], inputs["lobes"]), out)
        if retry:
            wanted = manifest.retry([])
        delays: list[float] = []
        batch = Batch(connection, manifest, out, wanted=wanted, sleep=delays.append)
        batch.delays = delays
        return batch

    return open_


@pytest.fixture
def require_home() -> Callable[[Batch, Iterable[str]], None]:
    """Checks that every case has its outputs, and that the manifest on disk knows it."""

    def require(batch: Batch, names: Iterable[str]) -> None:
        records = Manifest.load(batch.folder).cases
        assert records == batch.manifest.cases
        for name in names:
            assert (records[name].status, records[name].error) == ("Succeeded", None)
            assert set(records[name].outputs) == {"lesions.mha", "severity.json"}
            assert json.loads((batch.folder / name / "severity.json").read_text())["total_score"] == 15

    return require
