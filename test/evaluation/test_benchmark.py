from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import benchmark as module
from evaluation.benchmark import benchmark
from evaluation.scoring import score_scan


def test_the_numbers_are_what_they_are_called(monkeypatch) -> None:
    judged = []

    def judge(case, **masks):
        judged.append(masks)
        return score_scan(case, **masks)

    clock = iter([100.0, 102.0, 110.0])  # before and after reading, and after judging
    monkeypatch.setattr(module, "score_scan", judge)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 1024**2))  # KiB
    numbers = benchmark(size_zyx=(40, 48, 56))
    assert (numbers["read_seconds"], numbers["score_seconds"], numbers["ratio"]) == (2.0, 8.0, 4.0)
    assert numbers["peak_gib"] == 3.0
    (masks,) = judged
    lesions, lobes, prediction = (masks[name].array for name in ("lesions", "lobes", "prediction"))
    assert numbers["lesions_ml"] == pytest.approx(np.count_nonzero(lesions) * 0.8 * 0.7 * 0.7 / 1000)
    assert lesions.shape == (40, 48, 56)
    assert set(np.unique(lesions)) == {0, 1, 2, 3}
    assert set(np.unique(lobes)) == {0, 1, 2, 3, 4, 5}
    assert not lesions[lobes == 0].any()
    overlap = np.count_nonzero((lesions > 0) & (prediction > 0)) / np.count_nonzero(lesions)
    assert 0.5 < overlap < 1
