import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from algorithm.errors import InputError
from training.crf import _mean_field, dense_crf
from training.settings import CrfSettings


def noise(rng: np.random.Generator, size: int, sigma: float) -> NDArray[np.float64]:
    """Correlated Gaussian noise of unit variance."""
    field = gaussian_filter(rng.standard_normal((size,) * 3), sigma, mode="wrap")
    return field / field.std()


def phantom(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blurred and noisy probability of bright blobs, and textured image; (1, 1, n, n, n) each."""
    rng = np.random.default_rng(seed)
    field = noise(rng, size, size / 8)
    blobs = field > np.quantile(field, 0.7)
    texture = 0.06 * noise(rng, size, 2) + 0.03 * noise(rng, size, 0.7)
    image = 0.25 + 0.25 * blobs + 0.1 * (noise(rng, size, size / 16) > 1.5) + texture
    log_odds = 8 * gaussian_filter(blobs.astype(float), size / 24) - 4 + noise(rng, size, 2) + noise(rng, size, 1)
    arrays = 1 / (1 + np.exp(-log_odds)), image.clip(0, 1)
    return tuple(torch.from_numpy(array).float()[None, None] for array in arrays)


def exact(probability: Tensor, image: Tensor, settings: CrfSettings, mask: Tensor | None = None) -> NDArray[np.float64]:
    """Mean field of two labels with the full matrix of each kernel, as in the model's definition."""
    shape = probability.shape[2:]
    inside = np.ones(shape, dtype=bool).ravel() if mask is None else mask.numpy().ravel() > 0
    lesion = probability.numpy().ravel().astype(float)[inside]
    places = np.stack([axis.ravel() for axis in np.indices(shape)], axis=1).astype(float)[inside]
    grey = 255 * image.numpy().reshape(-1, 1).astype(float)[inside]

    def kernel(*features: NDArray[np.float64]) -> NDArray[np.float64]:
        squares = sum((f[:, None] - f[None]) ** 2 for feature in features for f in feature.T)
        k = np.exp(-squares / 2)
        scale = 1 / np.sqrt(k.sum(axis=1))
        return scale[:, None] * k * scale

    energies = -np.log(np.stack([1 - lesion, lesion]).clip(1e-4, 1))
    weighted = settings.smoothness_weight * kernel(places / settings.smoothness_sigma)
    weighted += settings.appearance_weight * kernel(
        places / settings.appearance_sigma, grey / settings.appearance_sigma_grey
    )
    q = np.exp(-energies) / np.exp(-energies).sum(axis=0)
    for _ in range(settings.iterations):
        other_label = q[::-1]
        total = energies + other_label @ weighted
        q = np.exp(-total) / np.exp(-total).sum(axis=0)
    result = np.zeros(inside.size)
    result[inside] = q[1]
    return result.reshape(shape)


def lobe(size: int) -> Tensor:
    """An ellipsoid, (1, 1, n, n, n)."""
    z, y, x = torch.meshgrid(*3 * [torch.linspace(-1, 1, size)], indexing="ij")
    return (z**2 + 1.5 * y**2 + 2 * x**2 < 0.8).float()[None, None]


def crf(probability: Tensor, image: Tensor, settings: CrfSettings) -> Tensor:
    """All voxels lie in the lobe."""
    return dense_crf(probability, image, torch.ones_like(probability), settings)


def overlap(first: Tensor, second: Tensor) -> float:
    a, b = first > 0.5, second > 0.5
    return ((a & b).sum() / (a | b).sum()).item()


@pytest.mark.parametrize(
    "changes, size",
    [
        ({}, 14),
        ({"appearance_sigma": 5.0, "appearance_sigma_grey": 20.0}, 15),
        ({"appearance_sigma": 9.0, "appearance_sigma_grey": 7.3, "smoothness_sigma": 1.0, "iterations": 2}, 15),
        ({"appearance_weight": 0.0}, 12),
        ({"smoothness_weight": 0.0, "appearance_weight": 3.0}, 12),
    ],
)
def test_it_is_mean_field_with_every_pair_of_voxels(changes, size):
    settings = CrfSettings(**changes)
    probability, image = phantom(size, seed=2)
    expected = torch.from_numpy(exact(probability, image, settings))
    result = crf(probability, image, settings)[0, 0]
    assert overlap(probability[0, 0], expected) < 0.95  # so there was something to do
    assert overlap(result, expected) >= 0.99
    assert (result - expected).abs().mean() < 1e-3


def test_without_an_appearance_kernel_it_is_exact():
    settings = CrfSettings(appearance_weight=0)
    probability, image = phantom(12, seed=3)
    result = crf(probability, image, settings)[0, 0]
    np.testing.assert_allclose(result.numpy(), exact(probability, image, settings), atol=1e-4)


def test_the_kernels_differ_in_each_axis_of_the_chunk():
    """Axes of different lengths keep their order, and a chunk need not be a multiple of a cell."""
    settings = CrfSettings()
    whole, grey = phantom(20, seed=5)
    probability, image = whole[..., :11, :14, :], grey[..., :11, :14, :]
    result = crf(probability, image, settings)[0, 0]
    assert overlap(result, torch.from_numpy(exact(probability, image, settings))) >= 0.99
    turned = crf(probability.permute(0, 1, 4, 2, 3), image.permute(0, 1, 4, 2, 3), settings)
    torch.testing.assert_close(turned[0, 0].permute(1, 2, 0), result, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [5, 6])
def test_both_engines_agree(seed):
    pytest.importorskip("pydensecrf")
    probability, image = phantom(48, seed)
    result = crf(probability, image, CrfSettings())
    reference = crf(probability, image, CrfSettings(engine="pydensecrf2"))
    assert reference.dtype == torch.float32 and reference.shape == probability.shape
    assert overlap(probability, reference) < 0.9
    assert overlap(result, reference) >= 0.99


@pytest.mark.parametrize("engine", ["torch", "pydensecrf2"])
def test_chunks_of_a_batch_do_not_meet(engine):
    if engine == "pydensecrf2":
        pytest.importorskip("pydensecrf")
    settings = CrfSettings(engine=engine)
    (first, first_image), (second, second_image) = phantom(16, seed=7), phantom(16, seed=8)
    batch = crf(torch.cat([first, second]), torch.cat([first_image, second_image]), settings)
    alone = torch.cat([crf(first, first_image, settings), crf(second, second_image, settings)])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)


