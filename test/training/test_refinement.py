import math

import pytest
import torch
from torch import Tensor

from training.refinement import refinement_loss, refinement_target
from training.settings import CrfSettings

THRESHOLD = CrfSettings(iterations=0)


def chunks(*values: list[float]) -> Tensor:
    """(B, 1, 2, 2, 2) of B rows of eight numbers."""
    return torch.tensor(values).reshape(-1, 1, 2, 2, 2)


def test_target_is_lesion_off_the_vessels_and_inside_the_lobe():
    probability = chunks([0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2], [0.9] * 8)
    mask = chunks([1, 1, 1, 0, 1, 1, 1, 0], [1] * 8)
    vessels = chunks([1, 0.3, 0.5, 0, 0, 0, 0, 0], [0] * 8)
    image = torch.zeros_like(mask)
    target = refinement_target(probability, image, mask, vessels, [3, 0], THRESHOLD)
    assert target.dtype == torch.int64
    assert target.flatten(1).tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [0] * 8]
    without = refinement_target(probability, image, mask, None, [3, 1], THRESHOLD)
    assert without.flatten(1).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8]


def test_target_of_healthy_lobes_alone_is_empty():
    ones = torch.ones(2, 1, 4, 4, 4)
    target = refinement_target(ones, ones, ones, None, [0, 0], CrfSettings())
    assert target.shape == (2, 4, 4, 4) and not target.any()


def test_target_passes_the_crf_between_vessels_and_lobe():
    """A thin vessel through a lesion is filled again by the CRF, lesion beyond the lobe is cut off after it."""
    probability = torch.full((1, 1, 12, 12, 12), 0.05)
    probability[..., :8] = 0.9
    vessels = torch.zeros_like(probability)
    vessels[..., 6, 2:6, 4] = 1
    mask = torch.ones_like(probability)
    mask[..., :2] = 0
    image = torch.full_like(probability, 0.2)
    image[..., :8] = 0.5
    target = refinement_target(probability.requires_grad_(), image, mask, vessels, [4], CrfSettings())
    assert not target.requires_grad
    assert not target[..., :2].any() and target[..., 2:8].all() and not target[..., 8:].any()


@pytest.mark.parametrize(
    "logit, label, beta, expected",
    [
        (0.0, 1, 0.8, math.log(2)),
        (math.log(3), 1, 0.8, math.log(4 / 3)),  # q = 3/4, and the network agrees
        (math.log(3), 0, 0.8, 0.8 * math.log(4) + 0.2 * math.log(4 / 3)),  # z = 1 against t = 0
        (-math.log(3), 1, 0.8, 0.8 * math.log(4) + 0.2 * math.log(4 / 3)),
        (-math.log(3), 0, 0.8, math.log(4 / 3)),
        (math.log(3), 0, 1.0, math.log(4)),
        (math.log(3), 0, 0.0, math.log(4 / 3)),
        (200.0, 0, 0.8, 160.0),
        (-200.0, 1, 0.8, 160.0),
        (200.0, 1, 0.8, 0.0),
    ],
)
def test_loss_by_hand(logit, label, beta, expected):
    target = torch.tensor(label).reshape(1, 1, 1, 1)
    loss = refinement_loss(torch.tensor(logit).reshape(1, 1, 1, 1, 1), target, torch.ones(1, 1, 1, 1, 1), beta)
    assert loss.tolist() == pytest.approx([expected])


def test_loss_is_the_mean_over_each_lobe():
    """q is 3/4 throughout: log 4/3 where the target is lesion, 4/5 log 4 + 1/5 log 4/3 where it is not."""
    logits = torch.full((2, 1, 2, 2, 2), math.log(3))
    target = chunks([1, 1, 1, 0, 0, 0, 0, 0], [0] * 8)[:, 0].long()
    mask = chunks([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1])
    agree, differ = math.log(4 / 3), 0.8 * math.log(4) + 0.2 * math.log(4 / 3)
    loss = refinement_loss(logits, target, mask, beta=0.8)
    assert loss.tolist() == pytest.approx([(3 * agree + differ) / 4, differ])
    spoilt = torch.where(mask > 0, logits, -50.0)
    assert torch.equal(refinement_loss(spoilt, target, mask, beta=0.8), loss)


def test_loss_gradient_takes_the_networks_decision_as_a_constant():
    """d/dlogit is q - s: 3/4 - 1/5 on a lesion that the target denies."""
    logits = torch.full((1, 1, 1, 1, 1), math.log(3)).requires_grad_()
    refinement_loss(logits, torch.zeros(1, 1, 1, 1).long(), torch.ones(1, 1, 1, 1, 1), beta=0.8).sum().backward()
    assert logits.grad.item() == pytest.approx(0.55)


def test_loss_gradient_is_right():
    generator = torch.Generator().manual_seed(0)
    logits = torch.linspace(-4, 4.5, 16, dtype=torch.float64).reshape(2, 1, 2, 2, 2).requires_grad_()
    target = torch.randint(0, 2, (2, 2, 2, 2), generator=generator)
    mask = chunks([1, 1, 1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1, 1, 1]).double()
    assert torch.autograd.gradcheck(lambda x: refinement_loss(x, target, mask, beta=0.8), (logits,))


def test_loss_of_half_precision_logits_is_float32():
    logits = torch.full((1, 1, 2, 2, 2), 1.5, dtype=torch.bfloat16)
    target, mask = torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.ones(1, 1, 2, 2, 2)
    assert torch.equal(refinement_loss(logits, target, mask, 0.8), refinement_loss(logits.float(), target, mask, 0.8))
