"""Every fast path gives the answer of the reference: the trained network as it is, in fp32, over the whole scan."""

from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm import segmenter as segmenter_module
from algorithm import tiling
from algorithm.images import Volume, read_ct, read_labels
from algorithm.model import LESION, Model, find_model, load_model
from algorithm.network import CONTEXT, UNet3D
from algorithm.segmenter import LesionSegmenter, Segmentation
from algorithm.severity import SCORE_LOWER_PERCENT

CPU = torch.device("cpu")
SAMPLE = Path(__file__).parents[1] / "sample"
LEAST_DICE = {"fp32": 0.999, "bf16": 0.99}  # the sample has 1338 lesion voxels, of which bf16 moves 7
NEAR_A_BORDER_PERCENT = 0.1


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(find_model())


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, Volume]:
    return read_ct(SAMPLE / "ct.mha"), read_labels(SAMPLE / "lobes.mha")


def whole_volume_margin(network: UNet3D, image: Volume) -> Volume:
    """Straight from the network's definition: as much zero around the scan as it looks at, one pass."""
    before = CONTEXT + 8
    padding = [(before, before + (4 - n) % 8) for n in image.array.shape]
    with torch.inference_mode():
        probability = network(torch.from_numpy(np.pad(image.array, padding))[None, None]).softmax(1)[0]
    margin = (probability[LESION] - probability[:LESION].amax(0)).numpy()
    return image.with_array(np.ascontiguousarray(margin[tuple(slice(8, 8 + n) for n in image.array.shape)]))


@pytest.fixture(scope="module")
def reference(model, scan) -> Segmentation:
    def margin(network, image, *_, **__) -> Volume:
        return whole_volume_margin(model.network, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter_module, "lesion_margin", margin)
        return LesionSegmenter(model, device=CPU, memory_gb=3.0).segment(*scan)


def require_same_answer(result: Segmentation, reference: Segmentation, precision: str) -> None:
    ours, theirs = result.labels.array, reference.labels.array
    for label in np.unique(theirs[theirs > 0]):
        a, b = ours == label, theirs == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= LEAST_DICE[precision]
    for lobe, expected in zip(result.report.lobes, reference.report.lobes, strict=True):
        border = min(abs((expected.percent or 0.0) - lower) for lower in SCORE_LOWER_PERCENT[1:])
        assert lobe.score == expected.score or border <= NEAR_A_BORDER_PERCENT


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_answer_is_that_of_the_whole_volume(model, scan, reference, precision):
    assert len(np.unique(reference.labels.array)) > 2
    segmenter = LesionSegmenter(model, device=CPU, memory_gb=3.0, precision=precision)
    require_same_answer(segmenter.segment(*scan), reference, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_answer_is_that_of_any_tiles(model, scan, reference, monkeypatch, precision):
    monkeypatch.setattr(tiling, "plan_tiles", lambda shape, **_: tiling.TilePlan(shape, (48, 64, 64)))
    segmenter = LesionSegmenter(model, device=CPU, memory_gb=3.0, precision=precision)
    require_same_answer(segmenter.segment(*scan), reference, precision)


def test_the_answer_is_that_of_openvino(model, scan, reference):
    pytest.importorskip("openvino")
    segmenter = LesionSegmenter(model, device=CPU, memory_gb=3.0, engine="openvino")
    require_same_answer(segmenter.segment(*scan), reference, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twice_run_gives_twice_the_same_bytes(model, scan, precision):
    segmenter = LesionSegmenter(model, device=CPU, memory_gb=3.0, precision=precision)
    first, second = (segmenter.segment(*scan) for _ in range(2))
    assert first.labels.array.tobytes() == second.labels.array.tobytes()
    assert first.report.model_dump(exclude={"timings"}) == second.report.model_dump(exclude={"timings"})
