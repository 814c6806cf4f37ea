"""The order of a run: which documents make up which optimizer step, and which process takes them.

In: groups of rows, settings, a seed. Out: a list of steps, known before tuning begins and the same for any number of processes and any compute. So a run can
go on from any step, on other machines too, with no example left out or seen twice. One real step: `Step(groups=(14, 15, 16), epoch=0.25)`, a matched triple.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from docward.tuning.packing import Group


@dataclass(frozen=True, slots=True)
class Step:
    """Groups, by their place in the training data, whose gradients one optimizer step adds up; `epoch` is how many passes are done after it."""

    groups: tuple[int, ...]
    epoch: float


def plan_steps(groups: Sequence[Group], *, examples_per_step: int, epochs: float, seed: int) -> list[Step]:
    """All steps of a run: a seeded shuffle, another in each epoch, in which matched documents go into one step where they fit.

    Args:
        groups: the training data.
        examples_per_step: rows that a step holds at most; a document with more rows is a step of its own.
        epochs: passes over the data; a part of one ends early.
        seed: of the shuffles.
    """
    steps: list[Step] = []
    for epoch in range(math.ceil(epochs)):
        homes = _homes(groups, examples_per_step, Random(f"{seed}|{epoch}"))
        wanted = math.ceil(round(min(1.0, epochs - epoch) * len(homes), 6))
        steps += [Step(tuple(home), epoch + (place + 1) / len(homes)) for place, home in enumerate(homes[:wanted])]
    return steps


def _homes(groups: Sequence[Group], most: int, random: Random) -> list[list[int]]:
    """First fit: each unit goes into the earliest step with room."""
    matched: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        matched[group.matched].append(place)
    order = sorted(matched)
    random.shuffle(order)
    homes: list[list[int]] = []
    roomy: dict[int, list[int]] = {}  # rows of room -> heap of the steps that have so much: looking through all steps would be quadratic
    for unit in (unit for name in order for unit in _units(groups, matched[name], most)):
        size = sum(len(groups[place].rows) for place in unit)
        room = min((one for one in roomy if one >= size), key=lambda one: roomy[one][0], default=None)
        if room is None:
            room, home = max(most, size), len(homes)
            homes.append([])
        else:
            home = heappop(roomy[room])
            if not roomy[room]:
                del roomy[room]
        homes[home] += unit
        if room > size:
            heappush(roomy.setdefault(room - size, []), home)
    random.shuffle(homes)
    return homes


def _units(groups: Sequence[Group], places: Sequence[int], most: int) -> Iterator[list[int]]:
    """Matched documents together, or one by one where a step cannot hold them all."""
    if sum(len(groups[place].rows) for place in places) <= most:
        yield list(places)
    else:
        documents: dict[str, list[int]] = defaultdict(list)
        for place in places:
            documents[groups[place].document].append(place)
        for whole in documents.values():
            yield from [whole] if sum(len(groups[place].rows) for place in whole) <= most else [[place] for place in whole]


def share_out(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Which process takes which group: the largest first, each to the process with the least so far (Graham 1969); in the order of the step.

    Args:
        sizes: tokens of each group.
        processes: how many there are.
    """
    loads, taken = [0] * processes, [[] for _ in range(processes)]  # type: tuple[list[int], list[list[int]]]
    for place in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
        least = loads.index(min(loads))
        loads[least] += sizes[place]
        taken[least].append(place)
    return [sorted(one) for one in taken]
