"""Tuning's tests make dozens of Trainers, each of which collects garbage when it is done."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def libraries_are_no_garbage() -> None:
    """Let the collector pass over what imports made: half a second less for each Trainer."""
    import docward.tuning.probing  # noqa: F401 - torch, transformers, accelerate, peft, scipy

    gc.collect()
    gc.freeze()
