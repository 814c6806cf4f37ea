"""Where a model runs here, and in which precision.

In: nothing, this machine is looked at. Out: the name of a device, and a dtype.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from docward import processes

if TYPE_CHECKING:
    import torch

PROBES = 15  # turns of a matrix product of each kind


def best_device() -> str:
    """`cuda` or another accelerator where there is one (this process's own, where a launcher started several), else `cpu`."""
    import torch

    if processes.spread() or processes.on_cpu():
        return "cpu"
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if not found:
        return "cpu"
    return f"{found.type}:{processes.local_rank()}" if processes.count() > 1 else found.type


def default_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is the faster one, else float32."""
    import torch

    return torch.bfloat16 if device != "cpu" or (processes.spread() and torch.accelerator.is_available()) or fast_in_bf16() else torch.float32


def fast_in_bf16() -> bool:
    """Whether this CPU is to compute in bfloat16: it has instructions for that (AVX-512 BF16 or AMX), or else is faster when tried.

    Where instructions tell, nothing is tried: other work on the machine could change the answer, and weights in another precision are other weights, from which
    a run that was stopped does not go on. What `ONEDNN_MAX_CPU_ISA` forbids is not counted.
    """
    import torch

    tells = [getattr(torch.cpu, name, bool) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return ("ONEDNN_MAX_CPU_ISA" not in os.environ and any(one() for one in tells)) or bf16_speedup() > 1.2


def bf16_speedup() -> float:
    """How many times faster a bfloat16 matrix product is than a float32 one on this CPU; takes about 50 ms.

    The best of several turns counts, by one thread: other work on the machine only ever slows one down, most of all one that has to wait for a second, and two
    processes of one run, or a run and its resumption, must find the same.
    """
    import torch

    def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(64, 576).to(dtype), torch.randn(576, 576).to(dtype)

    def seconds(left: torch.Tensor, right: torch.Tensor) -> float:
        start = time.perf_counter()
        left @ right
        return time.perf_counter() - start

    single, half = operands(torch.float32), operands(torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        turns = [(seconds(*single), seconds(*half)) for _ in range(PROBES)]
    finally:
        torch.set_num_threads(threads)
    return min(one for one, _ in turns) / min(other for _, other in turns)
