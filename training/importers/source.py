"""Cases of a source: what an importer makes known before, and what it gives when it has read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels
from training.cases import UNKNOWN_SUBTYPE, Split
from training.parallel import console


class LeftOut(Exception):  # noqa: N818 (it is no error)
    """Raised by a case's ``load``: the case is sound but of no use here; the message says why in a few words."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from; printed, and written to LICENCE.txt beside the data."""

    name: str
    licence: str
    citation: str
    url: str


@dataclass(frozen=True)
class ImportedCase:
    """A case that has been read.

    Attributes:
        ct: HU, int16 or float32 (z, y, x).
        lobes: labels of `algorithm.lobes.LOBES` on the CT's grid, if the source has them.
        lesions: 1 ground-glass, 2 consolidation, 3 mixed, 4 lesion of unknown subtype (see `binary_lesions`), on the
            CT's grid; None where unknown.
        scores: score 0 to 5 by lobe label where the source states them; if empty, they are derived from the lesions.
    """

    ct: Volume
    lobes: Volume | None = None
    lesions: Volume | None = None
    scores: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PendingCase:
    """A case that is yet to be read.

    Attributes:
        name: unique, and usable as a file name.
        load: reads it; a `functools.partial` of a function importable by name, for it runs in other processes. It
            raises InputError where the case is unusable and LeftOut where it is of no use.
        sources: files and folders that it comes from; the case is read again when they have changed.
        patient: cases of one patient come into one split; "" for the case's own name.
        split: as the source states it; None to have it drawn by `assign_splits`.
        brings_lobes: ``load`` gives lobes.
    """

    name: str
    load: Callable[[], ImportedCase]
    sources: tuple[Path, ...]
    patient: str = ""
    split: Split | None = None
    brings_lobes: bool = False


def split_of_cases(names: Iterable[str], *, seed: int, validation: int, test: int) -> dict[str, Split]:
    """Draw the split of each name; the same names and seed give the same splits, whatever their order.

    Args:
        names: of cases or patients; repeated ones count once.
        seed: of the draw.
        validation: how many names are for validation.
        test: how many are for testing; all others are for training.

    Raises:
        InputError: there are fewer names than are to be held out.
    """
    ordered = sorted(set(names))
    if min(validation, test) < 0 or validation + test > len(ordered):
        raise InputError(
            f"got {validation} validation and {test} test cases, expected no more than the {len(ordered)} there are "
            "(scans of one patient count once)"
        )
    drawn = [ordered[k] for k in np.random.default_rng(seed).permutation(len(ordered))]
    splits: dict[str, Split] = dict.fromkeys(drawn, "train")
    splits.update(dict.fromkeys(drawn[:test], "test"))
    splits.update(dict.fromkeys(drawn[test : test + validation], "validation"))
    return splits


def assign_splits(cases: Iterable[PendingCase], *, seed: int, validation: int, test: int) -> list[PendingCase]:
    """Give a split to each case whose source states none, patient by patient; see `split_of_cases`.

    Raises:
        InputError: there are fewer to hold out than are asked for, or the source states the splits of all.
    """
    cases = list(cases)
    if (validation or test) and all(case.split for case in cases):
        raise InputError("the data set states the splits of its cases; leave out --validation and --test")
    patients = [case.patient or case.name for case in cases if case.split is None]
    splits = split_of_cases(patients, seed=seed, validation=validation, test=test)
    return [case if case.split else replace(case, split=splits[case.patient or case.name]) for case in cases]


def require_masks(masks: Sequence[Path]) -> None:
    """Check that the lesion masks of scans, all in one folder, are there.

    Raises:
        InputError: some are missing.
    """
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        names = ", ".join(mask.name for mask in missing)
        raise InputError(f"{missing[0].parent}: masks missing: {names}; expected one for each scan")


def load_with_lesions(ct: Path, mask: Path) -> ImportedCase:
    """Read a CT and its mask of 0 and 1."""
    return ImportedCase(read_ct(ct), lesions=binary_lesions(read_labels(mask)))


def dicom_files(folder: Path) -> list[Path]:
    """The .dcm files in a folder, by name; hidden ones are passed over."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and not path.name.startswith("."))


def binary_lesions(mask: Volume) -> Volume:
    """Turn a mask of 0 and 1 into lesions of unknown subtype, uint8.

    Raises:
        InputError: the mask holds other labels.
    """
    require_labels(mask, (1,))
    return mask.with_array(np.where(mask.array == 1, UNKNOWN_SUBTYPE, 0).astype(np.uint8))


def require_labels(mask: Volume, labels: Sequence[int]) -> None:
    """Check that a lesion mask holds 0 and the given labels only.

    Raises:
        InputError: it holds others.
    """
    others = [value for value in np.unique(mask.array) if value not in (0, *labels)]
    if others:
        raise InputError(
            f"the lesion mask holds labels {', '.join(f'{value:g}' for value in others[:8])}, expected 0 and "
            f"{', '.join(map(str, labels))} only"
        )


def remark(text: str) -> None:
    """Print a line for the user, as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
