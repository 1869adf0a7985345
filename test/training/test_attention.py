from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.attention import NEIGHBOURHOOD, LocalAttention

SIZE = (2, 4, 6)


def features() -> list[Tensor]:
    """Image, a map of the same size and one of half the size."""
    return [torch.rand(2, 1, *SIZE), torch.randn(2, 2, *SIZE), torch.randn(2, 3, *(n // 2 for n in SIZE))]


def randomised() -> LocalAttention:
    attention = LocalAttention((1, 2, 3))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def lobe() -> Tensor:
    """About two thirds of the voxels, scattered."""
    return (torch.rand(2, 1, *SIZE) > 0.35).float()


def in_a_loop(attention: LocalAttention, sources: list[Tensor], logits: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5 voxel by voxel on the concatenated features, upsampled first."""
    size = logits.shape[2:]
    side_by_side = [functional.interpolate(s, size=size, mode="trilinear", align_corners=False) for s in sources]
    x = attention.reduce(torch.cat(side_by_side, dim=1))
    theta, phi = attention.theta.weight.flatten(1), attention.phi.weight.flatten(1)
    w_g, b_g = attention.g.weight.flatten(), attention.g.bias
    w_r, b_r = attention.r.weight.flatten(), attention.r.bias
    refined = logits.clone()
    for b in range(len(logits)):
        for i in [tuple(v.tolist()) for v in mask[b, 0].nonzero()]:
            scores, messages = [], []
            for j in [tuple(v.tolist()) for v in mask[b, 0].nonzero()]:
                steps = [abs(p - q) for p, q in zip(i, j, strict=True)]
                if max(steps) <= 1 and steps != [1, 1, 1]:
                    scores.append((theta @ x[(b, slice(None), *i)]) @ (phi @ x[(b, slice(None), *j)]))
                    messages.append(w_g * logits[(b, 0, *j)] + b_g)
            mean = torch.stack(scores).softmax(dim=0) @ torch.stack(messages)
            refined[(b, 0, *i)] += w_r @ mean + b_r[0]
    return refined


def test_neighbourhood_is_a_cube_without_its_corners():
    assert len(set(NEIGHBOURHOOD)) == 19
    assert (0, 0, 0) in NEIGHBOURHOOD and (-1, 0, 1) in NEIGHBOURHOOD
    assert (1, -1, 1) not in NEIGHBOURHOOD
    assert max(abs(step) for offset in NEIGHBOURHOOD for step in offset) == 1


@torch.no_grad()
def test_agrees_with_a_loop_over_voxels():
    torch.manual_seed(0)
    attention, sources, logits, mask = randomised(), features(), torch.randn(2, 1, *SIZE), lobe()
    expected = in_a_loop(attention, sources, logits, mask)
    assert (expected - logits).abs().max() > 1
    torch.testing.assert_close(attention(sources, logits, mask), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_changes_nothing_at_first():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, *SIZE)
    assert torch.equal(LocalAttention((1, 2, 3))(features(), logits, lobe()), logits)


@torch.no_grad()
def test_a_flat_map_is_moved_as_one():
    """The mean of equal logits does not depend on the weights, at the border of grid and lobe neither."""
    torch.manual_seed(0)
    attention, logits, mask = randomised(), torch.full((2, 1, *SIZE), 0.5), lobe()
    change = (attention(features(), logits, mask) - logits)[mask > 0]
    gain = (attention.r.weight.flatten() @ attention.g.weight.flatten()).item()
    offset = (attention.r.weight.flatten() @ attention.g.bias + attention.r.bias[0]).item()
    assert change.tolist() == pytest.approx([0.5 * gain + offset] * len(change), rel=1e-4)


@torch.no_grad()
def test_voxels_outside_the_lobe_have_no_influence():
    torch.manual_seed(0)
    attention, (image, fine, coarse), logits, mask = randomised(), features(), torch.randn(2, 1, *SIZE), lobe()
    inside = mask > 0
    before = attention([image, fine, coarse], logits, mask)
    other_logits, other_fine = torch.where(inside, logits, 50.0), torch.where(inside, fine, -3.0)
    after = attention([image, other_fine, coarse], other_logits, mask)
    assert torch.equal(after[inside], before[inside])
    assert torch.equal(after[~inside], other_logits[~inside])
    everywhere = torch.ones_like(mask)
    assert not torch.equal(
        attention([image, other_fine, coarse], other_logits, everywhere)[inside],
        attention([image, fine, coarse], logits, everywhere)[inside],
    )


@torch.no_grad()
def test_the_edge_of_the_grid_is_like_the_edge_of_the_lobe():
    torch.manual_seed(0)
    attention, sources, logits = randomised(), features()[:2], torch.randn(2, 1, *SIZE)
    attention.channels = [1, 2]
    attention.reduce.weight.data = attention.reduce.weight[:, :3]
    inner = attention(sources, logits, torch.ones_like(logits))
    around = [functional.pad(source, (1,) * 6, value=2.0) for source in sources]
    mask = functional.pad(torch.ones_like(logits), (1,) * 6)
    outer = attention(around, functional.pad(logits, (1,) * 6, value=9.0), mask)
    torch.testing.assert_close(outer[:, :, 1:-1, 1:-1, 1:-1], inner, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_lone_voxel_attends_to_itself():
    torch.manual_seed(0)
    attention, logits, mask = randomised(), torch.randn(2, 1, *SIZE), torch.zeros(2, 1, *SIZE)
    mask[:, :, 1, 2, 3] = 1
    refined = attention(features(), logits, mask)
    own = logits + attention.r(attention.g(logits))
    assert refined[:, :, 1, 2, 3].tolist() == pytest.approx(own[:, :, 1, 2, 3].numpy(), rel=1e-5)
    assert torch.equal(refined[mask == 0], logits[mask == 0])


def test_gradient_reaches_the_logits_and_all_weights_but_no_feature():
    torch.manual_seed(0)
    attention, sources = randomised(), [source.requires_grad_() for source in features()]
    logits = torch.randn(2, 1, *SIZE, requires_grad=True)
    mask = lobe()
    (attention(sources, logits, mask) * torch.randn(2, 1, *SIZE)).sum().backward()
    assert all(source.grad is None for source in sources)
    assert torch.isfinite(logits.grad).all() and (logits.grad[mask > 0] != 0).all()
    for name, parameter in attention.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_are_those_of_the_loop():
    torch.manual_seed(0)
    attention, sources, mask, seed = randomised(), features(), lobe(), torch.randn(2, 1, *SIZE)
    logits = torch.randn(2, 1, *SIZE)
    gradients = []
    for refine in (attention, partial(in_a_loop, attention)):
        attention.zero_grad()
        leaf = logits.clone().requires_grad_()
        (refine(sources, leaf, mask) * seed).sum().backward()
        gradients.append({"logits": leaf.grad} | {name: p.grad.clone() for name, p in attention.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_mixed_precision_on_channels_last():
    torch.manual_seed(0)
    attention, sources, mask = LocalAttention((1, 2, 3)), features(), lobe()
    torch.nn.init.normal_(attention.r.weight)
    logits = torch.randn(2, 1, *SIZE, requires_grad=True)
    full = attention(sources, logits, mask)
    attention = attention.to(memory_format=torch.channels_last_3d)
    sources = [source.contiguous(memory_format=torch.channels_last_3d) for source in sources]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attention(sources, logits.bfloat16(), mask)
    mixed.sum().backward()
    assert mixed.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(mixed, full, rtol=0.02, atol=0.05)
