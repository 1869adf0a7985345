"""The model that ships finds as much on three fixed phantoms as it did when it was made."""

import numpy as np
import pytest

from algorithm.model import PACKAGED_DIRECTORY
from algorithm.segmenter import LesionSegmenter
from algorithm.subtypes import find_components, paint, vote
from evaluation.metrics import iou
from training.lobe_dice import LUNGS, lobe_dices
from training.phantom.chest import Phantom, PhantomOptions, make_phantom

LEAST_IOU = {4: 0.74, 7: 0.88, 8: 0.27}
LEAST_NAMED = {4: 0.99, 7: 0.34, 8: 0.99}  # share of the reference lesions whose subtype is voted right
LEAST_LUNGS, LEAST_LOBES = {4: 0.965, 7: 0.955, 8: 0.97}, {4: 0.89, 7: 0.85, 8: 0.74}
HEALTHY, MOST_IN_HEALTHY = 3, 0.025


@pytest.fixture(scope="module")
def segmenter() -> LesionSegmenter:
    return LesionSegmenter.from_directory(PACKAGED_DIRECTORY, device="cpu")


@pytest.fixture(scope="module", params=LEAST_IOU)
def case(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def phantom(case) -> Phantom:
    return make_phantom(np.random.default_rng([2026, case]), PhantomOptions(coarseness=2.5))


def test_lesions_of_a_fixed_phantom(segmenter, case, phantom):
    found = segmenter.segment(phantom.ct, phantom.lobes).labels.array > 0
    assert iou(phantom.lesions.array > 0, found) >= LEAST_IOU[case]


def test_subtypes_of_the_lesions_of_a_fixed_phantom(segmenter, case, phantom):
    model, lesions = segmenter.model, phantom.lesions.array
    found = find_components(lesions > 0, phantom.ct.array, voxel_ml=phantom.ct.geometry.voxel_ml)
    named = paint(found, vote(found, model.reference, model.description.subtype_vote))
    assert (named == lesions)[lesions > 0].mean() >= LEAST_NAMED[case]


def test_little_is_found_in_a_healthy_phantom(segmenter):
    healthy = make_phantom(np.random.default_rng([2026, HEALTHY]), PhantomOptions(coarseness=2.5))
    assert not healthy.lesions.array.any()
    found = segmenter.segment(healthy.ct, healthy.lobes).labels.array > 0
    assert found.sum() <= MOST_IN_HEALTHY * (healthy.lobes.array > 0).sum()


def test_lobes_of_a_fixed_phantom(segmenter, case, phantom):
    dices = lobe_dices(phantom.lobes, segmenter.find_lobes(phantom.ct).labels)
    assert dices.pop(LUNGS) >= LEAST_LUNGS[case]
    assert np.mean(list(dices.values())) >= LEAST_LOBES[case]
