"""The order of a run: what stands in one step, that nothing is left out or seen twice, and that processes divide the work and nothing else."""

from __future__ import annotations

from collections import Counter
from random import Random
from time import process_time

import pytest

from docward.rendering import Rendered
from docward.tuning.packing import Group, Row, group_of
from docward.tuning.planning import plan_steps, share_out
from docward.tuning.trainer import Steps


def group(name: str, *, rows: int = 2, matched: str = "", length: int = 12) -> Group:
    """A document of some tasks: ids that begin alike and end in the row's own number."""
    base = [5 + sum(name.encode()) % 200] * length
    made = [Row(Rendered([*base, 210 + place, 3, 4], length + 1, 0, range(0)), factor=1.0 + place, term="defense", task=f"t{place}") for place in range(rows)]
    return group_of(made, document=name, matched=matched or name)


def triples(count: int, *, rows: int = 2, singles: int = 0) -> list[Group]:
    """Matched triples, and general examples of one row between them."""
    found = [group(f"d{place}{label}", rows=rows, matched=f"d{place}") for place in range(count) for label in "mso"]
    for place in range(singles):
        found.insert(place * 3, group(f"g{place}", rows=1))
    return found


def rows_of(groups: list[Group], step) -> int:
    return sum(len(groups[place].rows) for place in step.groups)


@pytest.mark.parametrize("singles", [0, 5, 40])
@pytest.mark.parametrize("most", [6, 8, 16])
def test_matched_documents_land_in_one_step_where_they_fit(most, singles):
    groups = triples(9, singles=singles)
    steps = plan_steps(groups, examples_per_step=most, epochs=3, seed=0)
    together = [{groups[place].matched for place in step.groups} for step in steps]
    assert all(sum(name in names for names in together) == 3 for name in {one.matched for one in groups}), "once an epoch, whole"


@pytest.mark.parametrize(("most", "rows"), [(1, 2), (3, 2), (5, 2), (7, 5), (6, 2), (64, 3)])
def test_every_document_comes_once_an_epoch_in_steps_that_are_not_too_large(most, rows):
    groups = triples(7, rows=rows, singles=4)
    steps = plan_steps(groups, examples_per_step=most, epochs=2, seed=1)
    assert Counter(place for step in steps for place in step.groups) == dict.fromkeys(range(len(groups)), 2)
    assert all(rows_of(groups, step) <= most or len(step.groups) == 1 for step in steps)


def test_a_matched_group_too_large_for_a_step_keeps_each_document_whole_where_that_fits():
    groups = [group(f"{name}{part}", rows=2, matched="all") for name in "msoxyz" for part in (0, 1)]
    for one in groups:
        one.document = one.document[0]  # two positions of one document
    steps = plan_steps(groups, examples_per_step=4, epochs=1, seed=0)
    assert all(len({groups[place].document for place in step.groups}) == 1 and len(step.groups) == 2 for step in steps)


def test_steps_are_as_full_as_whole_triples_and_singles_allow():
    groups = triples(12, singles=12)  # 6 + 1 rows fill a step of 7
    assert len(plan_steps(groups, examples_per_step=7, epochs=1, seed=0)) <= 13


def test_each_epoch_has_an_order_of_its_own_and_the_seed_decides_it():
    groups = triples(20)

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        steps = plan_steps(groups, examples_per_step=6, epochs=2, seed=seed)
        return [step.groups for step in steps if epoch < step.epoch <= epoch + 1]

    assert order(0, 0) != order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)


def test_documents_that_are_not_matched_meet_others_in_each_epoch():
    groups = triples(20)
    steps = plan_steps(groups, examples_per_step=12, epochs=2, seed=0)
    pairs = [{frozenset(groups[place].matched for place in step.groups) for step in steps if epoch < step.epoch <= epoch + 1} for epoch in range(2)]
    assert all(len(pair) == 2 for epoch in pairs for pair in epoch)
    assert len(pairs[0] & pairs[1]) < 5


def test_the_order_does_not_depend_on_how_the_documents_are_stored():
    groups = triples(8, singles=3)
    turned = groups[::-1]
    there = plan_steps(groups, examples_per_step=6, epochs=1, seed=0)
    back = plan_steps(turned, examples_per_step=6, epochs=1, seed=0)
    assert [{groups[place].document for place in step.groups} for step in there] == [{turned[place].document for place in step.groups} for step in back]


