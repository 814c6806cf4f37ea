"""Work in several processes: in order, as needed, and with errors that come through."""

import os
import time

import pytest

from docward.documents.pooling import FEW, in_order
from docward.errors import DocumentError, RunError


def slow_square(number):
    time.sleep(0.05 * (number % 3))
    return number * number, os.getpid()


def fragile(number):
    if number == 5:
        raise DocumentError("job 5 cannot be done")
    if number == 8:
        os._exit(9)
    return number


@pytest.mark.parametrize("num_proc", [1, 2])
def test_results_come_in_the_jobs_order_and_jobs_are_taken_as_they_are_needed(num_proc):
    taken = []
    jobs = (taken.append(number) or number for number in range(30))
    ahead = []
    processes = set()
    for place, (result, process) in enumerate(in_order(slow_square, jobs, num_proc=num_proc)):
        assert result == place * place
        ahead.append(len(taken) - place)
        processes.add(process)
    assert place == 29
    assert max(ahead) <= max(FEW + 1, 2 * num_proc + 1)
    assert (os.getpid() in processes) is (num_proc == 1)


@pytest.mark.parametrize("jobs", [0, 1, FEW])
def test_few_jobs_are_done_here(jobs):
    assert {process for _, process in in_order(slow_square, range(jobs), num_proc=8)} <= {os.getpid()}


def test_a_job_s_error_comes_as_it_is_after_the_results_before_it():
    seen = []
    with pytest.raises(DocumentError, match=r"^job 5 cannot be done$"):
        seen.extend(in_order(fragile, range(20), num_proc=2))
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("num_proc", "good"), [(1, 2), (1, 9), (2, 9)])
def test_an_error_in_getting_the_jobs_comes_after_the_results_before_it(num_proc, good):
    def jobs():
        yield from range(good)
        raise DocumentError("no more jobs")

    found = in_order(abs, jobs(), num_proc=num_proc)
    assert [next(found) for _ in range(good)] == list(range(good))
    with pytest.raises(DocumentError, match="no more jobs"):
        next(found)


def test_a_process_that_dies_is_an_error_that_says_how_to_go_on():
    with pytest.raises(RunError, match=r"A process of the build was killed, perhaps for want of memory\. Run the same command again"):
        list(in_order(fragile, range(6, 20), num_proc=2))


def test_who_stops_listening_stops_the_jobs():
    taken = []
    jobs = (taken.append(number) or number for number in range(1000))
    found = in_order(abs, jobs, num_proc=2)
    next(found)
    found.close()
    assert len(taken) < 20
