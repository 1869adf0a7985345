import pytest
import torch
from torch.nn import functional

from algorithm.inference_network import Convolution, InferenceNetwork, _upsample, output_size
from algorithm.network import UNet3D


def test_the_trained_network_stays_as_it_is():
    network = UNet3D(out_channels=1, width=1, padding="valid").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    InferenceNetwork(network)
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": "valid", "norm": "instance"}])
def test_refuses_other_networks(options):
    with pytest.raises(ValueError, match="expected valid padding and batch normalisation"):
        InferenceNetwork(UNet3D(out_channels=1, width=1, **options))


def test_an_empty_image_gives_zero_features_and_the_background_logits():
    """Features are relative to what the network makes of endless zeros, which the trained network makes as well."""
    torch.manual_seed(0)
    trained = UNet3D(out_channels=3, width=2, padding="valid")
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.bias)
    trained.eval()
    network = InferenceNetwork(trained).on(torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        skips, x = network.encode(torch.zeros(1, 1, 8, 16, 8))
        features = [*skips, x]
        for level in (2, 1, 0):
            size = [output_size(level, n) for n in (8, 16, 8)]
            x = network.decode(level, x, skips[level], (0, 0, 0), size)
            assert list(x.shape[2:]) == size
            features.append(x)
        logits = network.logits(x)
        expected = trained(torch.zeros(1, 1, 92, 92, 92))
    assert all(feature.abs().max() < 1e-5 for feature in features)
    torch.testing.assert_close(logits.amax((2, 3, 4)), expected.amax((2, 3, 4)))
    assert logits.std((2, 3, 4)).max() < 1e-5


@pytest.mark.parametrize("drop", [1, 2])
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_upsampling_is_that_of_the_trained_network(axis, drop):
    x = torch.randn(1, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    scale = [2.0 if a == axis else 1.0 for a in (2, 3, 4)]
    whole = functional.interpolate(x, scale_factor=scale, mode="trilinear", align_corners=False)
    expected = whole.narrow(axis, drop, whole.shape[axis] - 2 * drop)
    torch.testing.assert_close(_upsample(x, axis, drop), expected)


def test_parts_of_a_level_are_those_of_the_whole():
    torch.manual_seed(1)
    network = InferenceNetwork(UNet3D(out_channels=1, width=1, padding="valid").eval())
    network.on(torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        skips, x = network.encode(torch.rand(1, 1, 24, 16, 32))
        for level in (2, 1, 0):
            size = [output_size(level, n) for n in (24, 16, 32)]
            whole = network.decode(level, x, skips[level], (0, 0, 0), size)
            part = network.decode(level, x, skips[level], (2, 4, 0), (4, 2, 6))
            torch.testing.assert_close(part, whole[:, :, 2:6, 4:6, :6])
            x = whole


def test_cropped_features_are_those_of_the_cropped_image():
    """Far enough inside, leaving out 8 voxels of the image is leaving out 8 of its features."""
    torch.manual_seed(2)
    network = InferenceNetwork(UNet3D(out_channels=1, width=1, padding="valid").eval())
    network.on(torch.device("cpu"), torch.float32)
    image = torch.zeros(1, 1, 16, 16, 48)
    image[..., 16:32] = torch.rand(16, 16, 16)
    with torch.inference_mode():
        cropped = network.encode(image).cropped((0, 0, 8), (0, 0, 8))
        expected = network.encode(image[..., 8:-8])
    for got, wanted in zip([*cropped.skips, cropped.bottom], [*expected.skips, expected.bottom], strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_is_that_of_pytorch(dtype):
    convolution = Convolution(3, 4, kernel_size=3, padding=2, dtype=dtype)
    x = torch.rand(1, 3, 6, 7, 8).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        expected = functional.conv3d(x, convolution.weight, convolution.bias, padding=2)
        torch.testing.assert_close(convolution(x), expected)
