"""In which precision a CPU computes: the same answer whatever else runs on the machine."""

from __future__ import annotations

import pytest
import torch

from docward import devices


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_instructions_for_bfloat16_tell_and_nothing_is_tried(name, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: pytest.fail("tried"))
    for one in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, one, lambda one=one: one == name, raising=False)
    assert devices.default_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize(("speedup", "dtype"), [(1.5, torch.bfloat16), (1.0, torch.float32)])
@pytest.mark.parametrize("why", ["no such instructions", "forbidden", "cannot be asked"])
def test_where_they_do_not_tell_it_is_tried(speedup, dtype, why, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: speedup)
    for one in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if why == "cannot be asked":
            monkeypatch.delattr(torch.cpu, one, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, one, lambda: why == "forbidden", raising=False)
    if why == "forbidden":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert devices.default_dtype("cpu") == dtype


def test_trying_leaves_the_number_of_threads():
    before = torch.get_num_threads()
    assert devices.bf16_speedup() > 0
    assert torch.get_num_threads() == before
