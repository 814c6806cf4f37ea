"""What a launcher starts in the tests: docward's command line, with what an environment variable asks for put in its way.

HOLD_AT=6     stand still before the seventh step, so that there is time to be killed in
FLIP_JUDGE=1  a judge by coin: each reply's text and key decide its verdict, so that no reply can be missing or another one unnoticed
AS_GPUS=1     Accelerate takes these CPU processes for ones with a GPU each, and so does not leave FSDP out
HOLD_BATCH=2  generate in small batches, write how many there were to $HELD.<process>, and stand still after the second (0: never)
PATIENCE=FILE process 0 writes there how long it would have waited for the other ones
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from docward.records import text_hash
from docward.types import Outcome, Reply, Verdict


def hold(at: int, held: Any) -> None:
    """Call `held` before the step after step `at`."""
    from docward.tuning.trainer import DefenseTrainer

    step = DefenseTrainer.training_step

    def training_step(self: Any, *given: Any) -> Any:
        if self.state.global_step == at:
            held()
        return step(self, *given)

    DefenseTrainer.training_step = training_step  # type: ignore[method-assign]


class FlipJudge:
    name = "flip"

    def judge(self, reply: Reply) -> Verdict:
        outcome = (Outcome.REFUSED, Outcome.COMPLIED, Outcome.UNJUDGED)[int(text_hash(reply.key, reply.reply)[:8], 16) % 3]
        return Verdict(reply.key, reply.document_id, reply.label, reply.task, outcome, "flip", "a coin")


def as_gpus() -> None:
    """Accelerate leaves FSDP out where processes have no accelerators; all the rest of its FSDP2, and PyTorch's, works on the CPU through gloo."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def begun(self: Any, *given: Any, **options: Any) -> None:
        begin(self, *given, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begun


def _stand_still() -> None:
    Path(os.environ["HELD"]).touch()
    time.sleep(3600)


def small_batches(hold: int) -> None:
    """Make evaluation take some of a few prompts, and stand still after batch `hold`."""
    from docward.evaluation import evaluating

    generate, held = evaluating.generate, Path(f"{os.environ['HELD']}.{os.environ['RANK']}")

    def generated(*given: Any, **options: Any) -> Any:
        for number, batch in enumerate(generate(*given, **options | {"max_batch_tokens": 600}), 1):
            yield batch  # and now it is on disk
            held.write_text(str(number))
            if number == hold:
                time.sleep(3600)

    evaluating.generate = generated


def main() -> None:
    if os.environ.get("AS_GPUS"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        as_gpus()
    if os.environ.get("FLIP_JUDGE"):
        from docward.tuning import probing

        probing.get_judge = lambda _: FlipJudge()  # type: ignore[assignment]
    if batch := os.environ.get("HOLD_BATCH"):
        small_batches(int(batch))
    if at := os.environ.get("HOLD_AT"):
        hold(int(at), _stand_still)
    from docward.cli.main import main as docward

    try:
        docward()
    finally:
        if (place := os.environ.get("PATIENCE")) and os.environ["RANK"] == "0":
            import torch

            group = torch.distributed.distributed_c10d._get_default_group()
            Path(place).write_text(str(group._get_backend(torch.device("cpu")).options._timeout))


if __name__ == "__main__":
    main()
