"""Docward's command line in two processes of one run, with what an environment variable asks for put in its way.

HOLD_AT=6     stand still before the seventh step, so that there is time to be killed in
FLIP_JUDGE=1  a judge by coin: each reply's text and key decide its verdict, so that no reply can be missing or another one unnoticed
AS_GPUS=1     Accelerate takes these CPU processes for ones with a GPU each, and so does not leave FSDP out
HOLD_BATCH=2  generate in small batches, write how many there were to $HELD.<process>, and stand still after the second (0: never)
PATIENCE=FILE process 0 writes there how long it would have waited for the other ones

The processes are told what `accelerate launch` tells those it starts, but are forked from one that has imported the libraries: a launcher and two processes
that import them anew take 20 s. `test_processes.py` starts some by the launcher.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from docward.records import text_hash
from docward.types import Outcome, Reply, Verdict
from killed import started

ACCELERATE = Path(__file__).parents[1] / "recipes" / "accelerate"


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


class Launched:
    """`docward WORDS` in two processes, as launched with a file of `recipes/accelerate`; what each says goes to `<said>.<rank>`.

    At the end of a `with` they are killed.
    """

    def __init__(self, words: list[str], said: Path, *, config: str = "ddp_cpu", **more: str) -> None:
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser
        from accelerate.utils.launch import prepare_multi_gpu_env
        from torch.distributed import TCPStore

        given = ["--config_file", str(ACCELERATE / f"{config}.yaml"), "--num_processes", "2", "--main_process_port", "0", "docward"]
        told = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(given))[0])
        self.meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # held by the launcher, as there
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.meeting.port), "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"} | more
        self.said = [Path(f"{said}.{rank}") for rank in range(2)]
        self.processes: list[BaseProcess] = [
            started("launched", "process", words, told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, self.said[rank]) for rank in range(2)
        ]

    def wait(self, reached: Callable[[], object], patience: float = 300) -> None:
        """Until something is true, or one has ended, or for some seconds."""
        deadline = time.monotonic() + patience
        while not reached() and all(one.is_alive() for one in self.processes) and time.monotonic() < deadline:
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        for one in self.processes:
            one.kill()
        for one in self.processes:
            one.join()

    def finish(self, patience: float = 300) -> str:
        """Wait until both have ended well; what they said."""
        for one in self.processes:
            one.join(patience)
        codes, said = [one.exitcode for one in self.processes], "".join(file.read_text() for file in self.said)
        self.kill()
        assert codes == [0, 0], said[-4000:]
        return said


def process(words: list[str], environment: dict[str, str], said: Path) -> None:
    """One of the processes, in float32 on all machines."""
    import torch

    from docward import devices

    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    devices.fast_in_bf16 = lambda: False
    sys.argv = ["docward", *words]
    main()


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
