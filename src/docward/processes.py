"""Several processes on one run, as `accelerate launch` starts them: who am I, how many are we, wait for each other.

In: the environment that the launcher sets (RANK, WORLD_SIZE, LOCAL_RANK). Out: plain numbers. Without a launcher there is one process, number 0.
"""

from __future__ import annotations

import os
from datetime import timedelta

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


def wait() -> None:
    """Wait until all processes have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(timeout=LONGEST_WAIT).wait_for_everyone()
