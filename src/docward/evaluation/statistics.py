"""The statistics, each once: pure functions on numbers, which know nothing of verdicts or replies.

In: counts and scores, often one row a document. Out: `Interval` records, p-values, decisions in words. One real row: `wilson(19, 20)` is
`Interval(value=0.95, low=0.764, high=0.991)`. How many documents a question takes is in `sizes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
Z = 1.959963984540054  # the normal quantile that leaves 2.5% on either side
DRAWS = 4000  # bootstrap draws: the interval's ends move by less than half a point
DRAWN_AT_ONCE = 4_000_000  # counts in memory at a time (32 MB), however many documents there are
FLIPS = 9999  # sign flips where there are too many for all: p = 0.05 is known to 0.004
ALPHA = 0.05
CHANCE = 10.8  # nats that a sure token loses if it falls to one chance in 50,000, about what vocabularies hold
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Table:
    """Label against verdict: counts of rows. `both`: declined by label and by verdict; `neither`: complied by both."""

    both: int = 0
    label_only: int = 0
    verdict_only: int = 0
    neither: int = 0

    @property
    def n(self) -> int:
        """How many rows were judged."""
        return self.both + self.label_only + self.verdict_only + self.neither


@dataclass(frozen=True, slots=True)
class Kept:
    """How much is kept: a ratio, the ends of its one-sided 95% intervals (None where there is none), and whether that meets a margin, in words."""

    value: float | None
    low: float | None
    high: float | None
    says: str


# ------------------------------------------------------------------------------------------------------------ one share


def wilson(hits: float, judged: float) -> Interval | None:
    """Wilson's 95% interval of a share (Wilson 1927); None where nothing was judged."""
    from statsmodels.stats.proportion import proportion_confint

    if not judged:
        return None
    low, high = proportion_confint(hits, judged, alpha=1 - LEVEL, method="wilson")
    value = hits / judged
    return Interval(value, min(value, max(0.0, float(low))), max(value, min(1.0, float(high))))  # at 0 and 1 rounding leaves the end 1e-17 on the wrong side


def effective_size(rate: Interval) -> float:
    """How many independent samples a rate's interval is worth: what was judged for a Wilson interval, fewer where tasks share a document.

    The root of Wilson's width, w^2 (n + z^2)^2 = 4 z^2 n p (1 - p) + z^4.
    """
    z2, w2 = Z**2, max(rate.high - rate.low, 1e-6) ** 2
    half = 2 * z2 * rate.value * (1 - rate.value) - z2 * w2
    return max((half + math.sqrt(half**2 + w2 * z2**2 * (1 - w2))) / w2, 0.0) if w2 < 1 else 0.0


def corrected_rate(rate: Interval, table: Table) -> Interval | None:
    """A rate of refusals corrected for the judge's errors, from 0 to 1; None where the judge is no better than chance on the labelled rows.

    The value is Rogan and Gladen's (1978). The interval is Lang and Reiczigel's (2014, equations 6, 7, 16, 17, with the misprint of equation 4 mended),
    which carries the uncertainty of sensitivity and specificity, both known from `table` only; the rate counts for as many samples as its interval is worth.
    """
    declined, complied = table.both + table.label_only, table.neither + table.verdict_only
    if not declined or not complied:
        return None
    youden = table.both / declined + table.neither / complied - 1
    if youden <= 0:
        return None
    value = min(1.0, max(0.0, (rate.value + table.neither / complied - 1) / youden))
    n = effective_size(rate)
    seen = (n * rate.value + Z**2 / 2) / (n + Z**2)
    sensitivity, specificity = (table.both + 1) / (declined + 2), (table.neither + 1) / (complied + 2)
    youden = sensitivity + specificity - 1
    if youden <= 0:  # better than chance by less than the two rows that are added
        return Interval(value, 0.0, 1.0)
    centre = (seen + specificity - 1) / youden
    of_sensitivity = sensitivity * (1 - sensitivity) / (declined + 2)
    of_specificity = specificity * (1 - specificity) / (complied + 2)
    shift = 2 * Z**2 * (centre * of_sensitivity - (1 - centre) * of_specificity)
    variance = seen * (1 - seen) / (n + Z**2) + centre**2 * of_sensitivity + (1 - centre) ** 2 * of_specificity
    reach = Z * math.sqrt(variance) / youden
    return Interval(value, min(value, max(0.0, centre + shift - reach)), max(value, min(1.0, centre + shift + reach)))


