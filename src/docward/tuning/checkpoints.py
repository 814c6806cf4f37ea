"""Checkpoints that survive a kill, a full disk and a flipped bit, and that know which run they are of.

In: the folder that Trainer writes `checkpoint-N` into. Out: the checkpoint to go on from, or an error that says why there is none. A finished checkpoint holds
`finished.json` with the hash of every file; one without it was cut short by a kill and is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docward.errors import TuningError
from docward.records import file_hash, write_json

FINISHED = "finished.json"
WINDOW = "window.json"
RUN = "run.json"  # what the checkpoints are of


def mark_finished(folder: str, step: int, window: Mapping[str, Any]) -> None:
    """Put a checkpoint's files on disk, and mark it as whole."""
    checkpoint = Path(folder) / f"checkpoint-{step}"
    write_json(checkpoint / WINDOW, window)
    hashes = {}
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        hashes[file.relative_to(checkpoint).as_posix()] = file_hash(file)
    write_json(checkpoint / FINISHED, hashes)


def last_checkpoint(folder: Path, *, clean: bool = True) -> Path | None:
    """The latest whole checkpoint; those that a kill cut short are removed if `clean`.

    Raises:
        TuningError: there are finished checkpoints and none of them is as it was written.
    """
    sound: dict[int, Path] = {}
    damaged: list[str] = []
    for checkpoint in sorted(folder.glob("checkpoint-*")):
        if not (checkpoint / FINISHED).is_file():
            if clean:
                shutil.rmtree(checkpoint, ignore_errors=True)
        elif wrong := _damaged(checkpoint):
            damaged.append(f"{checkpoint.name}/{wrong}")
        else:
            sound[int(checkpoint.name.split("-")[1])] = checkpoint
    if damaged and not sound:
        raise TuningError(
            f"No checkpoint under {folder} can be gone on from: {', '.join(damaged)} is not as it was written. Delete {folder} to start tuning afresh."
        )
    return sound[max(sound)] if sound else None


def _damaged(checkpoint: Path) -> str:
    """The first file that is missing or has changed; empty if none."""
    try:
        hashes = json.loads((checkpoint / FINISHED).read_text(encoding="utf-8"))
        return next((name for name, wanted in hashes.items() if not (checkpoint / name).is_file() or file_hash(checkpoint / name) != wanted), "")
    except (OSError, ValueError, AttributeError):
        return FINISHED


def claim(folder: Path, mine: Mapping[str, Any]) -> dict[str, Any]:
    """Write down what the checkpoints in a folder are of, or refuse to mix them with another run's; returns what was written down first.

    Keys that begin with `_` may differ: the first run's count.

    Raises:
        TuningError: they are of another model, other data or other settings.
    """
    place = folder / RUN
    if not place.is_file():
        if any(folder.glob("checkpoint-*")):
            raise TuningError(f"{folder} holds checkpoints and no {RUN}: they are not of this run. Delete {folder}, or choose another --output-dir.")
        write_json(place, dict(mine))
        return dict(mine)
    theirs: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    if differs := [f"{name}: {theirs.get(name)!r} there, {mine[name]!r} now" for name in mine if not name.startswith("_") and theirs.get(name) != mine[name]]:
        raise TuningError(f"The checkpoints in {folder} are of another run ({'; '.join(differs[:5])}). Delete that folder, or choose another --output-dir.")
    return theirs
