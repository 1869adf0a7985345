"""Reference vessels of a healthy scan: Frangi's filter for bright tubes, and Otsu's threshold on what it finds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.otsu import otsu_threshold

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def reference_vessels(
    image: NDArray[np.floating[Any]],
    lungs: Mask,
    within: Mask,
    *,
    spacing_mm: float,
    sigmas_mm: Sequence[float],
    alpha: float,
    beta: float,
) -> NDArray[np.uint8]:
    """Vessels of a scan without lesions.

    What lies outside the lungs, and the lungs' outermost voxels, which are mixed with it, become the lungs' median, so
    that the border makes no ridge of its own. Otsu's threshold is taken over all voxels where vessels may be, the
    many with a vesselness of exactly zero included: without them it lies higher, and misses more thin vessels.

    Args:
        image: windowed intensity (z, y, x), zero outside the lungs.
        lungs: bool, the same shape.
        within: bool, the same shape, where vessels may be: the lungs, shrunken.
        spacing_mm: isotropic.
        sigmas_mm: scales of the vesselness filter.
        alpha: Frangi's constant against plates.
        beta: Frangi's constant against blobs.

    Returns:
        uint8, 1 on vessels; all 0 if nothing looks like a bright tube.
    """
    reference = np.zeros(image.shape, dtype=np.uint8)
    unmixed = ndimage.binary_erosion(lungs)
    if not (within & unmixed).any():
        return reference
    filled = np.where(unmixed, image, np.median(image[unmixed])).astype(np.float32)
    likeness = vesselness(filled, within, spacing_mm=spacing_mm, sigmas_mm=sigmas_mm, alpha=alpha, beta=beta)
    if likeness.any():
        reference[likeness > otsu_threshold(likeness[within])] = 1
    return reference


def vesselness(
    image: NDArray[np.floating[Any]],
    where: Mask,
    *,
    spacing_mm: float,
    sigmas_mm: Sequence[float],
    alpha: float,
    beta: float,
) -> NDArray[np.float32]:
    """How much the surroundings of each voxel look like a bright tube, the most over all scales.

    With the Hessian's eigenvalues ordered by size, |l1| <= |l2| <= |l3|, and S the root of the sum of their squares, a
    scale gives (1 - exp(-(l2/l3)^2 / 2 alpha^2)) exp(-l1^2 / |l2 l3| / 2 beta^2) (1 - exp(-S^2 / 2 c^2)), and zero
    unless l2 and l3 are negative. c is half the greatest S of that scale, so that factors common to a scale cancel.

    Args:
        image: (z, y, x).
        where: bool, the same shape; other voxels are not computed.
        spacing_mm: isotropic.
        sigmas_mm: standard deviations of the Gaussians.
        alpha: constant against plates.
        beta: constant against blobs.

    Returns:
        float32 in [0, 1), zero where not computed.

    Source: Frangi et al. (1998), Multiscale vessel enhancement filtering, Eq. 13 and 15, for bright vessels.
    """
    greatest = np.zeros(int(where.sum()), dtype=np.float32)
    for sigma_mm in sigmas_mm:
        low, middle, high = eigenvalues(hessian(image, where, sigma_voxels=sigma_mm / spacing_mm))
        is_tube = (middle < 0) & (np.abs(high) <= -middle)  # then high is l1, and l2 and l3 are negative
        l1, l2, l3 = high[is_tube], middle[is_tube], low[is_tube]
        squared_norm = low**2 + middle**2 + high**2
        c = np.sqrt(squared_norm.max(initial=0)) / 2
        no_plate = -np.expm1(-((l2 / l3) ** 2) / (2 * alpha**2))
        no_blob = np.exp(-(l1**2) / (l2 * l3) / (2 * beta**2))
        no_noise = -np.expm1(-squared_norm[is_tube] / (2 * c**2))
        greatest[is_tube] = np.maximum(greatest[is_tube], no_plate * no_blob * no_noise)
    result = np.zeros(image.shape, dtype=np.float32)
    result[where] = greatest
    return result


def hessian(image: NDArray[np.floating[Any]], where: Mask, *, sigma_voxels: float) -> dict[tuple[int, int], FloatArray]:
    """Second derivatives of an image blurred by a Gaussian, by central differences.

    At scales of a voxel or less these are truer than sampled derivatives of a Gaussian.

    Args:
        image: (z, y, x).
        where: bool, the same shape.
        sigma_voxels: standard deviation of the Gaussian.

    Returns:
        By pair of axes (a, b), a <= b: the derivative per squared voxel at each of the chosen voxels, in their order.
    """
    blurred = np.pad(ndimage.gaussian_filter(image.astype(np.float32), sigma_voxels), 1, mode="edge")
    values, at = blurred.ravel(), np.flatnonzero(np.pad(where, 1))
    step = [stride // blurred.itemsize for stride in blurred.strides]
    middle = values[at].astype(np.float64)
    derivatives = {(a, a): values[at + step[a]] - 2 * middle + values[at - step[a]] for a in range(3)}
    for a, b in itertools.combinations(range(3), 2):
        along, across = step[a] + step[b], step[a] - step[b]
        ends = values[at + along].astype(np.float64) + values[at - along] - values[at + across] - values[at - across]
        derivatives[a, b] = ends / 4
    return derivatives


def eigenvalues(matrix: dict[tuple[int, int], FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Eigenvalues of symmetric 3 x 3 matrices in rising order, by the trigonometric solution of the cubic.

    Args:
        matrix: entries (a, b), a <= b, of all matrices.
    """
    mean = (matrix[0, 0] + matrix[1, 1] + matrix[2, 2]) / 3
    a, b, c = (matrix[k, k] - mean for k in range(3))
    d, e, f = matrix[0, 1], matrix[0, 2], matrix[1, 2]
    radius = np.sqrt((a**2 + b**2 + c**2 + 2 * (d**2 + e**2 + f**2)) / 6)
    determinant = a * (b * c - f**2) - d * (d * c - e * f) + e * (d * f - b * e)
    cosine = np.divide(determinant, 2 * radius**3, out=np.ones_like(mean), where=radius > 0)
    angle = np.arccos(np.clip(cosine, -1, 1)) / 3
    high = mean + 2 * radius * np.cos(angle)
    low = mean + 2 * radius * np.cos(angle + 2 * np.pi / 3)
    return low, 3 * mean - low - high, high