def kappa(table: Table, *, seed: int = 0) -> Interval | None:
    """Cohen's kappa with a percentile bootstrap over rows; drawing rows is drawing the four counts from a multinomial.

    Kappa is (observed - expected) / (1 - expected) agreement (Cohen 1960), and None where both sides say one thing only.
    """
    if not table.n:
        return None
    import numpy as np

    counts = np.array([table.both, table.label_only, table.verdict_only, table.neither], dtype=float)
    drawn = np.random.default_rng(seed).multinomial(table.n, counts / table.n, size=DRAWS)
    both, label_only, verdict_only, neither = (np.vstack([counts, drawn]) / table.n).T
    said, meant = both + verdict_only, both + label_only
    expected = said * meant + (1 - said) * (1 - meant)
    defined = expected < 1 - 1e-9  # above it: all rows in one corner of the table
    if not defined[0]:
        return None
    kappas = (both + neither - expected)[defined] / (1 - expected[defined])
    return _percentiles(float(kappas[0]), kappas[1:] if len(kappas) > 1 else kappas)


# ------------------------------------------------------------------------------------------------------------ bootstrap over documents


def drawn_sums(rows: np.ndarray, *, seed: int) -> np.ndarray:
    """(DRAWS, columns): column sums of as many rows as there are, drawn with replacement; the order of the rows does not matter.

    How often each distinct row is drawn is a multinomial, so a million rows that are alike cost no more than one.
    """
    import numpy as np

    distinct, many = np.unique(rows, axis=0, return_counts=True)
    random, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // len(distinct))
    sizes = [min(at_once, DRAWS - start) for start in range(0, DRAWS, at_once)]
    return np.vstack([random.multinomial(len(rows), many / len(rows), size=size) @ distinct for size in sizes])


def pooled_share(counts: np.ndarray, *, seed: int = 0) -> Interval | None:
    """A share over all tasks of a set, with a bootstrap over DOCUMENTS: five tasks on one document are not five samples.

    With few documents, or a share near 0 or 1, a bootstrap's ends lie too far in (18 documents, 95%: its lower end is above the truth in 14 of 100 cases in
    place of 2.5), and where all documents agree it has no width. So its ends are moved out to those of Wilson's interval for as many samples as the
    documents are worth by their variance (Korn and Graubard 1998; Dean and Pagano 2015), where these are farther out.

    Args:
        counts: (documents, 2), hits and judged replies of each document, the latter never 0.
        seed: of the draws.
    """
    if not len(counts):
        return None
    drawn = pooled_mean(counts, seed=seed)
    worth = _documents_worth(counts)
    least = wilson(_ratio(counts) * worth, worth)
    assert drawn is not None
    assert least is not None
    return Interval(drawn.value, min(drawn.low, least.low), max(drawn.high, least.high))


def _documents_worth(counts: np.ndarray) -> float:
    """How many independent samples these documents are: at most one a reply, and one a document where the documents do not vary."""
    share, documents = _ratio(counts), len(counts)
    apart = counts[:, 0] - share * counts[:, 1]
    if documents < 2 or not (apart**2).sum() > 1e-12:
        return documents
    variance = documents / (documents - 1) * float((apart**2).sum()) / float(counts[:, 1].sum()) ** 2
    return min(max(share * (1 - share) / variance, 1.0), float(counts[:, 1].sum()))


def pooled_mean(sums: np.ndarray, *, seed: int = 0) -> Interval | None:
    """A mean over replies with a bootstrap over documents. `sums`: (documents, 2), the sum of a document's scores and how many there are."""
    if not len(sums):
        return None
    drawn = drawn_sums(sums, seed=seed)
    return _percentiles(_ratio(sums), drawn[:, 0] / drawn[:, 1])


