"""Equivariant regularisation: a scaled and rotated chunk should get a scaled and rotated dRAM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from algorithm.errors import InputError
from algorithm.network import PERIOD

SMALLEST_SIZE = 2 * PERIOD  # voxels per side that leave instance normalisation something to average at the bottom
PLANES = ((-3, -2), (-3, -1), (-2, -1))


@dataclass(frozen=True)
class Transform:
    """A rotation by quarter turns, a resize, and a rotation by any angle, in this order.

    Attributes:
        size: of the result, voxels (z, y, x).
        quarter_turns: number of rotations by 90 degrees.
        plane: the two tensor axes that they turn, from the first towards the second.
        rotation_degrees: axis (z, y, x) of the free rotation about the chunk's centre, as long as its angle. It
            turns the voxel grid of the result; about z, a positive angle turns from y towards x.
    """

    size: tuple[int, int, int]
    quarter_turns: int = 0
    plane: tuple[int, int] = (-2, -1)
    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, chunk: Tensor, *, nearest: bool) -> Tensor:
        """Transform chunks.

        Args:
            chunk: floating point, (B, C, D, H, W).
            nearest: take the nearest voxel, for masks; else interpolate linearly.

        Returns:
            (B, C, *size), zero where the free rotation reaches beyond the chunk. Transformed ones are 1 exactly where
            there is a value.
        """
        turned = torch.rot90(chunk, self.quarter_turns, self.plane)
        if any(self.rotation_degrees):
            return self._rotate(turned, "nearest" if nearest else "bilinear")
        if nearest:
            return functional.interpolate(turned, size=self.size, mode="nearest-exact")
        return functional.interpolate(turned, size=self.size, mode="trilinear", align_corners=False)

    def _rotate(self, chunk: Tensor, mode: str) -> Tensor:
        """Resize and rotate in one interpolation."""
        rotation = Rotation.from_rotvec(self.rotation_degrees, degrees=True).as_matrix().T  # from result to chunk
        half = np.array(self.size) / 2  # affine_grid's unit, voxels
        theta = np.zeros((3, 4))
        theta[:, :3] = (rotation * half / half[:, None])[::-1, ::-1]  # in affine_grid's order, x first
        batch = len(chunk)
        grid = functional.affine_grid(
            torch.from_numpy(theta).to(chunk).expand(batch, 3, 4), [batch, 1, *self.size], align_corners=False
        )
        within = (grid.abs() <= 1).all(dim=-1)[:, None]  # (B, 1, D, H, W)
        return functional.grid_sample(chunk, grid, mode=mode, padding_mode="border", align_corners=False) * within


def random_transform(
    rng: np.random.Generator, *, size: int, scale_range: tuple[float, float], free_angle_degrees: float
) -> Transform:
    """Draw a transform: a size for each axis, 0 to 3 quarter turns in some plane, and a free rotation.

    Args:
        rng: where everything random comes from.
        size: voxels per side of the chunks that will be transformed.
        scale_range: smallest and largest ratio of new to old size; sizes are multiples of 8 from 16 on.
        free_angle_degrees: largest angle of the free rotation, about an axis in any direction; 0 for none.

    Raises:
        InputError: no size is within the range.
    """
    low, high = scale_range
    sizes = [n for n in range(SMALLEST_SIZE, int(high * size) + PERIOD, PERIOD) if low <= n / size <= high]
    if not sizes:
        raise InputError(
            f"scale_range: got {low} to {high} for chunks of {size} voxels; expected a multiple of {PERIOD} from "
            f"{SMALLEST_SIZE} on between {low * size:g} and {high * size:g}; widen the range or enlarge the chunks"
        )
    depth, height, width = rng.choice(sizes, size=3).tolist()
    direction = rng.normal(size=3)
    angle = rng.uniform(-free_angle_degrees, free_angle_degrees)
    z, y, x = (angle * direction / np.linalg.norm(direction)).tolist()
    return Transform(
        size=(depth, height, width),
        quarter_turns=int(rng.integers(4)),
        plane=PLANES[rng.integers(len(PLANES))],
        rotation_degrees=(z, y, x),
    )


def equivariance_loss(dram_of_transformed: Tensor, transformed_dram: Tensor, transformed_mask: Tensor) -> Tensor:
    """Mean absolute difference of two dRAMs over the transformed lobe, |F(A(I)) - A(F(I))|.

    Args:
        dram_of_transformed: F(A(I)), probability, (B, 1, D, H, W).
        transformed_dram: A(F(I)), probability, the same shape.
        transformed_mask: the same shape, 1 inside the transformed lobe; 0 also where the transform left no value.

    Returns:
        (B,); 0 for a lobe that has no voxel left.

    Source: dRAM paper, Eq. 2, as a mean, which does not grow with the chunk.
    """
    axes = (1, 2, 3, 4)
    difference = (dram_of_transformed - transformed_dram).abs()
    return (difference * transformed_mask).sum(dim=axes) / transformed_mask.sum(dim=axes).clamp(min=1)
