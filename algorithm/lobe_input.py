"""What the lobe network sees of a scan, in training and in use."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from algorithm.images import Volume
from algorithm.preprocess import covering_grid, resample, window


def lobe_network_input(ct: Volume, *, spacing_mm: float, window_hu: tuple[float, float]) -> Volume:
    """The whole scan, windowed, on an isotropic grid; voxels of half its spacing or less are averaged first.

    Args:
        ct: HU, LPS order (`algorithm.orientation.to_canonical`).
        spacing_mm: of the result.
        window_hu: HU that become 0 and 1.

    Returns:
        float32 in [0, 1], on the grid that covers the scan edge to edge.
    """
    factors = [max(1, math.floor(spacing_mm / own + 1e-6)) for own in ct.geometry.spacing_zyx_mm]
    image, left_over = window(ct.array, window_hu), [-n % f for n, f in zip(ct.array.shape, factors, strict=True)]
    if any(left_over):
        image = np.pad(image, [(0, n) for n in left_over], mode="edge")
    whole = Volume(image, replace(ct.geometry, size_zyx=image.shape))
    averaged = sitk.BinShrink(whole.to_sitk(), factors[::-1])
    return resample(Volume.from_sitk(averaged), covering_grid(ct.geometry, spacing_mm=spacing_mm), "linear")
