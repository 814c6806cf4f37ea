"""Each statistic against a published value, or against one that something else computes."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from docward.evaluation.statistics import (
    Interval,
    Table,
    corrected_rate,
    difference,
    drawn_sums,
    effective_size,
    holm,
    kappa,
    likelihood_kept,
    mcnemar,
    paired_difference,
    pooled_mean,
    pooled_share,
    retention,
    sign_flips,
    wilson,
)


def ends(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def rows(*columns) -> np.ndarray:
    return np.column_stack([np.array(column, dtype=float) for column in columns])


# ------------------------------------------------------------------------------------------------------------ one share


@pytest.mark.parametrize(
    ("hits", "judged", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],  # Newcombe 1998, table I, method 3
)
def test_wilson_gives_the_published_intervals(hits, judged, low, high):
    found = wilson(hits, judged)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_is_scipys_too():
    for hits, judged in ((0, 1), (3, 3), (7, 40), (999, 1000)):
        theirs = stats.binomtest(hits, judged).proportion_ci(method="wilson")
        assert (wilson(hits, judged).low, wilson(hits, judged).high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_a_share_of_nothing_is_no_interval():
    assert wilson(0, 0) is None
    assert pooled_share(np.empty((0, 2))) is None
    assert pooled_mean(np.empty((0, 2))) is None
    assert paired_difference(np.empty((0, 3))) is None


def test_a_wilson_interval_is_worth_what_was_judged():
    for hits, judged in ((0, 18), (18, 18), (5, 18), (37, 40), (1, 1), (500, 11_000)):
        assert effective_size(wilson(hits, judged)) == pytest.approx(judged)


@pytest.mark.parametrize(
    ("hits", "judged", "sensitive", "specific", "low", "high"),
    [  # examples 1 to 4 of Lang and Reiczigel 2014, as the R package asht documents them; 4 has two populations
        (4060, 11284, (178, 179), (358, 359), 0.349, 0.372),
        (51, 2971, (32, 33), (20, 20), 0, 0.053),
        (0.06 * 11862, 11862, (8, 10), (12, 12), 0, 0.147),
        (259, 509, (84, 127), (96, 109), 0.58, 0.87),
        (51, 509, (23, 41), (187, 195), 0.037, 0.195),
    ],
)
def test_the_corrected_interval_is_the_published_one(hits, judged, sensitive, specific, low, high):
    table = Table(sensitive[0], sensitive[1] - sensitive[0], specific[1] - specific[0], specific[0])
    found = corrected_rate(wilson(hits, judged), table)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))
    assert found.low <= found.value <= found.high


def test_the_corrected_value_is_the_published_one():
    """Examples of epi.prev in the R package epiR: brucellosis, 23 of 150 positive, 5.1 in 100; Moujaber et al. 2008, 6 of 151, 0 in 100."""
    assert corrected_rate(wilson(23, 150), Table(96, 4, 11, 89)).value == pytest.approx(0.051, abs=5e-4)
    assert corrected_rate(wilson(6, 151), Table(964, 36, 73, 927)).value == 0


def test_correcting_undoes_the_judges_errors():
    for truth, sensitivity, specificity in product((0.1, 0.5, 0.9), (0.9, 0.7), (0.95, 0.6)):
        seen = truth * sensitivity + (1 - truth) * (1 - specificity)
        many = round(1000 * sensitivity), round(1000 * (1 - sensitivity)), round(1000 * (1 - specificity)), round(1000 * specificity)
        assert corrected_rate(wilson(seen * 400, 400), Table(*many)).value == pytest.approx(truth)


def test_the_corrected_interval_covers_the_truth_and_grows_with_the_judges_uncertainty():
    random, covered = np.random.default_rng(3), 0
    for _ in range(300):
        hits = random.binomial(150, 0.3 * 0.85 + 0.7 * 0.2)
        both, neither = random.binomial(60, 0.85), random.binomial(60, 0.8)
        found = corrected_rate(wilson(hits, 150), Table(both, 60 - both, 60 - neither, neither))
        covered += found.low <= 0.3 <= found.high
    assert covered >= 275  # 285 expected
    widths = [
        found.high - found.low for many in (20, 200, 2000) for found in [corrected_rate(wilson(60, 200), Table(9 * many, many, 2 * many, 8 * many))] if found
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] > wilson(60, 200).high - wilson(60, 200).low


@pytest.mark.parametrize("table", [Table(5, 5, 5, 5), Table(2, 8, 5, 5), Table(), Table(10, 0, 0, 0), Table(0, 0, 0, 10)])
def test_a_judge_no_better_than_chance_corrects_nothing(table):
    assert corrected_rate(wilson(5, 10), table) is None


def test_kappa_is_the_one_of_statsmodels_with_its_interval():
    from statsmodels.stats.inter_rater import cohens_kappa

    theirs, found = cohens_kappa([[200, 50], [100, 150]]), kappa(Table(both=200, label_only=50, verdict_only=100, neither=150))
    assert found.value == pytest.approx(theirs.kappa) == pytest.approx(0.4)
    assert (found.low, found.high) == (pytest.approx(theirs.kappa_low, abs=0.01), pytest.approx(theirs.kappa_upp, abs=0.01))
    assert kappa(Table(3, 0, 0, 0)) is None


# ------------------------------------------------------------------------------------------------------------ bootstrap over documents


def test_the_bootstrap_is_scipys():
    random = np.random.default_rng(1)
    counts = rows(random.binomial(5, random.beta(3, 3, 120)), np.full(120, 5))

    def share(hits, judged, axis=-1):
        return hits.sum(axis) / judged.sum(axis)

    how = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 6000, "rng": np.random.default_rng(2)}
    theirs = stats.bootstrap((counts[:, 0], counts[:, 1]), share, **how).confidence_interval
    assert (pooled_mean(counts).low, pooled_mean(counts).high) == (pytest.approx(theirs.low, abs=0.006), pytest.approx(theirs.high, abs=0.006))


def test_the_order_of_the_documents_changes_no_interval():
    counts = rows([0, 1, 5, 5, 3, 2, 5], [5, 5, 5, 4, 5, 5, 5])
    assert ends(pooled_share(counts[::-1])) == pytest.approx(ends(pooled_share(counts)), abs=1e-12)


def test_very_many_alike_documents_are_drawn_in_little_memory():
    import tracemalloc

    counts = np.tile([[1.0, 5.0], [5.0, 5.0]], (50_000, 1))
    tracemalloc.start()
    found = pooled_mean(counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.value == pytest.approx(0.6)
    assert peak < 10 * counts.nbytes  # drawn document by document it were 4,000 times


def test_many_distinct_documents_are_drawn_in_parts_that_make_up_all_draws(monkeypatch):
    from docward.evaluation import statistics

    scores = rows(np.random.default_rng(0).random(50), np.ones(50))
    whole = pooled_mean(scores)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 50 * 7)
    assert len(drawn_sums(scores, seed=0)) == statistics.DRAWS
    assert pooled_mean(scores) == whole


def test_five_tasks_that_agree_on_every_document_are_one_sample_each():
    one, five = rows([1] * 14 + [0] * 6, [1] * 20), rows([5] * 14 + [0] * 6, [5] * 20)
    assert ends(pooled_share(five)) == pytest.approx(ends(pooled_share(one)), abs=1e-12)
    least = wilson(14, 20)
    assert (pooled_share(one).low, pooled_share(one).high) == (pytest.approx(least.low, abs=0.05), pytest.approx(least.high, abs=0.05))


@pytest.mark.parametrize(("documents", "share"), [(18, 0.95), (40, 0.9)])
def test_the_safe_end_is_rarely_on_the_wrong_side_of_the_truth(documents, share):
    """2.5 of 100 are meant; a plain percentile bootstrap has 14 with 18 documents at 95%."""
    random, wrong = np.random.default_rng(4), 0
    for trial in range(100):
        chances = random.beta(share, 1 - share, documents)  # correlation of 0.5 among the tasks of a document
        wrong += pooled_share(rows(random.binomial(5, chances), np.full(documents, 5)), seed=trial).low > share
    assert wrong <= 8  # 2.5 are meant; more than 8 have a chance of 0.001


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 10), 0.6075, 1.0)],  # Newcombe 1998b, table II, method 10
)
def test_a_difference_has_the_published_interval(first, second, low, high):
    found = difference(wilson(*first), wilson(*second))
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (found.low, found.high) == pytest.approx(confint_proportions_2indep(*first, *second, method="newcomb"), abs=1e-9)


def test_a_paired_difference_is_narrower_than_one_of_strangers_and_near_walds():
    both, only_first, only_second, neither = 60, 25, 10, 105
    counts = rows([1] * 85 + [0] * 115, [1] * both + [0] * only_first + [1] * only_second + [0] * neither, [1] * 200)
    found = paired_difference(counts)
    error = 1.96 * np.sqrt((only_first + only_second) / 200 - (15 / 200) ** 2) / np.sqrt(200)  # Wald's for matched pairs (Fleiss 1981)
    assert (found.value, found.low, found.high) == (0.075, pytest.approx(0.075 - error, abs=0.012), pytest.approx(0.075 + error, abs=0.012))
    strangers = difference(wilson(85, 200), wilson(70, 200))
    assert found.high - found.low < strangers.high - strangers.low


def test_models_that_agree_on_few_documents_may_yet_differ():
    found = paired_difference(rows([5] * 18, [5] * 18, [5] * 18))
    assert found.low < -0.05 < found.value == 0 < 0.05 < found.high


# ------------------------------------------------------------------------------------------------------------ retention


def test_the_bounds_of_a_ratio_are_fiellers():
    """Fieller 1954: the ratios for which tuned - ratio * untuned has a mean that may be 0, by a paired t-test."""
    random = np.random.default_rng(7)
    untuned = random.beta(20, 5, 400)
    tuned = untuned * random.beta(30, 4, 400)
    quantile = stats.t.ppf(0.95, 399)

    def statistic(ratio):
        apart = tuned - ratio * untuned
        return apart.mean() / (apart.std(ddof=1) / 20)

    grid = np.linspace(0.8, 0.95, 3001)
    inside = [ratio for ratio in grid if abs(statistic(ratio)) <= quantile]
    found = retention(rows(tuned, untuned), margin=0.8)
    assert found.value == pytest.approx(tuned.sum() / untuned.sum())
    assert found.low == pytest.approx(min(inside), abs=0.004)  # a document that lost everything is drawn too: 0.9 / 400 lower
    assert found.high == pytest.approx(max(inside), abs=0.003)


def test_retention_is_said_in_words():
    untuned = np.full(200, 0.8)
    noise = np.random.default_rng(0).normal(0, 0.05, 200)
    said = [retention(rows(untuned * share + noise, untuned), margin=0.9).says for share in (0.99, 0.91, 0.5)]
    assert said == ["holds", "undecided", "does not hold"]


def test_without_a_loss_the_bound_is_the_rule_of_three():
    """Hanley and Lippman-Hand 1983: with none among n, at most 3 / n with 95% confidence; so 0.95 takes some 59 documents."""
    assert retention(rows([1] * 100, [1] * 100), margin=0.9).low == pytest.approx(1 - 3 / 101, abs=1e-9)
    assert [retention(rows([1] * n, [1] * n), margin=0.95).says for n in (3, 40, 60)] == ["undecided", "undecided", "holds"]


def test_a_model_that_loses_one_document_in_twenty_rarely_passes_by_luck():
    random, passed = np.random.default_rng(5), 0
    for trial in range(60):
        passed += retention(rows(random.random(40) < 0.95, np.ones(40)), margin=0.951, seed=trial).says == "holds"
    assert passed <= 7  # 3 are meant; a plain bootstrap passes 8 of 60


def test_likelihoods_are_kept_as_perplexities_relate():
    """Two tokens a text, each half as likely as before: half of the likelihood is kept, whatever the texts."""
    sums = rows([2 * np.log(0.5)] * 400, [2] * 400)
    found = likelihood_kept(sums, margin=0.4)
    assert found.value == pytest.approx(0.5)
    assert (found.says, likelihood_kept(sums, margin=0.6).says, likelihood_kept(sums, margin=0.499).says) == ("holds", "does not hold", "undecided")
    longer = likelihood_kept(rows([0.0, 8 * np.log(0.5)], [2, 8]), margin=0.4)
    assert longer.value == pytest.approx(0.5**0.8), "tokens count, not texts"


def test_alike_likelihoods_of_few_texts_decide_nothing():
    """3 texts of 1 + n that would be declined, at 25 tokens each: exp(-3 * 10.8 / 25 / (1 + n)) is 0.95 at n = 24.3."""
    assert [likelihood_kept(rows([0] * n, [25] * n), margin=0.95).says for n in (2, 24, 25, 200)] == ["undecided", "undecided", "holds", "holds"]
    assert likelihood_kept(np.empty((0, 2)), margin=0.95).value is None


def test_a_model_that_would_decline_one_text_in_twenty_rarely_passes_by_luck():
    random, passed = np.random.default_rng(5), 0
    true = np.exp(-0.05 * 8 / 25)
    for trial in range(60):
        passed += likelihood_kept(rows(-8.0 * (random.random(40) < 0.05), [25] * 40), margin=true + 0.0001, seed=trial).says == "holds"
    assert passed <= 3  # a plain bootstrap passes 8 of 60


def test_where_nothing_can_be_kept_nothing_is_said_of_it():
    for scores in (np.empty((0, 2)), rows([0.5], [0])):
        assert (retention(scores, margin=0.95).value, retention(scores, margin=0.95).says) == (None, "undecided")


# ------------------------------------------------------------------------------------------------------------ tests


def test_mcnemar_is_every_deal_of_a_fair_coin_counted():
    for only_first, only_second in product(range(6), repeat=2):
        differ = only_first + only_second
        apart = [abs(sum(deal) * 2 - differ) for deal in product((0, 1), repeat=differ)]
        expected = sum(one >= abs(only_first - only_second) for one in apart) / len(apart)
        assert mcnemar(only_first, only_second) == pytest.approx(expected)
        assert mcnemar(only_first, only_second) == pytest.approx(statsmodels_mcnemar([[7, only_first], [only_second, 3]], exact=True).pvalue)


def test_sign_flips_of_ones_are_the_exact_mcnemar_test():
    for only_first, only_second in ((0, 0), (1, 0), (3, 0), (6, 0), (8, 1), (5, 5), (9, 3)):
        assert sign_flips([1] * only_first + [-1] * only_second + [0] * 4) == pytest.approx(mcnemar(only_first, only_second))


def test_sign_flips_count_every_flip_and_come_near_where_they_cannot():
    given = [5, -1, 2, 3, 4, -2, 1]
    sums = [abs(sum(sign * one for sign, one in zip(signs, given, strict=True))) for signs in product((1, -1), repeat=7)]
    assert sign_flips(given) == pytest.approx(sum(one >= abs(sum(given)) for one in sums) / len(sums))
    assert sign_flips([1] * 30 + [-1] * 14) == pytest.approx(mcnemar(30, 14), abs=0.006)


def test_holm_gives_the_worked_example():
    """p = 0.01, 0.04, 0.03, 0.005, the example of the articles on the Holm-Bonferroni method: the fourth and the first are decided, the others not."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_holm_is_the_step_down_of_the_paper():
    random = Random(2)
    for _ in range(20):
        p_values = [random.random() ** 3 for _ in range(random.randint(1, 8))]
        ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
        rejected = set()
        for step, place in enumerate(ranked):  # Holm 1979: stop at the first that is above 0.05 / (how many are left)
            if p_values[place] > 0.05 / (len(p_values) - step):
                break
            rejected.add(place)
        assert {place for place, adjusted in enumerate(holm(p_values)) if adjusted <= 0.05} == rejected


def test_an_interval_is_a_value_and_two_ends():
    assert Interval(0.5, 0.4, 0.6) == Interval(value=0.5, low=0.4, high=0.6)
