import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional

from training.dram import DramNetwork


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def lobes(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two chunks and their masks: the lower half of the first, all of the second."""
    mask = torch.ones(2, 1, *size)
    mask[0, :, : size[0] // 2] = 0
    return torch.rand(2, 1, *size) * mask, mask


def test_size_of_the_papers_network():
    """Attention: 193 x 8 + 8 to reduce, 8 x 8 for theta and phi, 8 + 8 for g, 8 + 1 for r."""
    with torch.device("meta"):
        plain, attentive = DramNetwork(width=32, attention=False), DramNetwork(width=32, attention=True)
    assert parameters_of(plain) == 16_317_921
    assert parameters_of(attentive.attention) == 1552 + 2 * 64 + 16 + 9
    assert parameters_of(attentive) == 16_319_626


def test_without_attention_the_refined_map_is_the_raw_one():
    drams = DramNetwork(width=1, attention=False)(*lobes(16, 16, 16))
    assert drams.refined is drams.raw
    assert drams.raw.shape == (2, 1, 16, 16, 16)


def test_attention_is_left_out_where_it_is_not_asked_for():
    torch.manual_seed(0)
    network, (image, mask) = DramNetwork(width=1, attention=True).eval(), lobes(16, 16, 16)
    torch.nn.init.normal_(network.attention.r.weight)
    drams = network(image, mask, refined=False)
    assert drams.refined is drams.raw
    assert torch.equal(drams.raw, network(image, mask).raw)


def test_attention_changes_lobe_voxels_only_and_nothing_at_first():
    torch.manual_seed(0)
    network, (image, mask) = DramNetwork(width=1, attention=True), lobes(16, 24, 16)
    before = network(image, mask)
    assert torch.equal(before.refined, before.raw)
    torch.nn.init.normal_(network.attention.r.weight)
    after = network(image, mask)
    assert after.refined.shape == (2, 1, 16, 24, 16)
    assert torch.equal(after.raw, before.raw)
    assert torch.equal(after.refined[mask == 0], after.raw[mask == 0])
    assert (after.refined[mask > 0] != after.raw[mask > 0]).float().mean() > 0.99


@torch.no_grad()
def test_attention_sees_the_image_and_the_first_two_levels():
    """The same as reducing all channels side by side, the second level upsampled first."""
    torch.manual_seed(0)
    network, (image, mask) = DramNetwork(width=1, attention=True).eval(), lobes(16, 16, 16)
    raw, features = network.unet.forward_with_features(image)
    upsampled = functional.interpolate(features[1], scale_factor=2, mode="trilinear", align_corners=False)
    torch.nn.init.normal_(network.attention.r.weight)
    side_by_side = copy.deepcopy(network.attention)
    side_by_side.channels = [7]
    expected = side_by_side([torch.cat([image, features[0], upsampled], dim=1)], raw, mask)
    torch.testing.assert_close(network(image, mask).refined, expected, rtol=1e-4, atol=1e-5)


def test_prior_is_where_both_maps_start():
    network = DramNetwork(width=1, attention=True)
    network.set_prior(0.1)
    torch.nn.init.zeros_(network.unet.last.weight)
    drams = network(*lobes(16, 16, 16))
    assert drams.raw.sigmoid().flatten()[0].item() == pytest.approx(0.1)
    assert drams.refined.sigmoid().flatten()[0].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        network.set_prior(1.0)


def test_size_that_three_poolings_do_not_divide():
    with pytest.raises(ValueError, match="multiples of 8"):
        DramNetwork(width=1, attention=True)(*lobes(16, 16, 20))


def test_refinement_trains_both_parts_and_the_raw_map_one():
    torch.manual_seed(0)
    network, chunks = DramNetwork(width=1, attention=True), lobes(16, 16, 16)
    network(*chunks).raw.square().mean().backward()
    assert all(parameter.grad is None for parameter in network.attention.parameters())
    network.zero_grad()
    drams = network(*chunks)
    (drams.raw.square().mean() + 0.0 * drams.refined.mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad.abs().max() == 0 for parameter in network.attention.parameters())
    network.zero_grad()
    network(*chunks).refined.square().mean().backward()
    assert network.attention.r.weight.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.unet.parameters())


def test_instance_normalisation():
    modules = list(DramNetwork(width=1, attention=True, norm="instance").modules())
    assert sum(isinstance(module, nn.InstanceNorm3d) for module in modules) == 14
    assert not any(isinstance(module, nn.BatchNorm3d) for module in modules)


def test_steps_under_fabric_in_mixed_precision():
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network = DramNetwork(width=2, attention=True).to(memory_format=torch.channels_last_3d)
    model, optimiser = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=0.01))
    image, mask = lobes(24, 16, 16)
    losses = []
    for _ in range(8):
        drams = model(image, mask)
        assert drams.raw.dtype == drams.refined.dtype == torch.float32
        loss = functional.binary_cross_entropy_with_logits(drams.refined, (image > 0.5).float())
        optimiser.zero_grad()
        fabric.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert network.attention.r.weight.abs().sum() > 0