def test_chunks_that_are_worked_on_together_do_not_meet():
    """As on a GPU."""
    settings = CrfSettings()
    chunks = [phantom(16, seed=7), phantom(16, seed=8)]
    probability, image = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    together = _mean_field(probability[:, 0], 255 * image[:, 0], torch.ones_like(image[:, 0]), settings)[:, None]
    torch.testing.assert_close(together, crf(probability, image, settings), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    probability, image = phantom(48, seed=5)
    result = crf(probability.cuda(), image.cuda(), CrfSettings())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), crf(probability, image, CrfSettings()), atol=1e-3, rtol=0)


@pytest.mark.parametrize("engine", ["torch", "pydensecrf2"])
def test_no_iterations_leave_the_probability(engine):
    if engine == "pydensecrf2":
        pytest.importorskip("pydensecrf")
    probability = torch.tensor([0.0, 1e-6, 0.3, 0.4999, 0.5001, 0.7, 1.0, 0.25]).reshape(1, 1, 2, 2, 2)
    result = crf(probability, torch.rand(probability.shape), CrfSettings(engine=engine, iterations=0))
    torch.testing.assert_close(result, probability.clamp(1e-4, 1 - 1e-4), atol=1e-6, rtol=0)
    assert torch.equal(result > 0.5, probability > 0.5)


def test_a_constant_image_and_probability_stay_constant_in_sign():
    image = torch.full((1, 1, 8, 8, 8), 1.0)  # the highest grey level there is
    assert (crf(torch.full_like(image, 0.4), image, CrfSettings()) < 0.01).all()
    assert (crf(torch.full_like(image, 0.6), image, CrfSettings(appearance_sigma_grey=0.7)) > 0.99).all()


def test_a_speck_goes_and_a_hole_closes():
    probability = torch.full((1, 1, 16, 16, 16), 0.1)
    probability[..., :8] = 0.9
    probability[0, 0, 8, 8, 4], probability[0, 0, 8, 8, 12] = 0.2, 0.8
    image = torch.full_like(probability, 0.2)
    image[..., :8] = 0.6
    lesion = crf(probability, image, CrfSettings()) > 0.5
    assert lesion[..., :8].all() and not lesion[..., 8:].any()


def test_it_keeps_no_gradient_and_half_precision_changes_little():
    probability, image = phantom(16, seed=9)
    result = crf(probability.clone().requires_grad_(), image, CrfSettings())
    assert not result.requires_grad and result.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crf(probability, image, CrfSettings()), result)
    half = crf(probability.bfloat16(), image.to(memory_format=torch.channels_last_3d).bfloat16(), CrfSettings())
    assert half.dtype == torch.float32
    assert overlap(half, result) > 0.97


