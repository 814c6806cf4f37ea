"""What the folder of an evaluation holds: written down before its first reply, so that another evaluation does not go on in it.

In: a model and settings. Out: `evaluation.json`, with what a server would not take in it. Each process notes that in a file of its own before a reply that was
asked for so is on disk (`not_taken.part-0.json`); the main one takes these in. One real row: `{"model": "big", "max_new_tokens": 32, "not_taken": ["seed"]}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docward import processes
from docward.errors import RunError
from docward.evaluation.collecting import PART, REPLIES
from docward.models import Loaded
from docward.records import write_json
from docward.servers import Server

if TYPE_CHECKING:
    from docward.evaluation.evaluating import Settings

NOT_TAKEN = "not_taken.part-{}.json"
ASKED = ("wordings", "system", "max_new_tokens", "max_length", "verdict_only")  # the settings that replies hang on


def claim_folder(folder: Path, model: Loaded | Server, settings: Settings, **more: str | int) -> None:
    """Write down what this folder holds, or refuse if it holds something else; without a reply it holds nothing yet. `more` is part of what it holds.

    Raises:
        RunError: it holds the replies of another evaluation.
    """
    mine: dict[str, Any] = {"model": model.name, "adapter": model.adapter and str(model.adapter), "fingerprint": model.fingerprint}
    mine |= {"base_url": model.base_url} if isinstance(model, Server) else {}
    mine |= {name: getattr(settings, name) for name in ASKED} | more
    place, replies = folder / "evaluation.json", folder / f"{REPLIES}.jsonl"
    begun = any(one.is_file() and one.stat().st_size for one in (replies, *folder.glob(PART.format(REPLIES, "*"))))
    if begun and not place.is_file():
        raise RunError(f"{replies} is there, but no evaluation.json: it is not of an evaluation. Choose another --output-dir.")
    if not begun:
        for part in folder.glob(NOT_TAKEN.format("*")):
            part.unlink()
        write_json(place, mine)
        return
    theirs = claimed(folder)
    differs = [name for name in mine if name != "adapter" and mine[name] != theirs.get(name)]
    if differs:
        found = "; ".join(f"{name}: {theirs.get(name)!r} there, {mine[name]!r} now" for name in differs)
        raise RunError(f"{folder} holds the replies of another evaluation ({found}). Choose another --output-dir, or delete that folder.")
    not_taken(folder)


def claimed(folder: Path) -> dict[str, Any]:
    """What a folder that is claimed says it holds."""
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return {"verdict_only": False} | found  # which folders of before do not say


def note_not_taken(folder: Path, model: Loaded | Server) -> None:
    """Put down which parameters a server does not take of this process, where that is news."""
    names = model.not_taken if isinstance(model, Server) else []
    place = folder / NOT_TAKEN.format(processes.rank())
    if names and not (place.is_file() and json.loads(place.read_text(encoding="utf-8")) == names):
        write_json(place, names)


def not_taken(folder: Path) -> list[str]:
    """The parameters that a server would not take for replies in a folder, of all processes and runs: a later one may ask for nothing, and still knows."""
    place, parts = folder / "evaluation.json", sorted(folder.glob(NOT_TAKEN.format("*")))
    claim: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    found = sorted({*claim.get("not_taken", ()), *(name for part in parts for name in json.loads(part.read_text(encoding="utf-8")))})
    if parts:
        write_json(place, claim | {"not_taken": found})
    for part in parts:
        part.unlink()
    return found
