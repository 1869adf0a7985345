"""Whole scans with their lobes, resampled, for the network that finds lobes; random crops of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from algorithm.errors import InputError
from algorithm.lobe_input import lobe_network_input
from algorithm.preprocess import bounding_box, resample
from training.appearance import randomise
from training.cases import Case, read_scan
from training.files import load_array, save_array, whole_folder, write_json
from training.prepare import SOURCE, is_made_of, sha256_of_images
from training.settings import LobeSettings

CUT_SHARE = 0.2  # of crops that may leave out any part of the lungs
BEND_KNOTS = (5, 5, 5)  # of a crop, that are moved each by itself


@dataclass(frozen=True)
class LobeScan:
    """The cache of a case: image.npy, float16 intensity, and lobes.npy, uint8 labels, (z, y, x) each."""

    name: str
    folder: Path


@dataclass(frozen=True)
class LobeScanItem:
    """A scan as it is read.

    Attributes:
        image: float16 (z, y, x), windowed intensity.
        lobes: uint8, labels of `algorithm.lobes.LOBES`.
        position: in the sequence of the training; seeds what is random about it.
    """

    image: Tensor
    lobes: Tensor
    position: int


def cache_scan(case: Case, folder: Path, settings: LobeSettings) -> None:
    """Write the cache of a case, unless it is there and its images are the same.

    Raises:
        InputError: an image cannot be used, or the resampled lobes are empty.
    """
    target, source = folder / case.name, {"sha256": sha256_of_images(case)}
    if all((target / f"{name}.npy").is_file() for name in ("image", "lobes")) and is_made_of(source, target):
        return
    shutil.rmtree(target, ignore_errors=True)
    scan = read_scan(case)
    image = lobe_network_input(scan.ct, spacing_mm=settings.spacing_mm, window_hu=settings.window_hu)
    lobes = resample(scan.lobes, image.geometry, "nearest").array
    if not lobes.any():
        raise InputError(f"no voxel is left of the lobes at {settings.spacing_mm:g} mm; check {case.lobes.name}")
    with whole_folder(target) as unnamed:
        save_array(unnamed / "image.npy", image.array.astype(np.float16))
        save_array(unnamed / "lobes.npy", lobes)
        write_json(unnamed / SOURCE, source)


def read_lobe_scan(scan: LobeScan, position: int = 0) -> LobeScanItem:
    """Read the cache of a case."""
    image, lobes = (load_array(scan.folder / scan.name / f"{name}.npy") for name in ("image", "lobes"))
    return LobeScanItem(torch.from_numpy(image), torch.from_numpy(lobes), position)


def random_crop(
    item: LobeScanItem, settings: LobeSettings, *, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A turned, scaled, shifted, bent part of a scan, of random appearance.

    Args:
        item: the scan.
        settings: size of the crop, ranges of turning, scaling and bending.
        seed: with the item's position, of all that is random.
        device: where to work.

    Returns:
        Image (1, 1, D, H, W), and labels, int64 (1, D, H, W).
    """
    rng = np.random.default_rng([seed, 9, item.position])
    theta = _random_affine(rng, item.lobes, settings).to(device)
    grid = functional.affine_grid(theta, [1, 1, *settings.crop_size_zyx], align_corners=False)
    grid += _random_bend(rng, item.lobes, settings).to(device)

    def sampled(part: Tensor, mode: str) -> Tensor:
        whole = part.to(device).float()[None, None]
        return functional.grid_sample(whole, grid, mode=mode, padding_mode="zeros", align_corners=False)[0, 0]

    labels = sampled(item.lobes, "nearest").round().long()
    image = randomise(
        sampled(item.image, "bilinear"),
        labels,
        rng,
        spotted_share=settings.spotted_share,
        consolidated_share=settings.consolidated_share,
    )
    return image[None, None], labels[None]


def _random_affine(rng: np.random.Generator, lobes: Tensor, settings: LobeSettings) -> Tensor:
    """From the crop to the scan, in the coordinates of `torch.nn.functional.affine_grid`; (1, 3, 4)."""
    box = bounding_box(lobes.numpy())
    low, high = (np.array([getattr(part, end) for part in box], dtype=float) for end in ("start", "stop"))
    size, whole = np.array(settings.crop_size_zyx, dtype=float), np.array(lobes.shape, dtype=float)
    reach = 0.6 if rng.random() < CUT_SHARE else 0.1
    centre = (low + high) / 2 + reach * rng.uniform(-1, 1, 3) * (high - low)
    angles = rng.uniform(-1, 1, 3) * settings.rotation_degrees
    scale = np.exp(rng.uniform(*np.log(settings.scale_range)) + rng.uniform(-0.07, 0.07, 3))
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(1 / scale)  # acts on (z, y, x)
    matrix = np.diag(2 / whole) @ turn @ np.diag(size / 2)
    theta = np.concatenate([matrix, (2 * centre / whole - 1)[:, None]], axis=1)
    order = [2, 1, 0]
    return torch.from_numpy(theta[order][:, [*order, 3]].astype(np.float32))[None]


def _random_bend(rng: np.random.Generator, lobes: Tensor, settings: LobeSettings) -> Tensor:
    """Where each voxel of the crop is moved, smoothly, in the coordinates of `affine_grid`; (1, D, H, W, 3)."""
    deviation = rng.uniform(0, settings.bend_mm) / settings.spacing_mm * 2 / np.array(lobes.shape[::-1], dtype=float)
    at_knots = (rng.standard_normal((1, *BEND_KNOTS, 3)) * deviation).astype(np.float32)
    size = list(settings.crop_size_zyx)
    moved = functional.interpolate(
        torch.from_numpy(at_knots).movedim(-1, 1), size=size, mode="trilinear", align_corners=True
    )
    return moved.movedim(1, -1)