@pytest.mark.parametrize("engine", ["torch", "pydensecrf2"])
def test_the_same_input_gives_the_same_bits_and_is_left_alone(engine):
    if engine == "pydensecrf2":
        pytest.importorskip("pydensecrf")
    probability, image = phantom(24, seed=10)
    before = probability.clone(), image.clone()
    settings = CrfSettings(engine=engine)
    assert torch.equal(crf(probability, image, settings), crf(probability, image, settings))
    assert torch.equal(probability, before[0]) and torch.equal(image, before[1])


def test_bad_input_is_refused():
    chunk = torch.full((1, 1, 4, 4, 4), 0.5)
    with pytest.raises(
        InputError, match=r"shapes \(1, 1, 4, 4, 4\), \(1, 1, 4, 4, 5\) and \(1, 1, 4, 4, 4\), expected the same"
    ):
        crf(chunk, torch.zeros(1, 1, 4, 4, 5), CrfSettings())
    for wrong in (chunk[0], chunk[:0], chunk.expand(1, 2, 4, 4, 4)):
        with pytest.raises(InputError, match=r"expected the same \(B, 1, D, H, W\)"):
            crf(wrong, wrong, CrfSettings())
    with pytest.raises(InputError, match="image from 0 to 255, expected 0 to 1"):
        crf(chunk, torch.linspace(0, 255, 64).view_as(chunk), CrfSettings())
    spoilt = chunk.clone()
    spoilt[0, 0, 1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="probability from nan to nan"):
        crf(spoilt, chunk, CrfSettings())


def test_a_missing_package_names_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    chunk = torch.full((1, 1, 4, 4, 4), 0.5)
    with pytest.raises(InputError, match="pip install pydensecrf2"):
        crf(chunk, chunk, CrfSettings(engine="pydensecrf2"))


@pytest.mark.parametrize("engine", ["torch", "pydensecrf2"])
def test_only_the_lobe_has_a_say(engine):
    """What surrounds a lobe changes nothing; a box of it alone gives what the box within the chunk gives."""
    if engine == "pydensecrf2":
        pytest.importorskip("pydensecrf")
    settings = CrfSettings(engine=engine, appearance_sigma=5.0)
    probability, image = phantom(24, seed=3)
    mask = torch.zeros_like(image)
    mask[..., 4:20, 4:20, 4:20] = 1
    inside = dense_crf(probability, image, mask, settings)
    wild = torch.where(mask > 0, probability, 0.999), torch.where(mask > 0, image, 0.5)
    torch.testing.assert_close(dense_crf(*wild, mask, settings), inside, atol=1e-6, rtol=0)
    assert (inside[mask == 0] == 0).all()
    box = (..., slice(4, 20), slice(4, 20), slice(4, 20))
    alone = crf(probability[box], image[box], settings)
    assert overlap(inside[box], alone) >= 0.99


def test_it_is_mean_field_with_every_pair_of_voxels_of_a_lobe():
    probability, image = phantom(18, seed=2)
    mask = lobe(18)
    expected = torch.from_numpy(exact(probability, image, CrfSettings(), mask))
    result = dense_crf(probability, image * mask, mask, CrfSettings())[0, 0]
    assert 0.05 < (result > 0.5).sum() / mask.sum() < 0.95
    assert overlap(result, expected) >= 0.99
    everywhere = crf(probability, image * mask, CrfSettings()) * mask
    assert overlap(everywhere[0, 0], expected) < 0.97  # what the surroundings would do


def test_engines_agree_inside_a_lobe():
    pytest.importorskip("pydensecrf")
    probability, image = phantom(48, seed=5)
    mask = lobe(48)
    results = [
        dense_crf(probability, image * mask, mask, CrfSettings(engine=engine)) for engine in ("torch", "pydensecrf2")
    ]
    assert overlap(*results) >= 0.99


@pytest.mark.parametrize("engine", ["torch", "pydensecrf2"])
def test_an_empty_lobe_has_no_lesion(engine):
    if engine == "pydensecrf2":
        pytest.importorskip("pydensecrf")
    probability, image = phantom(16, seed=5)
    result = dense_crf(probability, image, torch.zeros_like(image), CrfSettings(engine=engine))
    assert (result == 0).all()
