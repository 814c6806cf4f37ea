"""Processes to be killed: forked from one that has imported the libraries, so that a start costs no imports."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

LIBRARIES = ["docward.cli.evaluating", "docward.loop", "docward.tuning.tuning", "docward.tuning.probing", "transformers.models.llama.modeling_llama"]


def started(module: str, function: str, *given: Any, **options: Any) -> multiprocessing.process.BaseProcess:
    """A new process that calls a function of a module with what can be pickled."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    process = context.Process(target=call, args=(module, function, given, options))
    process.start()
    return process


def call(module: str, function: str, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), function)(*given, **options)


def kill_when(process: multiprocessing.process.BaseProcess, reached: Callable[[], object], *, patience: float = 150) -> None:
    """Kill -9 as soon as something is true, or the process has ended, or after some seconds."""
    deadline = time.monotonic() + patience
    while not reached() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()


def die_before(number: int, noted: Path) -> None:
    """Kill -9 this process before its call of that number which makes something last: a file's bytes, a draft in its place, a file taken away.

    Bytes that are not yet to last are torn. The calls are written to `noted` as they come, a line each.
    """
    calls = count(1)

    def dying(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *given: Any, **more: Any) -> Any:
            if name == "unlink" and not Path(what).exists():
                return whole(what, *given, **more)
            place = Path(f"/proc/self/fd/{what}").readlink() if name == "fsync" else given[0] if given else what
            with noted.open("a") as said:
                said.write(f"{name} {Path(place).name}\n")
            if next(calls) == number:
                if name == "fsync":
                    os.truncate(place, max(0, os.fstat(what).st_size - 9))
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(what, *given, **more)

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, dying(name, getattr(os, name)))
