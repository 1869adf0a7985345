"""How a dRAM network is judged while it is trained."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from training.dram import Drams
from training.lobe_batches import LobeBatch
from training.logbook import Logbook
from training.loop import BEST, Terms, Validation, train
from training.settings import LoopSettings, Ramp, RegressSettings
from training.validation import dram_validation, draw_chunks, measure_scores

THRESHOLD = RegressSettings.model_validate({"crf": {"iterations": 0}})


class Given(torch.nn.Module):
    """Takes the intensity for the refined logit, and its opposite for the raw one."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Drams:
        return Drams(-image, image)


def lobe_of(fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A lobe of 60 voxels whose refined dRAM is this fraction everywhere, and its mask; what lies outside differs."""
    image, mask = torch.full((1, 1, 8, 8, 8), 9.0), torch.zeros(1, 1, 8, 8, 8)
    image[..., 1:4, 2:6, 0:5] = math.log(fraction / (1 - fraction))
    mask[..., 1:4, 2:6, 0:5] = 1
    return image, mask


def batch_of(scores: list[int], fractions: list[float]) -> LobeBatch:
    image, mask = (torch.cat(parts) for parts in zip(*map(lobe_of, fractions), strict=True))
    return LobeBatch(image=image, plain=image, mask=mask, vessels=None, scores=scores)


def test_scores_of_the_refined_dram_by_hand():
    """References 0, 0, 3, 5 and predictions 0, 1, 3, 4.

    They are 2 / 4 of a score apart, and by chance 34 / 16: kappa is 1 - 8 / 34. The losses are f^2 for score 0, and
    0.15 (0.15 + 0.25) for the one that is 0.15 below its interval.
    """
    batches = [batch_of([0, 0], [0.005, 0.03]), batch_of([3, 5], [0.4, 0.6])]
    values = measure_scores(Given(), [0, 0, 3, 5], batches)
    assert values.keys() == {"kappa", "interval"}
    assert values["kappa"] == pytest.approx(13 / 17)
    assert values["interval"] == pytest.approx((0.005**2 + 0.03**2 + 0 + 0.06) / 4, rel=1e-4)


def test_undefined_kappa_is_the_worst():
    values = measure_scores(Given(), [0, 0], [batch_of([0, 0], [0.001, 0.002])])
    assert values["kappa"] == -1


class Halves(torch.nn.Module):
    """Lesion in the lower half of every slice, of probability 0.9 in the raw dRAM and 0.6 in the refined one."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Drams:
        sign = torch.ones_like(image)
        sign[..., :8, :] = -1
        return Drams(math.log(9) * sign, math.log(1.5) * sign)


def picture_of(vessels: torch.Tensor | None, scores: list[int]) -> np.ndarray:
    image = torch.full((len(scores), 1, 16, 16, 16), 0.5)
    batch = LobeBatch(image=image, plain=image, mask=torch.ones_like(image), vessels=vessels, scores=scores)
    png = draw_chunks(Halves(), batch, THRESHOLD)
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def target_pixels(picture: np.ndarray) -> int:
    """Pixels of the colour of 1 in viridis, which no probability below 0.99 has; all in the last of four columns."""
    yellow = (np.abs(picture - np.array([0.993, 0.906, 0.144])) < 0.01).all(axis=-1)
    assert not yellow[:, : 3 * yellow.shape[1] // 4].any()
    return int(yellow.sum())


def test_a_picture_shows_the_target_off_the_vessels():
    """Half of a slice is lesion, and half of that is vessel; the target of a lobe of score 0 is empty."""
    vessels = torch.zeros(2, 1, 16, 16, 16)
    vessels[..., :8] = 1
    whole, halved = picture_of(None, [3, 2]), picture_of(vessels, [3, 2])
    assert whole.shape == halved.shape == (430, 800, 3)  # 2 rows of 2 inches and a title of 0.3, 100 dots an inch
    assert target_pixels(whole) > 5000
    assert target_pixels(halved) == pytest.approx(target_pixels(whole) / 2, rel=0.05)
    assert target_pixels(picture_of(None, [3, 0])) == pytest.approx(target_pixels(whole) / 2, rel=0.05)
    assert target_pixels(picture_of(None, [0, 0])) == 0


def test_networks_are_eligible_once_every_term_has_its_full_weight(ready, tmp_path):
    settings = RegressSettings(
        steps=200,
        validate_every=30,
        equivariance=Ramp(start=0.1, full=0.2),
        entropy=Ramp(weight=0.0, start=0.5, full=0.9),  # never used
        refinement=Ramp(start=0.3, full=0.4),
    )
    run = replace(ready, config=ready.config.model_copy(update={"regress": settings}))
    validation = dram_validation(run, settings, tmp_path, torch.device("cpu"))
    assert (validation.first, validation.every) == (80, 30)
    without = settings.model_copy(update={"equivariance": Ramp(weight=0.0), "refinement": Ramp(weight=0.0)})
    assert dram_validation(run, without, tmp_path, torch.device("cpu")).first == 80  # a row of the comparison
    ranks = [validation.rank({"kappa": kappa, "interval": loss}) for kappa, loss in ((0.2, 0.1), (0.2, 0.3), (0.1, 0))]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize(("first", "best"), [(0, 2), (3, 4), (5, 5), (6, 6)])
def test_the_best_is_not_from_before_the_first_eligible_step(tmp_path, first, best):
    """After 1 to 6 steps the networks measure 1, 9, 2, 6, 5, 0."""
    measured = {1: 1.0, 2: 9.0, 3: 2.0, 4: 6.0, 5: 5.0, 6: 0.0}

    def measure(network: torch.nn.Module, step: int, logbook: Logbook) -> dict[str, float]:
        return {"value": measured[step]}

    def terms(model: torch.nn.Module, data: torch.Tensor, step: int) -> Terms:
        return {"square": (1.0, model(data).square().mean())}

    validation = Validation(every=1, first=first, measure=measure, rank=lambda values: (values["value"],))
    steps = torch.ones(6, 2, 1)
    settings = LoopSettings(steps=6, precision="32-true", learning_rate=0.1, schedule="constant")
    fabric = Fabric(accelerator="cpu")
    train(fabric, torch.nn.Linear(1, 1), steps, terms, settings, tmp_path, validation=validation)
    assert torch.load(tmp_path / BEST, weights_only=True)["step"] == best
