import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithm.severity import SCORE_INTERVALS
from training.losses import (
    bootstrapping_loss,
    entropy,
    interval_loss,
    intervals_of,
    lobe_mean,
    reverse_frequency_weights,
)


def loss_at(fraction: float, score: int) -> float:
    lower, upper = intervals_of([score], SCORE_INTERVALS)
    return interval_loss(torch.tensor([fraction], dtype=torch.float64), lower, upper).item()


@given(st.integers(0, 5), st.floats(0, 1))
def test_interval_loss_is_zero_inside_its_band_and_only_there(score, fraction):
    lower, upper = SCORE_INTERVALS[score]
    loss = loss_at(fraction, score)
    if lower <= fraction <= upper:
        assert loss == pytest.approx(0, abs=1e-7)
    else:
        distance = max(lower - fraction, fraction - upper)
        assert loss == pytest.approx(distance * (distance + upper - lower), abs=1e-6)


@pytest.mark.parametrize(
    "score, fraction, expected",
    [(0, 0.02, 0.0004), (1, 0.07, 0.0012), (2, 0.03, 0.0044), (3, 0.52, 0.0054), (4, 0.48, 0.0054), (5, 0.73, 0.0054)],
)
def test_a_miss_of_two_percent(score, fraction, expected):
    assert loss_at(fraction, score) == pytest.approx(expected, abs=1e-7)


def test_interval_loss_pushes_towards_the_band():
    fraction = torch.tensor([0.9, 0.1], requires_grad=True)
    interval_loss(fraction, torch.tensor([0.25, 0.25]), torch.tensor([0.5, 0.5])).sum().backward()
    assert fraction.grad[0] > 0 > fraction.grad[1]


def test_lobe_mean_counts_lobe_voxels_only():
    values, mask = torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2)
    values[:] = 0.9
    mask[0, 0, 0] = 1
    values[0, 0, 0, 0] = 0.1
    mask[1, 0, 0, 0, 0] = 1
    assert lobe_mean(values, mask).tolist() == pytest.approx([0.5, 0.9])


def test_weights_of_the_papers_frequencies():
    counts = {0: 410, 1: 401, 2: 401, 3: 226, 4: 131, 5: 41}
    weights = reverse_frequency_weights(counts)
    assert [round(weights[s], 3) for s in range(6)] == [0.654, 0.669, 0.669, 1.187, 2.048, 6.545]
    assert sum(counts[s] * weights[s] for s in counts) / sum(counts.values()) == pytest.approx(1)
    assert reverse_frequency_weights({0: 3, 1: 0, 2: 1}) == pytest.approx({0: 2 / 3, 2: 2})


def test_entropy_is_highest_at_a_half_and_finite_at_the_ends():
    values = entropy(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert values[2].item() == pytest.approx(math.log(2))
    assert values[1].item() == pytest.approx(values[3].item())
    assert values[[0, 4]].abs().max() < 1e-5


def test_entropy_gradient_is_right():
    p = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy(x * 0.8 + 0.1), (p,))


def test_bootstrapping_by_hand():
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).reshape(1, 3, 1, 1, 1)
    loss = bootstrapping_loss(logits, torch.full((1, 1, 1, 1), 2), torch.ones(1, 1, 1, 1), beta=0.8)
    assert loss.item() == pytest.approx(-0.8 * math.log(0.1) - 0.2 * math.log(0.7))


def test_bootstrapping_with_full_trust_is_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    loss = bootstrapping_loss(logits, labels, torch.ones(2, 4, 4, 4), beta=1.0)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_bootstrapping_ignores_what_is_masked_out():
    torch.manual_seed(0)
    logits, labels, mask = torch.randn(1, 3, 2, 2, 2), torch.randint(0, 3, (1, 2, 2, 2)), torch.zeros(1, 2, 2, 2)
    assert bootstrapping_loss(logits, labels, mask).item() == 0
    mask[0, 0, 0, 0] = 1
    before = bootstrapping_loss(logits, labels, mask).item()
    logits[0, :, 1] += 10 * torch.randn(3, 2, 2)
    assert bootstrapping_loss(logits, labels, mask).item() == before


def test_the_networks_own_decision_carries_no_gradient_of_its_own():
    """d/dlogit of -(1 - beta) log q_z is (1 - beta)(q - z): the argmax z is a constant."""
    logits = torch.tensor([0.3, 1.2, -0.5]).reshape(1, 3, 1, 1, 1).requires_grad_()
    bootstrapping_loss(logits, torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, 1), beta=0.0).backward()
    q = logits.detach().softmax(dim=1).flatten()
    assert logits.grad.flatten().tolist() == pytest.approx((q - torch.tensor([0.0, 1.0, 0.0])).tolist(), abs=1e-6)
