"""Several processes on one run, as `accelerate launch` starts them: who am I, how many are we, wait for each other.

In: the environment that the launcher sets (RANK, WORLD_SIZE, LOCAL_RANK). Out: plain numbers. Without a launcher there is one process, number 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

from docward.errors import DocwardError, UsageError

Found = TypeVar("Found")
HEAD_START = 10.0  # seconds; a launcher ends the other processes within one of the first that fails
LONGEST_WAIT = timedelta(days=1)  # while process 0 builds the dataset, or answers what the others have answered already


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes work on the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its machine, and so of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def spread() -> bool:
    """Whether the launcher will spread a model's weights over the processes (FSDP, DeepSpeed): then it is loaded on the CPU first."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in {"1", "true"} for name in ("FSDP", "DEEPSPEED"))


def autocast() -> bool:
    """Whether the launcher was told to compute in bfloat16 beside weights in float32 (`mixed_precision: bf16`)."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "bf16"


def on_cpu() -> bool:
    """Whether the launcher was told to leave accelerators alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true"}


def wait() -> None:
    """Wait until all processes have come here. The first wait comes before all other talk: it says how long the processes may keep each other waiting.

    Raises:
        UsageError: they cannot talk to each other.
    """
    if count() == 1:
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu() or not (spread() or torch.accelerator.is_available()), timeout=LONGEST_WAIT)
    if state.num_processes != count():
        raise UsageError(
            f"{count()} processes were started for accelerators that talk to each other, and this machine has none. Launch them with "
            "recipes/accelerate/ddp_cpu.yaml or --cpu, or do without a launcher."
        )
    state.wait_for_everyone()


def on_main(do: Callable[[], Found]) -> Found:
    """What process 0 finds, told to all; its error is everybody's. All processes must call it."""
    if count() == 1:
        return do()
    from accelerate.utils import broadcast_object_list

    said: list[tuple[Found | None, DocwardError | None]] = [(None, None)]
    if rank() == 0:
        try:
            said[0] = (do(), None)
        except DocwardError as error:
            said[0] = (None, error)
    told: tuple[Any, DocwardError | None] = broadcast_object_list(said)[0]
    if told[1] is not None:
        raise told[1]
    return cast(Found, told[0])


def gathered(mine: Found) -> list[Found]:
    """What each process has found, by its number. All processes must call it."""
    if count() == 1:
        return [mine]
    from accelerate.utils import gather_object

    return cast(list[Found], gather_object([mine]))


def give_way() -> None:
    """Before a process ends with an error: let process 0 speak first. Mostly it has the same to say, and the launcher then ends this one."""
    if rank():
        time.sleep(HEAD_START)
