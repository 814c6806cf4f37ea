"""How many documents a question takes: against published figures, simulation and search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from docward.evaluation.sizes import advice, discordant_by_chance, documents_to_pass, documents_to_reach, mcnemar_power, pairs_to_tell
from docward.evaluation.statistics import Interval, mcnemar, pooled_share, wilson


def test_the_power_is_the_published_one():
    """G*Power 3.1 manual, chapter 5 (O'Brien 2002): 0.839343, one-sided at 0.05. R package MESS, its own test: 0.80, one-sided at 0.025."""
    assert mcnemar_power(50, 0.32, 0.08, alpha=0.1) == pytest.approx(0.839343, abs=2e-5)  # two-sided: the wrong side adds 0.000015
    assert mcnemar_power(144, 0.45, 0.25) == pytest.approx(0.80, abs=0.005)


def test_the_power_is_that_of_the_test_we_make():
    random = np.random.default_rng(0)
    dealt = random.multinomial(60, [0.2, 0.05, 0.75], size=3000)
    known = {}
    decided = sum(known.setdefault((a, b), mcnemar(a, b)) < 0.05 for a, b in (map(int, pair[:2]) for pair in dealt))
    assert mcnemar_power(60, 0.2, 0.05) == pytest.approx(decided / 3000, abs=0.025)


def test_no_difference_is_found_no_more_often_than_the_level():
    assert all(mcnemar_power(pairs, 0.1, 0.1) <= 0.05 for pairs in (1, 5, 20, 100, 400))
    assert mcnemar_power(50, 0, 0) == 0


@pytest.mark.parametrize(("points", "discordant"), [(0.05, 0.09), (0.05, 0.05), (0.1, 0.3), (0.2, 0.25), (0.05, 0.5)])
def test_so_many_documents_are_enough_and_clearly_fewer_are_not(points, discordant):
    enough = pairs_to_tell(points, discordant)
    more, fewer = (discordant + points) / 2, (discordant - points) / 2
    assert mcnemar_power(enough, more, fewer) >= 0.8 > mcnemar_power(int(0.93 * enough), more, fewer)


def test_the_exact_test_takes_a_few_documents_more_than_connors_formula():
    """Connor 1987: n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2, for the test without continuity correction."""
    for points, discordant in ((0.05, 0.09), (0.05, 0.2), (0.1, 0.3)):
        connor = (stats.norm.ppf(0.975) * math.sqrt(discordant) + stats.norm.ppf(0.8) * math.sqrt(discordant - points**2)) ** 2 / points**2
        assert connor < pairs_to_tell(points, discordant) < 1.15 * connor + 5


def test_a_difference_that_no_set_can_show_has_no_number():
    assert pairs_to_tell(0.001, 0.5) is None
    assert "nor can 20,000" in advice(wilson(9, 18), 18, points=0.001)


def test_unrelated_models_differ_as_independent_coins_do():
    assert discordant_by_chance(0.3, 0.05) == pytest.approx(0.3 * 0.65 + 0.35 * 0.7)
    assert discordant_by_chance(0.0, 0.05) == pytest.approx(0.05)
    assert discordant_by_chance(1.0, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize(("hits", "judged", "reach"), [(0, 18, 0.05), (20, 40, 0.05), (36, 40, 0.03), (18, 18, 0.1)])
def test_so_many_documents_reach_the_half_width(hits, judged, reach):
    enough = documents_to_reach(wilson(hits, judged), judged, reach)
    found, before = (wilson(hits / judged * many, many) for many in (enough, enough - 1))
    assert max(found.value - found.low, found.high - found.value) <= reach + 1e-9
    assert max(before.value - before.low, before.high - before.value) > reach


def test_half_a_hundred_points_take_what_the_textbooks_say():
    """Cochran 1977: 384.1 for a share of one half to 5 points by the normal interval; Wilson's takes z^2 fewer."""
    assert documents_to_reach(wilson(50, 100), 100, 0.05) == math.ceil(384.146 - 3.8415)


@pytest.mark.parametrize(("hits", "judged", "threshold"), [(37, 40, 0.9), (19, 20, 0.8), (0, 18, 0.1), (2, 40, 0.08), (20, 20, 0.9)])
def test_so_many_documents_would_decide_a_threshold_and_one_fewer_would_not(hits, judged, threshold):
    enough = documents_to_pass(wilson(hits, judged), judged, threshold)
    share = hits / judged
    found, before = (wilson(share * many, many) for many in (enough, enough - 1))
    if threshold < share:
        assert found.low >= threshold - 1e-9 > before.low - 1e-9
    else:
        assert found.high <= threshold + 1e-9 < before.high + 1e-9
    assert enough > judged


def test_documents_with_several_tasks_count_for_what_they_are_worth():
    counts = np.array([[5.0, 5.0]] * 30 + [[3.0, 5.0]] * 8 + [[0.0, 5.0]] * 2)
    rate = pooled_share(counts)
    enough = documents_to_pass(rate, 40, 0.82)
    assert pooled_share(np.tile(counts, (math.ceil(enough / 40) + 1, 1))).low >= 0.82 > rate.low


def test_a_threshold_that_no_interval_can_reach_has_no_number():
    assert documents_to_pass(wilson(0, 18), 18, 0.0) is None
    assert documents_to_pass(wilson(18, 18), 18, 1.0) is None
    assert documents_to_pass(wilson(9, 18), 18, 0.5) is None
    assert documents_to_pass(Interval(0.5, 0.0, 1.0), 1, 0.4) > 1


def test_advice_is_a_sentence_with_the_documents_at_hand():
    said = advice(wilson(4, 40), 40, discordant=0.09)
    assert said.startswith("40 documents cannot tell two models 5 points apart on a task; about 303 can.")
    assert "Over all tasks the rate is known to 13.1 points; about 196 documents give 5 points." in said
    assert advice(wilson(40, 400), 400, discordant=0.09).startswith("400 documents can tell two models 5 points apart on a task (about 303 are enough).")
    assert advice(wilson(400, 4000), 4000).endswith("Over all tasks the rate is known to 1.0 points.")
    assert advice(wilson(0, 1), 1).startswith("1 document cannot")


def test_only_the_end_that_fails_says_how_many_documents_are_needed():
    assert documents_to_pass(Interval(0.9, 0.8, 0.99), 40, 0.85) == documents_to_pass(Interval(0.9, 0.8, 0.91), 40, 0.85)
    assert documents_to_pass(Interval(0.1, 0.01, 0.2), 40, 0.15) == documents_to_pass(Interval(0.1, 0.09, 0.2), 40, 0.15)
