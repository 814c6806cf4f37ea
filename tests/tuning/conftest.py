"""Tuning's tests run dozens of Trainers; what a Trainer does besides training is most of their time."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def libraries_are_no_garbage() -> None:
    """Each Trainer collects garbage when it is done: let the collector pass over what imports made."""
    import docward.tuning.probing  # noqa: F401 - torch, transformers, accelerate, peft, scipy

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_for_later() -> Iterator[None]:
    """Checkpoints of tests need no model card and need not outlive a power cut."""
    from peft import PeftModel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)
        patch.setattr(os, "fsync", lambda _: None)
        yield
