"""The model that ships finds as much on three fixed phantoms as it did when it was made."""

import numpy as np
import pytest

from algorithm.model import PACKAGED_DIRECTORY
from algorithm.segmenter import LesionSegmenter
from evaluation.metrics import iou
from training.phantom.chest import PhantomOptions, make_phantom

LEAST_IOU = (0.29, 0.62, 0.57)


@pytest.fixture(scope="module")
def segmenter() -> LesionSegmenter:
    return LesionSegmenter.from_directory(PACKAGED_DIRECTORY, device="cpu")


@pytest.mark.parametrize(("case", "least"), list(enumerate(LEAST_IOU)))
def test_lesions_of_a_fixed_phantom(segmenter, case, least):
    phantom = make_phantom(np.random.default_rng([2026, case]), PhantomOptions(coarseness=2.5))
    found = segmenter.segment(phantom.ct, phantom.lobes).labels.array > 0
    assert iou(phantom.lesions.array > 0, found) >= least
