import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.errors import InputError
from algorithm.network import CONTEXT, UNet3D, centre_crop
from algorithm.tiling import TilePlan, plan_tiles, predict_tiled

CPU = torch.device("cpu")


def add_one(tile: torch.Tensor) -> torch.Tensor:
    size = tuple(n - 2 * CONTEXT for n in tile.shape[2:])
    return centre_crop(tile, size)[0, 0] + 1


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    kept=st.tuples(*[st.sampled_from([8, 16, 24, 48])] * 3),
)
def test_tiling_is_the_identity_for_a_predictor_that_adds_one(shape, kept):
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    result = predict_tiled(add_one, image, np.ones(shape, dtype=bool), TilePlan(shape, kept), device=CPU)
    assert (result == image + 1).all()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = UNet3D(out_channels=3, width=2, padding="valid")
    with torch.no_grad():  # statistics unlike the initial ones, as after training
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_every_tile_size_and_the_whole_volume_give_the_same_answer(network):
    shape = (20, 17, 26)
    image = np.random.default_rng(1).random(shape, dtype=np.float32)
    inside = np.ones(shape, dtype=bool)

    def predict(tile: torch.Tensor) -> torch.Tensor:
        return network(tile)[0, 2]

    with torch.inference_mode():
        whole, *tiled = (
            predict_tiled(predict, image, inside, TilePlan(shape, kept), device=CPU)
            for kept in [(24, 24, 32), (8, 24, 32), (24, 8, 32), (24, 24, 16)]
        )
    assert whole.std() > 0.005
    for result in tiled:
        np.testing.assert_allclose(result, whole, atol=2e-6)


def test_starts_off_the_multiples_of_8_would_change_the_answer(network):
    """What the rule protects from: the same place seen at another pooling phase."""
    image = torch.from_numpy(np.random.default_rng(2).random((1, 1, 104, 100, 100), dtype=np.float32))
    with torch.inference_mode():
        aligned = network(image[:, :, :100])[0, 2, 4:]
        shifted = network(image[:, :, 4:])[0, 2, :-4]
    assert (aligned - shifted).abs().max() > 1e-3


def test_tiles_without_a_lobe_voxel_are_not_computed():
    shape = (16, 16, 64)
    inside = np.zeros(shape, dtype=bool)
    inside[0, 0, 40] = True
    calls = []

    def predict(tile: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return add_one(tile)

    fractions: list[float] = []
    plan = TilePlan(shape, (16, 16, 16))
    result = predict_tiled(predict, np.zeros(shape, np.float32), inside, plan, device=CPU, progress=fractions.append)
    assert len(calls) == 1 and fractions == [1.0]
    assert (result[:, :, 32:48] == 1).all() and result.sum() == 16 * 16 * 16


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 260)] * 3))
def test_plan_fits_memory_and_is_legal(shape):
    plan = plan_tiles(shape, width=8, memory_bytes=2e9)
    assert all(n % 8 == 4 and n >= 92 for n in plan.input_zyx)
    assert all(kept % 8 == 0 for kept in plan.kept_zyx)
    assert plan.input_voxels * 8 * 32 <= 2e9
    assert all(count * kept >= n for count, kept, n in zip(plan.counts_zyx, plan.kept_zyx, shape, strict=True))


def test_more_memory_never_costs_more_arithmetic():
    costs = [plan_tiles((200, 180, 240), width=32, memory_bytes=m * 1e9).cost_voxels for m in (2, 4, 8, 32)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


def test_too_little_memory_is_an_error_with_the_least_that_works():
    with pytest.raises(
        InputError, match=r"got 0\.10 GB, expected at least 1\.60 GB; allow more memory \(--memory-gb\)"
    ):
        plan_tiles((200, 200, 200), width=32, memory_bytes=1e8)
