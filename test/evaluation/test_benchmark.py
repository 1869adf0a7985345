from __future__ import annotations

from evaluation.benchmark import benchmark


def test_a_small_scan() -> None:
    numbers = benchmark(size_zyx=(40, 48, 56))
    assert numbers["lesions_ml"] > 1
    assert numbers["ratio"] > 0
    assert 0.01 < numbers["peak_gib"] < 64
