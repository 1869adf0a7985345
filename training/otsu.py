"""Otsu's threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray


def otsu_threshold(values: NDArray[Any]) -> float:
    """The value that divides others best into two classes; the upper class lies above it.

    Args:
        values: any number of them, of any shape.

    Returns:
        The threshold; infinity, which nothing exceeds, where no two values differ.
    """
    if values.size == 0 or values.min() == values.max():
        return float("inf")
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(values.astype(np.float32).reshape(1, -1)))
    return float(otsu.GetThreshold())
