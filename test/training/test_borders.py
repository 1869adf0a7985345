import numpy as np
import pytest

from training.borders import MARGIN_BORDERS, PROBABILITY_BORDERS, best_border

RISING = np.linspace(0.0, 0.999, 1000, dtype=np.float32).reshape(10, 10, 10)
ONE_LOBE = np.ones((10, 10, 10), dtype=np.uint8)


def test_the_border_leaves_what_the_score_stands_for():
    assert best_border([(RISING, ONE_LOBE, {1: 4})], (0.1, 0.3, 0.6), otherwise=0.5) == 0.3
    assert best_border([(RISING, ONE_LOBE, {1: 5})], (0.1, 0.3, 0.5), otherwise=0.5) == 0.1
    assert best_border([(RISING, ONE_LOBE, {1: 0})], (0.1, 0.5, 0.9), otherwise=0.5) == 0.9


def test_of_borders_that_are_equally_good_the_usual_one_is_taken():
    """Score 4 is 50 to 75 %: any border from 0.25 to just below 0.5 does."""
    score_4 = [(RISING, ONE_LOBE, {1: 4})]
    assert best_border(score_4, PROBABILITY_BORDERS, otherwise=0.5) == 0.45
    assert best_border(score_4, PROBABILITY_BORDERS, otherwise=0.35) == 0.35
    assert best_border(score_4, PROBABILITY_BORDERS, otherwise=0.05) == 0.25
    decided = [(np.where(RISING > 0.6, np.float32(0.95), np.float32(-0.95)), ONE_LOBE, {1: 3})]
    assert best_border(decided, MARGIN_BORDERS, otherwise=0.0) == 0.0


def test_all_scored_lobes_of_all_cases_have_a_say_and_no_others():
    """One lobe says 0.25 to just below 0.5, the other, of values from 0.5 on, up to 0.625; only 0.45 suits both."""
    upper = 0.5 + RISING / 2
    first, second = (RISING, ONE_LOBE, {1: 4}), (upper, 3 * ONE_LOBE, {3: 5, 1: 0})
    assert best_border([first], (0.3, 0.4, 0.6), otherwise=0.0) == 0.3
    assert best_border([second], (0.7, 0.6), otherwise=0.0) == 0.6
    assert best_border([first, second], (0.2, 0.45, 0.7), otherwise=0.0) == 0.45
    mixed = ONE_LOBE.copy()
    mixed[5:] = 2
    both = np.where(mixed == 1, 2 * RISING, np.float32(0.95))
    assert best_border([(both, mixed, {1: 4})], (0.1, 0.4, 0.96), otherwise=0.0) == 0.4


def test_a_healthy_lobe_that_is_filled_counts_like_a_severe_one_that_is_emptied():
    """At 0.3 the healthy lobe is filled by 8 %, two scores; at 0.6 the severe one has 45 % instead of 50, one score."""
    healthy, severe = (np.full((10, 10, 10), 0.1, dtype=np.float32) for _ in range(2))
    healthy.ravel()[:80] = 0.4
    severe.ravel()[:550], severe.ravel()[:450] = 0.4, 0.9
    maps = [(healthy, ONE_LOBE, {1: 0}), (severe, ONE_LOBE, {1: 4})]
    assert best_border(10 * maps, (0.3, 0.6), otherwise=0.3) == 0.6
    assert best_border(10 * maps[1:], (0.3, 0.6), otherwise=0.6) == 0.3


def test_a_border_that_is_better_by_chance_only_is_not_taken():
    """Of nine lobes, four are better at 0.3 by one score and one worse: by 1/3, with a standard error of 0.22."""
    better, same, worse = (np.full((10, 10, 10), 0.1, dtype=np.float32) for _ in range(3))
    better.ravel()[:520], better.ravel()[:480] = 0.4, 0.9
    same.ravel()[:600] = 0.9
    worse.ravel()[:800], worse.ravel()[:700] = 0.4, 0.9
    maps = [(values, ONE_LOBE, {1: 4}) for values in 4 * [better] + 4 * [same] + [worse]]
    assert best_border(maps, (0.3, 0.6), otherwise=0.6) == 0.3
    assert best_border([*maps, maps[-1]], (0.3, 0.6), otherwise=0.6) == 0.6  # 1/5 with a standard error of 0.25
    assert best_border([*maps, maps[-1]], (0.3, 0.6), otherwise=0.3) == 0.3


def test_without_a_score_there_is_nothing_to_choose_by():
    assert best_border([], PROBABILITY_BORDERS, otherwise=0.5) == 0.5
    assert best_border([(RISING, ONE_LOBE, {2: 3})], MARGIN_BORDERS, otherwise=0.0) == 0.0


def test_borders_are_of_probabilities_and_of_differences_of_two():
    assert (PROBABILITY_BORDERS[0], PROBABILITY_BORDERS[-1], len(PROBABILITY_BORDERS)) == (0.05, 0.95, 19)
    assert (MARGIN_BORDERS[0], MARGIN_BORDERS[-1]) == (-0.9, 0.9) and 0.0 in MARGIN_BORDERS
    assert np.diff(MARGIN_BORDERS) == pytest.approx(0.05)