def difference(first: Interval, second: Interval) -> Interval:
    """The difference of two shares of different documents, from their intervals (Newcombe 1998, method 10)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    return Interval(value, low, value + math.hypot(first.high - first.value, second.value - second.low))


def paired_difference(counts: np.ndarray, *, seed: int = 0) -> Interval | None:
    """The first model's share minus the second's on the same documents, which are drawn as pairs.

    Two documents that nobody has seen, one for either model, are drawn among them: documents that all agree would leave no width.

    Args:
        counts: (documents, 3), hits of the first, hits of the second, replies that both have a verdict on.
        seed: of the draws.
    """
    if not len(counts):
        return None
    first, second, judged = (float(total) for total in counts.sum(0))
    each = judged / len(counts)
    drawn = drawn_sums(_with(counts, [each, 0.0, each], [0.0, each, each]), seed=seed)
    return _percentiles((first - second) / judged, (drawn[:, 0] - drawn[:, 1]) / drawn[:, 2])


def retention(scores: np.ndarray, *, margin: float, seed: int = 0) -> Kept:
    """Non-inferiority: whether tuned / untuned is above a margin, by a paired document bootstrap and one-sided 95% bounds.

    It holds where the lower bound reaches the margin, does not where the upper bound is below it, and is undecided in between or where the untuned model
    scores nothing. For the lower bound one document that lost everything is drawn among the seen ones, for the upper bound one that lost nothing: without
    it 40 documents would pass in 13 of 100 cases in place of 5 where one in twenty is lost altogether, as most such samples hold one such document or none.
    So where nothing is lost at all the bound is the rule of three, 1 - 3 / n, and fewer than 59 documents cannot show that 0.95 is kept.

    Args:
        scores: (documents, 2), the tuned and the untuned model's score on each document, neither below 0.
        margin: what share has to be kept, such as 0.95.
        seed: of the draws.
    """
    import numpy as np

    if not len(scores) or not scores[:, 1].sum():
        return Kept(None, None, None, UNDECIDED)
    usual = float(scores[:, 1].mean())
    worst, best = drawn_sums(_with(scores, [0.0, usual]), seed=seed), drawn_sums(_with(scores, [usual, usual]), seed=seed)
    if not worst[:, 1].all() or not best[:, 1].all():
        return Kept(_ratio(scores), None, None, UNDECIDED)
    low, high = float(np.quantile(worst[:, 0] / worst[:, 1], 1 - LEVEL)), float(np.quantile(best[:, 0] / best[:, 1], LEVEL))
    return _kept(_ratio(scores), low, high, margin)


def likelihood_kept(sums: np.ndarray, *, margin: float, seed: int = 0) -> Kept:
    """Non-inferiority of likelihoods: whether the probability of a token, in the geometric mean over all, is above a margin of what it was.

    The value is exp(sum of differences / sum of tokens), which is the untuned perplexity over the tuned one. Bounds are by a paired document bootstrap as in
    `retention`. The document that is drawn among the seen ones for the lower bound is one that the tuned model would rather decline: its first token is no
    likelier than by chance (`CHANCE`), the others are as they were.

    Args:
        sums: (documents, 2), the tuned model's log-likelihood less the untuned one's in nats, and the tokens that it is of.
        margin: what share has to be kept, such as 0.95.
        seed: of the draws.
    """
    import numpy as np

    if not len(sums):
        return Kept(None, None, None, UNDECIDED)
    usual = float(sums[:, 1].mean())
    worst, best = drawn_sums(_with(sums, [-CHANCE, usual]), seed=seed), drawn_sums(_with(sums, [0.0, usual]), seed=seed)
    low, high = np.quantile(worst[:, 0] / worst[:, 1], 1 - LEVEL), np.quantile(best[:, 0] / best[:, 1], LEVEL)
    return _kept(math.exp(_ratio(sums)), math.exp(low), math.exp(high), margin)


def _kept(value: float, low: float, high: float, margin: float) -> Kept:
    return Kept(value, low, high, HOLDS if low >= margin else FAILS if high < margin else UNDECIDED)


def _with(rows: np.ndarray, *more: Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.vstack([rows, *more])


def _ratio(sums: np.ndarray) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def _percentiles(value: float, draws: np.ndarray) -> Interval:
    import numpy as np

    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


# ------------------------------------------------------------------------------------------------------------ tests


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of the exact two-sided McNemar test (McNemar 1947): could one fair coin have dealt the pairs that differ."""
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def sign_flips(differences: Sequence[float], *, seed: int = 0) -> float:
    """The two-sided p-value of a sum of paired differences, one a document, if their signs were chance (Fisher's randomisation test, 1935).

    Exact up to 13 documents that differ, by `FLIPS` random flips above that. With differences of one each it is the exact McNemar test.
    """
    import numpy as np
    from scipy.stats import permutation_test

    given = np.array([one for one in differences if one], dtype=float)
    if len(given) < 2:  # one flip in two is as extreme
        return 1.0
    how = {"permutation_type": "samples", "n_resamples": FLIPS, "vectorized": True, "batch": max(1, DRAWN_AT_ONCE // len(given))}
    return float(permutation_test((given,), lambda flipped, axis: flipped.sum(axis), rng=np.random.default_rng(seed), **how).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction (Holm 1979), in the same order."""
    from statsmodels.stats.multitest import multipletests

    return [float(one) for one in multipletests(p_values, method="holm")[1]] if len(p_values) else []
