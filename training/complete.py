"""Whether a data directory suffices for all stages, so that none finds out after hours of the others' work."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from algorithm.errors import InputError
from algorithm.images import read_labels
from algorithm.subtypes import SUBTYPES
from training.cases import TABLE, Case, all_problems, look_through, of_split, what_training_lacks

_SHOWN_NAMES = 8


def require_complete(data: Path, *, with_comparison: bool) -> None:
    """Check that the cases suffice for all stages together, which each check for what they need alone.

    Of the images, the headers are read and the reference lesions of validation cases.

    Args:
        data: the directory that holds cases.csv.
        with_comparison: whether the baseline, the supervised upper bound and the comparison are to be made.

    Raises:
        InputError: all that the stages would lack, and all problems of the table's rows, together.
    """
    cases, problems = look_through(data)
    lacks = [lack for lack in (what_training_lacks(cases), *_what_stages_lack(cases)) if lack]
    if with_comparison:
        lacks += _what_comparison_lacks(cases)
    if lacks or problems:
        raise all_problems(str(data / TABLE), lacks + problems)


def _what_stages_lack(cases: list[Case]) -> list[str]:
    """What vessels, regress and subtypes need beside training cases with scores."""
    train, validation = of_split(cases, "train"), of_split(cases, "validation")
    lacks = []
    if not any(case.is_healthy for case in train):
        lacks.append("no training case with score 0 in all five lobes, to learn vessels from")
    if not any(case.scores for case in validation):
        lacks.append("no validation case with a score, to tell the best network by")
    if not any(_has_known_subtype(case) for case in validation):
        lacks.append(f"no validation case with reference lesions of known subtype {SUBTYPES}, for the vote")
    return lacks


def _has_known_subtype(case: Case) -> bool:
    """Whether reference lesions have a subtype; those that cannot be read may, and are a problem of their own."""
    if case.lesions is None:
        return False
    try:
        return bool(np.isin(read_labels(case.lesions).array, list(SUBTYPES)).any())
    except InputError:
        return True


def _what_comparison_lacks(cases: list[Case]) -> list[str]:
    train = of_split(cases, "train")
    lacks = []
    scores = [score for case in train for score in case.scores.values()]
    if scores and all(scores):
        lacks.append("no training lobe with score 0, which the baseline must tell from diseased ones")
    without = [case.name for case in train if case.lesions is None]
    if without:
        names = ", ".join(without[:_SHOWN_NAMES]) + (", ..." if len(without) > _SHOWN_NAMES else "")
        lacks.append(f"no reference lesions of training case {names}, for the supervised upper bound")
    if not any(case.lesions is not None for case in of_split(cases, "test")):
        lacks.append("no test case with reference lesions, to compare on")
    return lacks
