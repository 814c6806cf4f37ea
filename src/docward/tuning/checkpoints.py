"""Checkpoints that survive a kill, a full disk and a flipped bit, and that know which run they are of.

In: the folder that Trainer writes `checkpoint-N` into. Out: the checkpoint to go on from, or an error that says why there is none. A finished checkpoint holds
`finished.json` with the hash of every file; one without it was cut short by a kill and is removed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from docward.errors import TuningError
from docward.records import file_hash, write_json

FINISHED = "finished.json"
WINDOW = "window.json"
RUN = "run.json"  # what the checkpoints are of
BEST = "best-"  # begins the names of probed adapters
TRACKERS = "trackers"
CANNOT = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ESTALE")}
TORCH_WRITES = ("inline_container.cc", "PytorchStreamWriter", "cannot be opened")  # in what torch says of a file that it cannot write


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


def cannot_write(error: BaseException) -> bool:
    """Whether an error says that a file cannot be written: the system's words for it, those of safetensors, or those of torch."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in TORCH_WRITES)
    return isinstance(error, SafetensorError) or (isinstance(error, OSError) and error.errno in CANNOT)


def last_checkpoint(folder: Path, *, clean: bool = True) -> Path | None:
    """The latest whole checkpoint. If `clean`, those that a kill cut short are removed, and damaged ones where there is another to go on from.

    Raises:
        TuningError: there are finished checkpoints and none of them is as it was written.
    """
    sound: dict[int, Path] = {}
    damaged: dict[Path, str] = {}
    for step, checkpoint in numbered(folder):
        if not (checkpoint / FINISHED).is_file():
            if clean:
                shutil.rmtree(checkpoint, ignore_errors=True)
        elif wrong := _damaged(checkpoint):
            damaged[checkpoint] = f"{checkpoint.name}/{wrong}"
        else:
            sound[step] = checkpoint
    if damaged and not sound:
        raise TuningError(
            f"No checkpoint under {folder} can be gone on from: {', '.join(damaged.values())} is not as it was written. Delete {folder} to start tuning afresh."
        )
    for checkpoint in damaged if clean else ():  # Trainer counts it among those it keeps, and would let go of the sound one
        shutil.rmtree(checkpoint, ignore_errors=True)
    return sound[max(sound)] if sound else None


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, whole or not, with their steps, in that order."""
    found = [(place.name.removeprefix("checkpoint-"), place) for place in folder.glob("checkpoint-*")]
    return sorted((int(number), place) for number, place in found if number.isdecimal())


def _damaged(checkpoint: Path) -> str:
    """The first file that is missing or has changed; empty if none."""
    try:
        hashes = json.loads((checkpoint / FINISHED).read_text(encoding="utf-8"))
        if not hashes:
            return FINISHED
        return next((name for name, wanted in hashes.items() if not (checkpoint / name).is_file() or file_hash(checkpoint / name) != wanted), "")
    except (OSError, ValueError, AttributeError):
        return FINISHED


def claim(folder: Path, mine: Mapping[str, Any]) -> dict[str, Any]:
    """Write down what the checkpoints in a folder are of, or refuse to mix them with another run's; returns what was written down first.

    Keys that begin with `_` may differ: the first run's count. Where there is no checkpoint yet, nothing is claimed yet.

    Raises:
        TuningError: they are of another model, other data or other settings, or it cannot be told.
    """
    place = folder / RUN
    if not numbered(folder):
        write_json(place, dict(mine))
        return dict(mine)
    if not place.is_file():
        raise TuningError(f"{folder} holds checkpoints and no {RUN}: they are not of this run. Delete {folder}, or choose another --output-dir.")
    theirs = _said(place)
    names = [name for name in {**mine, **theirs} if not name.startswith("_")]
    if differs := [f"{name}: {theirs.get(name)!r} there, {mine.get(name)!r} now" for name in names if theirs.get(name) != mine.get(name)]:
        raise TuningError(f"The checkpoints in {folder} are of another run ({'; '.join(differs[:5])}). Delete that folder, or choose another --output-dir.")
    return theirs


def _said(place: Path) -> dict[str, Any]:
    try:
        theirs = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        theirs = error
    if not isinstance(theirs, dict):
        raise TuningError(f"{place} cannot be read, so nobody knows whose checkpoints these are. Delete {place.parent} to start tuning afresh.")
    return theirs


def clear(folder: Path) -> None:
    """Remove checkpoints that are not needed any more; what trackers (`report_to`) wrote among them moves to `trackers` beside the folder."""
    kept = folder.parent / TRACKERS
    with suppress(OSError):
        for place in folder.glob("[!.]*"):  # what begins with a dot is what a kill left half written
            if place.is_dir() and not place.name.startswith(("checkpoint-", BEST)):
                shutil.copytree(place, kept / place.name, dirs_exist_ok=True)
            elif place.is_file() and place.name != RUN:
                kept.mkdir(exist_ok=True)
                shutil.copy(place, kept)
    shutil.rmtree(folder, ignore_errors=True)
