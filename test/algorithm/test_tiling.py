import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm import inference_network, tiling
from algorithm.errors import InputError
from algorithm.inference_network import InferenceNetwork
from algorithm.network import UNet3D
from algorithm.tiling import REACH, TilePlan, boxes_around, lobe_parts, plan_tiles, predict_scan, seen_by

CPU = torch.device("cpu")
SHAPE = (20, 17, 76)


@pytest.fixture(scope="module")
def network() -> UNet3D:
    torch.manual_seed(0)
    network = UNet3D(out_channels=3, width=2, padding="valid")
    with torch.no_grad():  # statistics unlike the initial ones, as after training
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.bias.normal_(0, 0.3)
        network.last.weight.mul_(20)
    return network.eval()


@pytest.fixture(scope="module")
def fast(network) -> InferenceNetwork:
    return InferenceNetwork(network).on(CPU, torch.float32)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).random(SHAPE, dtype=np.float32)


@pytest.fixture(scope="module")
def reference(network, image) -> np.ndarray:
    """Third logit of the trained network over the whole scan at once, 52 zeros and more around it."""
    padding = [(52, 52 + (4 - n) % 8) for n in SHAPE]
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.pad(image, padding))[None, None])[0, 2].numpy()
    return logits[tuple(slice(8, 8 + n) for n in SHAPE)]


def third(logits: torch.Tensor) -> torch.Tensor:
    return logits[2]


def with_plan(monkeypatch, *plans: TilePlan):
    left = list(plans)
    monkeypatch.setattr(tiling, "plan_tiles", lambda *a, **k: left.pop(0))


@pytest.mark.parametrize("seed", range(4))
def test_boxes_hold_all_that_is_needed_once_and_leave_out_the_rest(seed):
    rng = np.random.default_rng(seed)
    needed = np.zeros((36, 52, 62), dtype=bool)
    for corner in rng.integers(0, 30, (3, 3)):
        needed[tuple(slice(c, c + 7) for c in corner)] = True
    times = np.zeros(needed.shape, dtype=int)
    for box in boxes_around(needed):
        assert all(part.start % 2 == 0 and part.stop % 2 == 0 and part.stop > part.start for part in box)
        times[box] += 1
    assert (times[needed] == 1).all() and times.max() == 1
    assert 0 < times.mean() < 0.5


@pytest.mark.parametrize("kept", [(24, 24, 80), (24, 24, 40), (8, 24, 80), (24, 8, 80), (16, 16, 32)])
def test_every_tile_gives_what_the_trained_network_gives_over_the_whole_scan(fast, image, reference, monkeypatch, kept):
    with_plan(monkeypatch, TilePlan(SHAPE, kept))
    result = predict_scan(fast, image, np.ones(SHAPE, dtype=bool), third, memory_bytes=1e9)
    assert reference.std() > 0.02
    np.testing.assert_allclose(result, reference, atol=5e-5)


def test_starts_off_the_multiples_of_8_would_change_the_answer(network):
    """What the rule protects from: the same place seen at another pooling phase."""
    image = torch.from_numpy(np.random.default_rng(2).random((1, 1, 104, 100, 100), dtype=np.float32))
    with torch.inference_mode():
        aligned = network(image[:, :, :100])[0, 2, 4:]
        shifted = network(image[:, :, 4:])[0, 2, :-4]
    assert (aligned - shifted).abs().max() > 1e-3


def test_what_lies_far_from_the_lobes_is_not_computed_and_what_lies_near_does_not_change(
    fast, image, reference, monkeypatch
):
    empty = inference_network._empty
    monkeypatch.setattr(inference_network, "_empty", lambda *arguments: empty(*arguments).fill_(torch.nan))
    inside = np.zeros(SHAPE, dtype=bool)
    inside[9:12, 3, 5] = inside[18, 14, 68:71] = True
    result = predict_scan(fast, image, inside, third, memory_bytes=1e9)
    near = np.zeros(SHAPE, dtype=bool)
    near[9 - REACH : 12 + REACH, 3 - REACH : 4 + REACH, 5 - REACH : 6 + REACH] = True
    near[18 - REACH :, 14 - REACH :, 68 - REACH : 71 + REACH] = True
    np.testing.assert_allclose(result[near], reference[near], atol=5e-5)
    assert (result != 0).mean() < 0.05


def test_what_is_not_computed_has_the_value_that_is_asked_for(fast, image, reference):
    inside = np.zeros(SHAPE, dtype=bool)
    inside[4:9, 5:9, 6:9] = True
    zero, minus_one = (
        predict_scan(fast, image, inside, third, outside=outside, memory_bytes=1e9) for outside in (0.0, -1.0)
    )
    changed = zero != minus_one
    assert changed.any() and not changed[inside].any()
    assert (zero[changed] == 0).all() and (minus_one[changed] == -1).all()


