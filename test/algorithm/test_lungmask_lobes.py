from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from algorithm.lungmask_lobes import Lungmask, renumbered

URLS = {"LTRCLobes": ("https://host/a/lobes.pth", 6), "R231": ("https://host/a/lungs.pth", 3)}


@pytest.fixture
def lungmask(monkeypatch, tmp_path):
    """A stand-in for the package, which takes each fifth of a scan for a lobe; and a hub without weights."""

    class Inferer:
        made: list[dict[str, object]]

        def __init__(self, **arguments):
            self.made.append(arguments)

        def apply(self, image):
            width = image.GetSize()[0]
            labels = 1 + np.arange(width) * 5 // width
            return np.broadcast_to(labels, image.GetSize()[::-1]).astype(np.uint8)

    Inferer.made = []
    package, mask = ModuleType("lungmask"), ModuleType("lungmask.mask")
    mask.MODEL_URLS, mask.LMInferer = URLS, Inferer
    monkeypatch.setitem(sys.modules, "lungmask", package)
    monkeypatch.setitem(sys.modules, "lungmask.mask", mask)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return Inferer


@pytest.fixture
def big(ct):
    """The tiny chest at a size at which it counts as one."""
    from dataclasses import replace

    return type(ct)(np.full_like(ct.array, -850), replace(ct.geometry, spacing_zyx_mm=(20.0, 20.0, 20.0)))


def test_middle_and_lower_lobe_change_numbers():
    assert renumbered(np.array([0, 1, 2, 3, 4, 5, 7])).tolist() == [0, 1, 2, 3, 5, 4, 0]


def test_weights_that_are_here_are_used(lungmask, big, tmp_path):
    for name in ("lobes.pth", "lungs.pth"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    finder = Lungmask(torch.device("cpu"))
    found = finder.segment(big)
    assert (finder.segment(big).labels.array == found.labels.array).all()
    assert found.source == "lungmask" and found.confidence == {}
    assert found.labels.geometry == big.geometry and found.labels.array.dtype == np.uint8
    assert found.labels.array[0, 0].tolist() == [1, 1, 2, 2, 3, 3, 5, 5, 4, 4]
    (arguments,) = lungmask.made  # once for all scans
    assert arguments["force_cpu"] is True
    paths = {name: str(tmp_path / "checkpoints" / file) for name, file in (("modelpath", "lobes.pth"),)}
    assert arguments["modelpath"] == paths["modelpath"]
    assert arguments["fillmodel_path"] == str(tmp_path / "checkpoints" / "lungs.pth")


def test_weights_that_are_not_here_are_not_downloaded(lungmask):
    with pytest.raises(InputError, match=r"weights are not on this machine, expected .*checkpoints/lobes.pth"):
        Lungmask(torch.device("cpu"))
    assert lungmask.made == []


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lungmask.mask", None)
    with pytest.raises(InputError, match="the package lungmask is not installed; run `pip install lungmask`"):
        Lungmask(torch.device("cpu"))
