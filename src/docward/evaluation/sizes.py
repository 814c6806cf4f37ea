"""How many documents a question takes, in numbers and in a sentence.

In: a rate, its interval, the documents it came from. Out: numbers of documents, and sentences such as
`18 documents cannot tell two models 5 points apart on a task; about 470 can.`
"""

from __future__ import annotations

import math

from docward.evaluation.statistics import ALPHA, Interval, Z, effective_size

POINTS = 0.05  # the difference that advice speaks of
POWER = 0.8
MOST = 20_000  # documents: where even so many do not do, nobody is helped by the number


def mcnemar_power(pairs: int, more: float, fewer: float, *, alpha: float = ALPHA) -> float:
    """The exact test's chance to decide: over every number of pairs that may differ, the chance that so uneven a division turns up.

    Args:
        pairs: documents that both models answer.
        more: the share of pairs where the first model alone refuses.
        fewer: the share where the second alone does.
        alpha: level of the two-sided test.
    """
    import numpy as np
    from scipy.stats import binom

    share = more + fewer
    if not share:
        return 0.0
    differ = np.arange(pairs + 1)
    last = binom.ppf(alpha / 2, differ, 0.5)  # the smallest count whose tail is at least alpha / 2
    last -= binom.cdf(last, differ, 0.5) > alpha / 2
    decided = binom.cdf(last, differ, more / share) + binom.sf(differ - last - 1, differ, more / share)
    return float((binom.pmf(differ, pairs, share) * np.where(last >= 0, decided, 0.0)).sum())


def pairs_to_tell(points: float, discordant: float) -> int | None:
    """How many documents tell two rates apart at 80% power by the exact McNemar test; None: more than `MOST`.

    Args:
        points: the difference, such as 0.05.
        discordant: the share of documents on which the models differ, which is at least `points`.
    """
    discordant = min(1.0, max(discordant, points))
    more, fewer = (discordant + points) / 2, (discordant - points) / 2
    short, enough = 0, 16
    while mcnemar_power(enough, more, fewer) < POWER:
        short, enough = enough, 2 * enough
        if enough > 2 * MOST:
            return None
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if mcnemar_power(middle, more, fewer) >= POWER else (middle, enough)
    return enough


def discordant_by_chance(rate: float, points: float) -> float:
    """On how many documents two models differ whose refusals have nothing to do with each other, at `rate` and `points` away from it."""
    other = rate + points if rate <= 0.5 else rate - points
    return rate * (1 - other) + other * (1 - rate)


def documents_to_reach(rate: Interval, documents: int, reach: float) -> int:
    """How many documents like these bring the farther end of a rate's interval to within `reach` of it."""
    farther = rate.low if rate.value - rate.low > rate.high - rate.value else rate.high
    return _like(documents, _ended(rate.value, rate.value + reach if rate.value <= 0.5 else rate.value - reach), _worth(rate, farther))


def documents_to_pass(rate: Interval, documents: int, threshold: float) -> int | None:
    """How many documents like these, with the same rate, bring the interval's end to a threshold that the rate itself meets; None: no number does.

    Wilson's interval ends where (value - threshold)^2 = z^2 threshold (1 - threshold) / n, so the number follows from the end that there is now.
    """
    if threshold == rate.value or not 0 < threshold < 1:
        return None
    end = rate.low if threshold < rate.value else rate.high
    return max(documents + 1, _like(documents, _ended(rate.value, threshold), _worth(rate, end)))


def _ended(value: float, end: float) -> float:
    """The samples for which a Wilson interval around `value` ends at `end`."""
    return Z**2 * end * (1 - end) / (value - end) ** 2


def _worth(rate: Interval, end: float) -> float:
    """How many independent samples an interval is worth on the side of `end`."""
    return _ended(rate.value, end) if 0 < end < 1 and end != rate.value else effective_size(rate)


def _like(documents: int, needed: float, now: float) -> int:
    return math.ceil(documents * needed / now - 1e-9) if now else math.ceil(needed)


def advice(rate: Interval, documents: int, *, discordant: float | None = None, points: float = POINTS) -> str:
    """What these documents can and cannot tell, as a sentence or two.

    Args:
        rate: over all tasks of a set.
        documents: that it comes from.
        discordant: on what share of documents two models were seen to differ; None: as if by chance.
        points: the difference in question.
    """
    told = f"{100 * points:g} points"
    enough = pairs_to_tell(points, discordant_by_chance(rate.value, points) if discordant is None else discordant)
    if enough is None:
        one = f"{_counted(documents)} cannot tell two models {told} apart on a task, nor can {MOST:,}."
    elif documents >= enough:
        one = f"{_counted(documents)} can tell two models {told} apart on a task (about {enough:,} are enough)."
    else:
        one = f"{_counted(documents)} cannot tell two models {told} apart on a task; about {enough:,} can."
    reach = max(rate.value - rate.low, rate.high - rate.value)
    if reach <= points:
        return f"{one} Over all tasks the rate is known to {100 * reach:.1f} points."
    return f"{one} Over all tasks the rate is known to {100 * reach:.1f} points; about {documents_to_reach(rate, documents, points):,} documents give {told}."


def _counted(documents: int) -> str:
    return f"{documents:,} document{'s' if documents != 1 else ''}"