def eroded(mask: Mask, *, spacing_mm: float, erosion_mm: float) -> Mask:
    """The voxels of a mask that are farther than ``erosion_mm`` from the nearest voxel outside it, bool (z, y, x)."""
    inner: Mask = distance_to_outside_mm(mask, spacing_mm=spacing_mm) > erosion_mm
    return inner


def distance_to_outside_mm(mask: Mask, *, spacing_mm: float) -> FloatArray:
    """Distance of each voxel of a mask to the nearest voxel outside it; what surrounds the array lies outside.

    Args:
        mask: bool (z, y, x).
        spacing_mm: isotropic.

    Returns:
        float64, the same shape, zero outside the mask.
    """
    distance: FloatArray = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    return distance[1:-1, 1:-1, 1:-1]


def without_thick(vessels: Mask, *, spacing_mm: float, thickest_mm: float) -> Mask:
    """A vessel mask without its thick parts: those into which a ball fits.

    Args:
        vessels: bool (z, y, x).
        spacing_mm: isotropic.
        thickest_mm: diameter of the ball.
    """
    radius_mm = thickest_mm / 2
    centres = distance_to_outside_mm(vessels, spacing_mm=spacing_mm) > radius_mm
    if not centres.any():
        return vessels
    thin: Mask = vessels & (ndimage.distance_transform_edt(~centres, sampling=spacing_mm) > radius_mm)
    return thin
