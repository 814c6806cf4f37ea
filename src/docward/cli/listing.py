"""`docward list` and `docward doctor`: what is there, and what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from docward.cli.showing import console
from docward.errors import RecipeError

ROOM = 2.0  # GiB: the default model's cache (0.6), a run with checkpoints, and air
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def show_list(what: str) -> None:
    """Print a table of tasks, sources, judges, suites or models.

    Raises:
        RecipeError: there is no such list.
    """
    lists = {"tasks": _tasks, "sources": _sources, "judges": _judges, "suites": _suites, "models": _models}
    if what not in lists:
        raise RecipeError(f"There is no list of {what!r}. There are: {', '.join(lists)}.")
    console().print(lists[what]())


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _tasks() -> Table:
    from docward.tasks import TASKS

    table = _table("task", "first wording", "wordings", "held out")
    for task in TASKS.values():
        table.add_row(task.name, task.wordings[0].strip(), str(len(task.wordings)), str(len(task.unseen)))
    return table


def _sources() -> Table:
    from docward.documents.reading import OWN, own_documents
    from docward.presets import PRESETS

    own = {name: own_documents(name) for name in OWN}
    triples = {name: len({one.triple for one in found if one.triple}) for name, found in own.items()}
    counts = {name: f"{len(found)} {PRESETS[name].what}{f', {triples[name]} triples' if triples[name] else ''}" for name, found in own.items()}
    table = _table("source", "what", "Hub id, or page", "licence", "gated", "kind")
    for column, width in zip(table.columns, (22, 28, 31, 16, 5, 9), strict=True):
        column.max_width, column.overflow = width, "fold"
    for preset in PRESETS.values():
        licence = f"{preset.license}, non-commercial" if preset.noncommercial else preset.license
        what, gated = (counts[preset.name], "") if preset.name in own else (preset.what, "yes" if preset.gated else "no")
        table.add_row(preset.name, what, preset.hub or preset.home, licence, gated, "short prompts" if preset.prompts else "documents")
    table.add_section()
    table.add_row("{path: FILE or FOLDER}", "your own: tables of texts with labels, or text files", "", "yours", "", "")
    table.add_row("{hub: owner/name}", "any other set on the Hub, with `columns` and `labels`", "", "its own", "", "")
    table.caption = "A gated set wants its terms accepted on its page. Rows that a set files under sexual content or child abuse are left out."
    return table


def _judges() -> Table:
    from docward.evaluation.judges import JUDGES

    table = _table("judge", "what")
    for kind in JUDGES.values():
        table.add_row(Text(kind.form), kind.what)  # as text, for [] is rich's markup
    table.caption = "A judge's outage or an answer off its menu is unjudged: docward judge FILE --judge NAME --again asks again."
    return table


def _suites() -> Table:
    from docward.evaluation.suites import SUITES
    from docward.evaluation.suites.suite import TOKENS

    counting, never = ([name for name, suite in SUITES.items() if suite.wants and (suite.wants == TOKENS) == which] for which in (True, False))
    table = _table("suite", "what is changed", "levels besides the unchanged document")
    for suite in SUITES.values():
        table.add_row(suite.name, suite.what, ", ".join(level.name for level in suite.levels))
    table.caption = f"A model behind a server (--base-url) is asked all but {' and '.join(never)}; {' and '.join(counting)} want its --tokenizer."
    return table


def _models() -> Table:
    from docward.models import ALIASES, cache_dir

    table = _table("model", "the same on the Hub", "licence", "in the cache")
    for name, alias in ALIASES.items():
        table.add_row(name, alias.hub_id, alias.license, "yes" if (cache_dir() / name / "config.json").is_file() else "no: fetched on first use")
    table.add_row("any Hub id, folder or .gguf file", "", "its own", "")
    table.add_row("with --base-url: any name that a server has", "", "its own", "")
    return table


def show_doctor() -> int:
    """Print what was found; exit code 1 if something needed is missing."""
    table = _table("what", "found", "")
    problems = 0
    for what, found, problem in [_python(), *_packages(), *_machine(), *_room(), _model(), _browser()]:
        needed = problem.startswith("!")
        problems += needed
        table.add_row(what, found, problem.removeprefix("!") or "ok", style="red" if needed else None)
    console().print(table)
    return 1 if problems else 0


Line = tuple[str, str, str]  # what, found, problem ("!" in front: needed)


def _python() -> Line:
    return "Python", platform.python_version(), "" if sys.version_info >= (3, 11) else "!needs 3.11 or later"


def _packages() -> list[Line]:
    lines = []
    for name in ("docward", "torch", "transformers", "peft", "accelerate", "datasets", "gguf"):
        try:
            lines.append((name, version(name), ""))
        except PackageNotFoundError:
            lines.append((name, "missing", f"!pip install {name}"))
    return lines


def _machine() -> list[Line]:
    import psutil

    from docward.devices import best_device, bf16_speedup, fast_in_bf16

    memory = psutil.virtual_memory()
    device = best_device()
    speedup = bf16_speedup() if device == "cpu" else 0.0
    lines = [
        ("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()), ""),
        (
            "memory",
            f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free",
            "" if memory.available > 8 * 2**30 else "the quickstart wants 8 GiB free",
        ),
        ("device", device, "" if device != "cpu" else "no GPU: small models only"),
    ]
    if device == "cpu":
        lines.append(("bfloat16", f"{speedup:.2f} times float32's speed", "used" if fast_in_bf16() else "not worth it here: float32 is used"))
    return lines


def _room() -> list[Line]:
    from docward.models import cache_dir

    lines = []
    for what, folder in (("disk, here", Path.cwd()), ("disk, cache", next(place for place in [cache_dir(), *cache_dir().parents] if place.exists()))):
        free = shutil.disk_usage(folder).free / 2**30
        lines.append((what, f"{free:.1f} GiB free", "" if free > ROOM else f"!needs {ROOM:.0f} GiB"))
    return lines


def _model() -> Line:
    from docward.models import ALIASES, cache_dir, offline

    name = next(iter(ALIASES))
    if (cache_dir() / name / "config.json").is_file():
        return name, f"in {cache_dir()}", ""
    return name, "not in the cache", "!HF_HUB_OFFLINE is set: unset it once to fetch it" if offline() else "fetched on first use (98 MB)"


def _browser() -> Line:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return "browser", found or "none", "" if found else "only the report's own test wants one (Debian: apt-get install chromium)"