def test_tiles_without_a_lobe_voxel_are_not_computed(fast, image, monkeypatch):
    inside = np.zeros(SHAPE, dtype=bool)
    inside[0, 0, 70] = True
    with_plan(monkeypatch, TilePlan(SHAPE, (24, 24, 32)))
    fractions: list[float] = []
    result = predict_scan(fast, image, inside, third, memory_bytes=1e9, progress=fractions.append)
    assert fractions == [1.0]
    assert not result[:, :, : 70 - REACH - 1].any() and result[0, 0, 70] != 0


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 60)] * 3), seed=st.integers(0, 9), kept=st.sampled_from([8, 24, 64]))
def test_parts_hold_each_lobe_voxel_and_its_surroundings_once(shape, seed, kept):
    inside = np.random.default_rng(seed).random(shape) > 0.9995
    computed = np.zeros(shape, dtype=int)
    plan = TilePlan(shape, (kept,) * 3)
    for tile in plan.tiles():
        for part in lobe_parts(tile, inside):
            assert all(s.start % 2 == 0 and s.start < s.stop for s in part)
            computed[part] += 1
    for z, y, x in np.argwhere(inside):
        assert (computed[tuple(slice(max(c - REACH, 0), c + REACH + 1) for c in (z, y, x))] == 1).all()
    assert computed.max(initial=0) <= 1


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 90)] * 3), kept=st.tuples(*[st.sampled_from([8, 16, 24, 96])] * 3))
def test_tiles_keep_each_voxel_once_and_see_the_context_of_what_they_keep(shape, kept):
    image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    count = np.zeros(shape, dtype=int)
    for tile in TilePlan(shape, kept).tiles():
        count[tuple(slice(span.start, span.stop) for span in tile)] += 1
        seen = seen_by(tile, image)
        for axis, span in enumerate(tile):
            assert seen.shape[axis] == span.encoder and span.encoder % 8 == 0 and span.start % 8 == 0
            assert span.first <= max(span.start - 54, -2)
            assert span.first + span.encoder >= min(span.stop + 54, span.size + 2)
        corner = tuple(span.start - span.first for span in tile)
        assert seen[corner] == image[tuple(span.start for span in tile)]
    assert (count == 1).all()


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 260)] * 3))
def test_plan_fits_memory(shape):
    plan = plan_tiles(shape, width=8, value_bytes=4, memory_bytes=5e8)
    largest = max(np.prod([span.encoder for span in tile]) for tile in plan.tiles())
    values = tiling.VALUES_PER_VOXEL * largest + tiling.VALUES_OF_PARTS
    assert 8 * 4 * values == pytest.approx(plan.memory_bytes(width=8, value_bytes=4)) and 8 * 4 * values <= 5e8
    cost = sum(
        tiling.ENCODER_COST * np.prod([span.encoder for span in tile])
        + tiling.DECODER_COST * np.prod([span.decoder for span in tile])
        for tile in plan.tiles()
    )
    assert plan.cost == pytest.approx(cost)


def test_no_other_tiles_that_fit_cost_less():
    shape, memory = (100, 90, 120), 4e8
    best = plan_tiles(shape, width=8, value_bytes=4, memory_bytes=memory)
    every = [TilePlan(shape, kept) for kept in itertools.product(range(8, 128, 8), repeat=3)]
    fitting = [plan for plan in every if plan.memory_bytes(width=8, value_bytes=4) <= memory]
    assert 0 < len(fitting) < len(every)
    assert best.cost == min(plan.cost for plan in fitting)


def test_more_memory_never_costs_more_arithmetic():
    plans = [plan_tiles((200, 180, 240), width=32, value_bytes=4, memory_bytes=m * 1e9) for m in (2, 3, 4, 32)]
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert len(list(plans[-1].tiles())) == 1


def test_too_little_memory_is_an_error_with_the_least_that_works():
    with pytest.raises(
        InputError, match=r"got 0\.10 GB, expected at least \d\.\d\d GB; allow more memory \(--memory-gb\)"
    ):
        plan_tiles((200, 200, 200), width=32, value_bytes=4, memory_bytes=1e8)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a memory object"),
    ],
)
def test_memory_that_runs_out_means_smaller_tiles_and_a_word(fast, monkeypatch, error):
    asked, told = [], []

    def fails_once(*arguments):
        asked.append(arguments[4])
        if len(asked) == 1:
            raise error
        return predict_tiles(*arguments)

    predict_tiles = tiling._predict_tiles
    image = np.random.default_rng(3).random((12, 12, 400), dtype=np.float32)
    inside = np.zeros(image.shape, dtype=bool)
    inside[5, 5, 90:300] = True
    expected = predict_scan(fast, image, inside, third, memory_bytes=1e9)
    monkeypatch.setattr(tiling, "VALUES_OF_PARTS", 0)
    monkeypatch.setattr(tiling, "_predict_tiles", fails_once)
    result = predict_scan(fast, image, inside, third, memory_bytes=1e9, warn=told.append)
    np.testing.assert_allclose(result, expected, atol=5e-5)
    assert [len(list(plan.tiles())) > 1 for plan in asked] == [False, True]
    assert len(told) == 1 and told[0].startswith("memory ran out in tiles that take")


def test_other_errors_are_not_taken_for_a_lack_of_memory(fast, image, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(tiling, "_predict_tiles", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_scan(fast, image, np.ones(SHAPE, dtype=bool), third, memory_bytes=1e9)