@pytest.mark.parametrize(("epochs", "wanted"), [(0.25, 5), (0.3, 6), (1, 20), (1.5, 30), (1.1, 22), (2.05, 41), (0.001, 1)])
def test_a_part_of_an_epoch_ends_early(epochs, wanted):
    steps = plan_steps(triples(20), examples_per_step=6, epochs=epochs, seed=0)
    assert len(steps) == wanted
    assert steps[-1].epoch == pytest.approx(wanted / 20)
    assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)


def test_a_longer_run_begins_as_the_shorter_one():
    short, long = (plan_steps(triples(10), examples_per_step=6, epochs=epochs, seed=4) for epochs in (1.4, 3))
    assert long[: len(short)] == short


def test_planning_grows_no_faster_than_the_documents():
    def seconds(count: int) -> float:
        groups = triples(count)
        best = 9.9
        for _ in range(2):
            start = process_time()
            plan_steps(groups, examples_per_step=8, epochs=1, seed=0)
            best = min(best, process_time() - start)
        return best

    assert seconds(4000) < 3 * 8 * seconds(500)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_sharing_out_balances_and_loses_none(processes):
    random = Random(0)
    sizes = [random.randrange(20, 900) for _ in range(60)]
    shares = share_out(sizes, processes)
    assert sorted(place for share in shares for place in share) == list(range(60))
    loads = [sum(sizes[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
    assert max(loads) <= (4 / 3) * max(sum(sizes) / processes, max(sizes))  # Graham's bound for longest first
    assert all(share == sorted(share) for share in shares)


def test_more_processes_than_documents_leave_some_without():
    assert share_out([5, 9], 4) == [[1], [0], [], []]
    assert share_out([], 2) == [[], []]


def passes_of(groups: list[Group], steps, processes: int, rank: int, most: int, compute: str) -> list[list[dict]]:
    given = {"compute": compute, "max_batch_tokens": most, "pad": 0, "loss_on": "answers", "rank": rank, "processes": processes}
    made = Steps(groups, steps, **given)
    assert len(made) == len(steps)
    return [made[place] for place in range(len(steps))]


def learned(one: dict) -> list[tuple[object, ...]]:
    """What each example of a pass has to say, and with what factor: independent of the layout."""
    found = []
    for number, factor in enumerate(one["factors"].tolist()):
        targets = one["target"][one["pair"][one["owner"] == number]].tolist()
        found.append((one["terms"][number], round(factor, 6), *targets))
    return found


@pytest.mark.parametrize("compute", ["rows", "shared"])
@pytest.mark.parametrize("most", [15, 40, 10_000])
def test_any_number_of_processes_takes_the_same_examples_in_equally_many_passes(compute, most):
    groups = [*triples(3, rows=3, singles=3), group("long", rows=5, matched="d0", length=9)]
    steps = plan_steps(groups, examples_per_step=5, epochs=1, seed=0)
    assert min(len(step.groups) for step in steps) == 1, "a step that not every process has a part of"
    wanted = [Counter(row for one in passes for row in learned(one)) for passes in passes_of(groups, steps, 1, 0, most, compute)]
    assert sum(counted.total() for counted in wanted) == sum(len(one.rows) for one in groups)
    for processes in (1, 2, 3):
        ranks = [passes_of(groups, steps, processes, rank, most, compute) for rank in range(processes)]
        for place, together in enumerate(zip(*ranks, strict=True)):
            assert len({len(passes) for passes in together}) == 1, "equally many"
            real = [one for passes in together for one in passes if one["counted"]]
            idle = [one for passes in together for one in passes if not one["counted"]]
            assert Counter(row for one in real for row in learned(one)) == wanted[place]
            assert all(not one["factors"].any() and not one["tokens"] for one in idle)
            assert all(one["input_ids"].numel() <= most for one in [*real, *idle])


def test_a_process_without_a_document_of_its_own_idles_and_keeps_step():
    groups = triples(1, rows=1)
    steps = plan_steps(groups, examples_per_step=1, epochs=1, seed=0)
    for rank in range(2):
        taken = passes_of(groups, steps, 2, rank, 10_000, "shared")
        assert [len(passes) for passes in taken] == [1, 1, 1]
        assert [passes[0]["counted"] for passes in taken] == [rank == 0] * 3
