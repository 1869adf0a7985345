"""Coarse scans and their random crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training import lobe_scans
from training.cases import read_table
from training.lobe_scans import LobeScan, LobeScanItem, _random_bend, cache_scan, random_crop, read_lobe_scan
from training.settings import LobeSettings

SETTINGS = LobeSettings(fold=1, precision="32-true", crop_size_zyx=(32, 24, 40), bend_mm=0)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops that are turned, scaled and shifted, but look like the scan."""
    monkeypatch.setattr(lobe_scans, "randomise", lambda image, lobes, rng, **shares: image)


def item(lobes: NDArray[np.uint8], position: int = 0) -> LobeScanItem:
    return LobeScanItem(torch.from_numpy((lobes / 8).astype(np.float16)), torch.from_numpy(lobes), position)


def blocks() -> NDArray[np.uint8]:
    """A block of each lobe, in a scan of the crop's size around them."""
    lobes = np.zeros((32, 24, 40), dtype=np.uint8)
    for label in range(1, 6):
        lobes[4:28, 4:20, 6 * label : 6 * label + 4] = label
    return lobes


def crop(settings: LobeSettings, scan: LobeScanItem) -> tuple[torch.Tensor, torch.Tensor]:
    return random_crop(scan, settings, seed=3, device=torch.device("cpu"))


def test_cache_holds_the_whole_scan(phantoms: Path, tmp_path: Path) -> None:
    case = read_table(phantoms)[0]
    settings = SETTINGS.model_copy(update={"spacing_mm": 6.0})
    cache_scan(case, tmp_path, settings)
    scan = read_lobe_scan(LobeScan(case.name, tmp_path), 7)
    assert scan.position == 7
    assert scan.image.shape == scan.lobes.shape
    assert set(scan.lobes.unique().tolist()) == set(range(6))
    assert 0 <= float(scan.image.min()) and float(scan.image.max()) <= 1
    inside = scan.lobes > 0
    lungs, tissue = (scan.image[where].float().mean() for where in (inside, ~inside & (scan.image > 0.3)))
    assert float(lungs) < 0.4 < float(tissue)


def test_a_cache_is_kept_while_its_images_are_the_same(phantoms: Path, tmp_path: Path) -> None:
    first, second = read_table(phantoms)[:2]
    cache_scan(first, tmp_path, SETTINGS)
    kept = tmp_path / first.name / "image.npy"
    before = kept.stat().st_mtime_ns
    cache_scan(first, tmp_path, SETTINGS)
    assert kept.stat().st_mtime_ns == before
    kept.unlink()  # as the error of a damaged file asks for
    cache_scan(first, tmp_path, SETTINGS)
    before = kept.stat().st_mtime_ns
    cache_scan(replace(second, name=first.name), tmp_path, SETTINGS)
    assert kept.stat().st_mtime_ns != before


def require_together(image: torch.Tensor, labels: torch.Tensor) -> None:
    """The image of a lobe is an eighth of its label, and mixed at its border: labels moved by a voxel fit it less."""
    values, fit = 8 * image[0, 0], labels[0].float()
    off = float((values - fit).abs().mean())
    for axis in range(3):
        for step in (-1, 1):
            assert off < 0.9 * float((values - fit.roll(step, axis)).abs().mean())


def test_image_and_lobes_move_together(plain: None) -> None:
    seen = set()
    for position in range(10):
        image, labels = crop(SETTINGS, item(blocks(), position))
        assert image.shape == (1, 1, 32, 24, 40) and labels.shape == (1, 32, 24, 40)
        seen |= set(labels.unique().tolist())
        require_together(image, labels)
    assert seen == set(range(6))


def test_without_any_change_the_crop_is_the_scan(plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Middle:
        """Draws the middle of every range."""

        def uniform(self, low: float, high: float, size: int | None = None) -> object:
            return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

        def random(self) -> float:
            return 1.0

        def standard_normal(self, size: tuple[int, ...]) -> object:
            return np.zeros(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Middle())
    lobes = blocks()
    lobes[:, :, 34:] = 0
    lobes[4:28, 4:20, 6:34] = np.maximum(lobes[4:28, 4:20, 6:34], 1)  # the middle of the lobes is that of the scan
    image, target = crop(SETTINGS.model_copy(update={"scale_range": (1.0, 1.0)}), item(lobes))
    assert np.array_equal(target[0].numpy(), lobes)
    assert image[0, 0].numpy() == pytest.approx(lobes / 8, abs=1e-3)


def test_bending_moves_points_by_some_millimetres_and_keeps_image_and_lobes_together(plain: None) -> None:
    bent = SETTINGS.model_copy(update={"bend_mm": 6.0})
    changed = []
    for position in range(10):
        (_, straight), (image, labels) = crop(SETTINGS, item(blocks(), position)), crop(bent, item(blocks(), position))
        require_together(image, labels)
        changed.append(float((straight != labels).float().mean()))
    assert min(changed) > 0
    assert 0.02 < np.mean(changed) < 0.2


def test_bends_are_smooth_and_of_the_deviation_that_is_asked_for() -> None:
    lobes = torch.zeros(40, 60, 80)
    settings = SETTINGS.model_copy(update={"bend_mm": 3.0})
    bends = [_random_bend(np.random.default_rng(seed), lobes, settings) for seed in range(40)]
    voxels = torch.cat(bends) * torch.tensor([80.0, 60.0, 40.0]) / 2
    assert voxels.shape == (40, 32, 24, 40, 3)
    at_corners = settings.spacing_mm * voxels[:, ::31, ::23, ::39].std(dim=(0, 1, 2, 3))  # corners are knots
    assert at_corners.tolist() == pytest.approx([3 / 3**0.5] * 3, rel=0.2)  # deviations are uniform in (0, 3) mm
    assert float(voxels.diff(dim=1).abs().max()) < 2


def test_scale_enlarges_the_lobes(plain: None) -> None:
    lobes = np.zeros((64, 64, 64), dtype=np.uint8)
    lobes[26:38, 26:38, 26:38] = 3
    settings = SETTINGS.model_copy(update={"crop_size_zyx": (48, 48, 48), "scale_range": (2.0, 2.0)})
    volumes = [float((crop(settings, item(lobes, position))[1] == 3).sum()) for position in range(12)]
    assert np.median(volumes) == pytest.approx(2**3 * 12**3, rel=0.1)


def test_crops_depend_on_seed_and_position_alone() -> None:
    scan = item(blocks(), 5)
    first, again = crop(SETTINGS, scan), crop(SETTINGS, scan)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], crop(SETTINGS, replace(scan, position=6))[0])
