import pytest
import torch

from algorithm.network import UNet3D


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_those_of_the_papers_network():
    assert parameters(UNet3D(out_channels=1)) == 16_317_921
    assert parameters(UNet3D(out_channels=3)) == 16_318_051


@pytest.mark.parametrize(
    "padding, size, expected", [("same", 16, 16), ("same", 24, 24), ("valid", 92, 4), ("valid", 100, 12)]
)
def test_output_size(padding, size, expected):
    with torch.inference_mode():
        output = UNet3D(out_channels=3, width=1, padding=padding).eval()(torch.zeros(1, 1, size, size, size))
    assert output.shape == (1, 3, expected, expected, expected)


@pytest.mark.parametrize("padding, size", [("same", 20), ("valid", 96), ("valid", 84)])
def test_refuses_sizes_that_do_not_divide(padding, size):
    with pytest.raises(ValueError, match=rf"\({size}, {size}, {size}\) voxels with {padding} padding: expected"):
        UNet3D(out_channels=1, width=1, padding=padding)(torch.zeros(1, 1, size, size, size))


def test_features_are_those_before_pooling():
    _, features = UNet3D(out_channels=1, width=2).eval().forward_with_features(torch.zeros(1, 1, 16, 16, 16))
    assert [tuple(f.shape[1:3]) for f in features] == [(4, 16), (8, 8), (16, 4)]


@pytest.mark.parametrize("padding, size", [("same", 16), ("valid", 92)])
def test_mixed_precision_stays_mixed_on_the_way_up(padding, size):
    network, inputs = UNet3D(out_channels=1, width=1, padding=padding).eval(), []
    for block in network.up:
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.zeros(1, 1, size, size, size))
    assert inputs == [torch.bfloat16] * 3


def test_prior_is_what_an_uninformed_network_says():
    network = UNet3D(out_channels=1, width=1)
    network.set_prior([0.1])
    torch.nn.init.zeros_(network.last.weight)
    assert network.eval()(torch.zeros(1, 1, 8, 8, 8)).sigmoid().mean().item() == pytest.approx(0.1)
    three = UNet3D(out_channels=3, width=1)
    three.set_prior([0.7, 0.2, 0.1])
    torch.nn.init.zeros_(three.last.weight)
    probability = three.eval()(torch.zeros(1, 1, 8, 8, 8)).softmax(dim=1)[0, :, 0, 0, 0]
    assert probability.tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_prior_needs_one_probability_per_channel():
    with pytest.raises(ValueError, match="expected 3 probabilities between 0 and 1"):
        UNet3D(out_channels=3, width=1).set_prior([0.5])
