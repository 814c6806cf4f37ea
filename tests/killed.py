"""Processes to be killed: forked from one that has imported the libraries, so that a start costs no imports."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Callable
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
