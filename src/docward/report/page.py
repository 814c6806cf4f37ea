"""A run folder to one self-contained HTML page: no network, light and dark, hostile text kept harmless.

In: a run folder (metrics.json; and, where they are there, dataset/audit.json, training.jsonl, probes.jsonl, adapter/calibration.json, recipe.yaml,
environment.json, evaluation/<model>/{replies,verdicts}.jsonl), or one with a dataset and no metrics yet, or the folder that `docward evaluate --output-dir`
made (one model, its replies directly in it; with `--against` another one's figures too).
Out: `report.html` in that folder.
Documents and replies may be hostile: everything is escaped, the page allows no script but its own two (by hash), and texts of and about malicious documents
are stored encoded and enter the page only on a click (`samples.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docward.errors import DocumentError, RunError
from docward.records import typed, write_text
from docward.report import audit as audits
from docward.report import deciding, figures, judges, robustness, samples, sets, trying, values
from docward.report import tuning as tunings
from docward.report.figures import RATE_NAMES, SETS
from docward.types import Rate

_MAIN = "defended"
_FIRST = "untuned"
_OTHER = "the other model"  # what an evaluation was set against


@dataclass(frozen=True)
class _Run:
    """What a run folder holds, as far as it is there."""

    name: str
    models: dict[str, dict[str, Any]]
    folders: dict[str, Path]
    surface: dict[str, Any] | None = None
    paired: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    audit: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    suites: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""
    against: dict[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The model that the report is about: the defended one where there is one; empty where none was measured."""
        return _MAIN if _MAIN in self.models else next(reversed(self.models), "")

    @property
    def beside(self) -> str:
        """The model that the main one is set against."""
        return next((name for name in self.models if name != self.main), _FIRST)

    @property
    def yardstick(self) -> str:
        """The same in a sentence."""
        return self.beside if self.beside == _OTHER else f"the {self.beside} model"


def write_report(run: Path) -> Path:
    """Write `<run>/report.html`, whole or not at all, and return its path.

    Raises:
        RunError: neither metrics.json nor dataset/audit.json is there, or a file of the run cannot be read; the message names the command that makes it.
        StorageError: the page cannot be written.
    """
    found = _read_run(run)
    page = run / "report.html"
    write_text(page, _render(found).encode("utf-8", "replace").decode("utf-8"))  # a lone surrogate in a document must not stop the report
    return page


# ---------------------------------------------------------------------------------------------------------------- reading


def _read_run(run: Path) -> _Run:
    path = run / "metrics.json"
    again = f"Make it again: docward run RECIPE --output-dir {run}, or docward evaluate --model M --output-dir {run}."
    if not path.is_file():
        return _read_dataset(run, f"{path} is missing, so there is nothing to report. {again.replace('Make it again', 'Make it')}")
    metrics = _read_object(path, again)
    alone = "models" not in metrics
    models = {str(metrics.get("model") or "the model"): metrics} if alone else metrics["models"]
    against = values.mapping(metrics.get("against")) if alone else {}
    if not isinstance(models, dict) or not models:
        raise RunError(f"{path}: `models` holds no model, wanted an object like {{'untuned': ..., 'defended': ...}}. {again}")
    order = sorted(models, key=lambda name: (name != _FIRST, name != _MAIN))
    folders = {name: run if alone else run / "evaluation" / name for name in order}
    beside = {_OTHER: _checked(against.get("metrics"), f"{path}, against", again)} if against else {}
    return _Run(
        name=run.resolve().name,
        models=beside | {name: _checked(models[name], f"{path}, model {name}", again) for name in order},
        folders=folders,
        against=_against(against),
        surface=None if not metrics.get("surface") else _checked(metrics["surface"], f"{path}, surface", again),
        paired=list(metrics.get("paired") or []),
        seconds=metrics.get("seconds") or {},
        peak_memory_mib=metrics.get("peak_memory_mib"),
        suites=robustness.view(folders.get(_MAIN, folders[order[-1]])),
        **_read_making(run, again),
    )


def _against(found: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation was set against, and how many prompts the two share."""
    names = {name: values.shown(found.get(name), 200) for name in ("model", "folder")}
    return {**names, **{name: values.count(found.get(name)) for name in ("shared", "only_here", "only_there")}} if found else {}


def _read_dataset(run: Path, nothing: str) -> _Run:
    """A run folder without metrics: its dataset is all there is to show."""
    found = _read_making(run, f"Make it again: docward build RECIPE --output-dir {run}.")
    if not found["audit"]:
        raise RunError(f"{nothing} A dataset alone can be reported too: docward build RECIPE --output-dir {run}.")
    stages = run / "stages.json"
    known = {name: stage for name, stage in _read_object(stages, "Delete it.").items() if isinstance(stage, dict)} if stages.is_file() else {}
    seconds = {values.shown(name): value for name, stage in known.items() if (value := values.number(stage.get("seconds"))) is not None}
    peak = max((values.number(stage.get("peak_memory_mib")) or 0 for stage in known.values()), default=0)
    return _Run(name=run.resolve().name, models={}, folders={}, seconds=seconds, peak_memory_mib=peak or None, **found)


def _read_making(run: Path, again: str) -> dict[str, Any]:
    """What tells how a run was made: its audit, environment, tuning and recipe, as far as they are there."""
    environment, audit = run / "environment.json", run / "dataset" / "audit.json"
    recipe = run / "recipe.yaml"
    return {
        "audit": _read_object(audit, "Make it again: docward build RECIPE.") if audit.is_file() else {},
        "environment": _read_object(environment, again) if environment.is_file() else {},
        "tuning": tunings.view(run),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
    }


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is broken: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is broken: found a JSON {type(value).__name__}, wanted an object. {remedy}")
    return value


def _checked(metrics: Any, where: str, remedy: str) -> dict[str, Any]:
    """Check the rates of one model, so that the page never shows a half-read number."""
    if not isinstance(metrics, dict) or not ({"rates", "pooled"} & metrics.keys()):
        raise RunError(f"{where} has neither `rates` nor `pooled`: it holds no measurement. {remedy}")
    rates, pooled = metrics.get("rates", []), metrics.get("pooled", {})
    if not isinstance(rates, list) or not isinstance(pooled, dict):
        raise RunError(f"{where}: `rates` must be a list and `pooled` an object keyed by set. {remedy}")
    try:
        for number, row in enumerate([*rates, *pooled.values()], 1):
            typed(Rate, row, where=f"{where}, rate {number}")
    except DocumentError as error:
        raise RunError(f"{error}. {remedy}") from error
    return {**metrics, "rates": rates, "pooled": pooled, **sets.checked(metrics, where, remedy)}


# ---------------------------------------------------------------------------------------------------------------- words


def _sentences(run: _Run) -> list[str]:
    """Say in words what the paired tests decided, set by set: over all tasks, or how many tasks where that was not tested."""
    if found := deciding.differences(run.models[run.main]) if run.models else []:
        return deciding.sentences(found)
    said = []
    for label in SETS:
        rows = [row for row in run.paired if row.get("set") == label]
        counts = Counter(str(row.get("says")) for row in rows)
        parts = [f"{says} on {count} of {len(rows)} tasks" for says in ("more refusals", "fewer refusals", "undecided") if (count := counts[says])]
        said += [f"On {label} documents: {', '.join(parts)}."] if parts else []
    return said


def _surface_sentence(run: _Run) -> str:
    """Say whether the main model beats the surface baseline, judged by their intervals."""
    ours, theirs = run.models[run.main].get("balance"), (run.surface or {}).get("balance")
    if not ours or not theirs or ours["value"] is None or theirs["value"] is None:
        return ""
    start = f"Balance: {run.main} {ours['value']:+.2f}, surface baseline {theirs['value']:+.2f}"
    if ours["low"] is not None and theirs["high"] is not None and ours["low"] > theirs["high"]:
        return f"{start}; the intervals do not overlap: the model beats the baseline."
    if ours["high"] is not None and theirs["low"] is not None and ours["high"] < theirs["low"]:
        return f"{start}; the intervals do not overlap: the model is worse than the baseline."
    return f"{start}; the intervals overlap: whether the model beats the baseline is undecided."


def _fitted(surface: dict[str, Any] | None) -> str:
    """What the surface baseline was fitted on, in words, where that is known."""
    found = surface or {}
    return (
        f"fitted on {values.count(found.get('training_documents')):,} training documents of {values.shown(found['fitted_on'], 200)}"
        if found.get("fitted_on")
        else ""
    )


# ---------------------------------------------------------------------------------------------------------------- the page


def _cards(run: _Run) -> list[dict[str, Any]]:
    """The big numbers: one card per set, the main model first, and the balance."""
    order = [run.main, *(name for name in run.models if name != run.main)]
    cards = [
        {
            "title": RATE_NAMES[label],
            "set": label,
            "better": "high" if label == "malicious" else "low",
            "rows": [(name, run.models[name]["pooled"].get(label)) for name in order],
        }
        for label in SETS
    ]
    return [*cards, {"title": "Balance", "set": None, "better": "high", "rows": [(name, run.models[name].get("balance")) for name in order]}]


def _rate_tables(run: _Run) -> list[dict[str, Any]]:
    """Per set: a row per task and one for all tasks, a cell per model; only sets that some model has."""
    tables = []
    for label in SETS:
        cells = {name: {row["task"]: row for row in metrics["rates"] if row["set"] == label} for name, metrics in run.models.items()}
        for name, metrics in run.models.items():
            if metrics["pooled"].get(label):
                cells[name]["all"] = metrics["pooled"][label]
            tried = {task: one for (found, task), one in trying.tried(metrics).items() if found == label}
            cells[name] = {task: {**row, "idle": one["complied"] - one["attempted"] if (one := tried.get(task)) else 0} for task, row in cells[name].items()}
        tasks = list(dict.fromkeys(task for rows in cells.values() for task in rows))
        tasks.sort(key=lambda task: task == "all")
        rows = [(task, [cells[name].get(task) for name in run.models]) for task in tasks]
        if rows:
            tables.append({"set": label, "title": RATE_NAMES[label], "rows": rows})
    return tables


def _utility(run: _Run) -> list[tuple[str, str, str, list[dict[str, Any] | None]]]:
    cells = {name: {(row["task"], row["measure"]): row for row in metrics.get("utility") or []} for name, metrics in run.models.items()}
    keys = dict.fromkeys(key for rows in cells.values() for key in rows)
    rows = [(task, measure, [cells[name].get((task, measure)) for name in run.models]) for task, measure in keys]
    return [(task, measure, deciding.measure_name(next(cell for cell in found if cell), run.yardstick), found) for task, measure, found in rows]


def _figures(run: _Run) -> dict[str, Any]:
    """All figures that the run has numbers for, as plain JSON values."""
    placed = figures.marks(run.models, run.surface)
    steps = {"reach": run.tuning["reach"], "kept": run.tuning["kept"]}
    drawn = {
        "trade-off": figures.trade_off(placed) if any(mark.model != "surface" for mark in placed) else None,
        **{f"rates-{label}": figures.task_rates(run.models, label) for label in SETS},
        "loss": figures.training_curves(run.tuning["training"].rows, **steps),
        "probes": figures.probe_curves(run.tuning["probes"].rows, **steps),
        "dial": figures.dial_curves(run.tuning["dial"].rows, bias=run.tuning["dial"].bias),
        "words": figures.word_lengths(values.mapping(run.audit.get("words"))),
        "tells": figures.surface_tells(audits.tells(run.audit)),
        **{f"suite-{suite['name']}": figures.suite_curves(suite["levels"]) for suite in run.suites},
    }
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items() if figure is not None}


def _embedded(value: Any) -> str:
    """JSON that cannot end its script element, whatever text is in it."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _allowance(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() + "'"


def _render(run: _Run) -> str:
    import jinja2
    import plotly.offline
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {one.__name__: one for one in (values.percent, values.interval, values.signed, values.points, values.measure, values.duration)}
    environment.globals |= {"colour": lambda name: figures.colour(name, list(run.models)), "display_name": figures.display_name}
    drawn, chosen, audit = _figures(run), samples.view(run.folders, run.main) if run.models else None, audits.view(run.audit)
    scripts = {"plotly": plotly.offline.get_plotlyjs() if drawn else "", "own": environment.get_template("page.js.j2").render()}
    context = {
        "audit": audit,
        "tuning": run.tuning,
        "parts": audits.parts(audit),
        "label_colours": figures.LABEL_COLOURS,
        "cards": _cards(run) if run.models else [],
        "sentences": _sentences(run),
        "surface_sentence": _surface_sentence(run) if run.models else "",
        "fitted": _fitted(run.surface),
        "tables": _rate_tables(run),
        "sets": sets.documents(run.models, run.surface),
        "lengths": sets.lengths(run.models),
        "prompts": sets.prompts(run.models),
        "prompt_counts": {name: sets.prompt_count(metrics) for name, metrics in run.models.items()},
        "measured": any(rate["judged"] + rate["unjudged"] for metrics in run.models.values() for rate in metrics["pooled"].values()),
        "idle": trying.idle(run.models),
        "names": RATE_NAMES,
        "differences": deciding.differences(run.models[run.main]) if run.models else [],
        "kept": deciding.kept(run.models[run.main], run.yardstick) if run.models else {},
        "advice": deciding.advice(run.models[run.main]) if run.models else [],
        "missing": [(name, lack) for name, metrics in run.models.items() if (lack := deciding.missing(metrics))],
        "withheld": [(name, lack) for name, metrics in run.models.items() if (lack := deciding.withheld(metrics))],
        "not_taken": [(name, without) for name, metrics in run.models.items() if (without := deciding.not_taken(metrics))],
        "corrected": [(name, found) for name, metrics in run.models.items() if (found := deciding.corrected(metrics))],
        "judges": [(name, found) for name, folder in run.folders.items() if (found := judges.view(folder))],
        "utility": _utility(run),
        "robustness": run.suites,
        "limits": {"set": samples.SAMPLES_PER_SET, "mistakes": samples.MISTAKES_PER_SET, "text": samples.TEXT_LIMIT},
        "allowed": Markup(" ".join(_allowance(script) for script in scripts.values() if script)),  # base64 and quotes of our own
        "scripts": {name: Markup(script) for name, script in scripts.items()},  # plotly's and our own code, no text of the run
        "embedded": Markup(_embedded({"figures": drawn, "browser": chosen})),
    }
    return environment.get_template("page.html.j2").render(run=run, SETS=SETS, figures=drawn, samples=chosen, **context)
