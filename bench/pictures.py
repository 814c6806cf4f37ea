"""Pictures of what was measured, for docs/why-it-works.md: SVG files, drawn from the numbers of two other benches and from nothing else.

    python bench/pictures.py [--probes FILE.json] [--ranking NAME=FOLDER ...] [--transfer FOLDER] [--sets held-out ...]
                              [--output-dir docs/pictures]

`--probes` takes what `bench/probing.py --sizes ... --output FILE.json` keeps, and gives

    probes-by-layer.svg  how well a probe on the untuned model ranks malicious above sensitive documents, layer by layer (weighed by surface), a panel a set
    learning-curve.svg   the same at one layer over the number of documents that the probe was fitted on, a line a set

`--ranking` takes variants' folders of `bench/defence.py` (with a folder a seed in it), each under the name that the picture calls it by, and gives

    ranking.svg          how many prompts of each label have which refusal score: a column a folder, a row a set, seeds together

`--transfer` takes the folder that `bench/defence.py` leaves, with variants called `only TASK` in it (those of `all five tasks`, if there), and gives, a set,

    transfer-held-out.svg  trained on (rows) and tested on (columns): block rate, over-refusal and false refusal with 95% intervals, seeds together. The last
                           row is the untuned model on the same prompts, a frame stands where a task is tested that was trained, `all` is all tasks together

The refusal score is that of `bench/defence.py` plus the token's bias, which calibration found and which scores.json is without: a prompt above 0 is
declined with the reply's first token. Where refusals have no token of their own (the untuned model), it is the margin of the tokens that refusals begin with,
and above 0 a reply only begins like one. Percentages are the judge's, refusals in other words or later in the reply included; AUC is of malicious above
sensitive prompts, seed by seed. The same numbers give the same bytes. Wants matplotlib: pip install 'docward[bench]'.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
WIDTH = 600 / 72  # inches: 600 points, which are 800 pixels
INK, PAPER, QUIET = "#22262e", "#fbfbfd", "#69707c"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": "#dfe2e8",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.w_pad": 8 / 72,
    "figure.constrained_layout.h_pad": 6 / 72,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "docward",
}
SETS = {"plain": "plain corpus, held out", "starter": "starter corpus, held out", "development": "development documents", "held-out": "held-out documents"}
SET_LINES = {"plain": ("#4353b3", "o"), "starter": ("#9c5f3c", "s"), "development": (INK, "D")}
STATES = {"mean": ("mean over the document", "#4353b3", "-", "o"), "last": ("where the answer begins", QUIET, "--", "s")}
ONLY, ALL_FIVE = "only-", "all-five-tasks"  # variants' folders of bench/defence.py
DEEPEST = 0.7  # how much of its label's colour a cell of 100% has: ink keeps a contrast of 5 and more on all three
BINS = 36  # of a panel's scores, about


@dataclass(frozen=True)
class Ranked:
    """What a folder of `bench/defence.py` says of a set: by label the scores (prompts,) of all seeds and the share declined; the AUC of each seed.

    `own`: refusals have a token of their own, and scores are margins of it, its bias added.
    """

    scores: Mapping[str, np.ndarray]
    declined: Mapping[str, float]
    aucs: Sequence[float]
    own: bool


def new_figure(title: str, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure, its height in points, and its axes: (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height / 72), layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", weight="bold", size=11)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def read_probes(path: Path) -> dict[str, Any]:
    """The numbers that `bench/probing.py` kept."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"Cannot read {path} ({error}). Make it: python bench/probing.py --sizes 125 250 500 1000 2000 --output {path}") from error
    if not isinstance(found, dict) or not found.get("layers") or not found.get("sizes"):
        raise SystemExit(
            f"{path} has not both tables, `layers` and `sizes`. Make it again: python bench/probing.py --sizes 125 250 500 1000 2000 --output {path}"
        )
    return found


def points(rows: Sequence[Mapping[str, Any]], over: str, **wanted: str) -> tuple[list[float], list[float]]:
    """Of the rows that have the wanted values: what they are `over`, in order, and the AUC against sensitive documents."""
    found = sorted((row[over], row["sensitive"]) for row in rows if row["sensitive"] is not None and all(row[key] == value for key, value in wanted.items()))
    return [place for place, _ in found], [value for _, value in found]


def of_set(probes: Mapping[str, Any], name: str) -> str:
    """What a set is called, and how many documents its AUC is of."""
    counts = probes["read"][name]
    return f"{SETS.get(name, name)}\n{counts['malicious']} malicious, {counts['sensitive']} sensitive"


def ranked_sets(probes: Mapping[str, Any]) -> list[str]:
    """The sets that have an AUC, in order."""
    return list(dict.fromkeys(row["set"] for row in probes["layers"] if row["sensitive"] is not None))


def auc_axis(axes: Axes, values: Sequence[float]) -> None:
    """An upright axis from below chance, or from the lowest value, to 1, and room for a number above."""
    low = min(0.45, min(values) - 0.03)
    axes.set_ylim(low, 1.07)
    axes.set_yticks([tick / 10 for tick in range(11) if tick / 10 >= low])
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle=":")
    axes.annotate("chance", (1, 0.5), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", color=QUIET, size=8)
    axes.grid(axis="y")


def probes_by_layer(probes: Mapping[str, Any]) -> Figure:
    """AUC over layers, a line a state, a panel a set."""
    rows, sets = probes["layers"], ranked_sets(probes)
    figure, grid = new_figure("Malicious above sensitive: what a probe reads in the untuned model", 270, 1, len(sets), sharey=True)
    for axes, name in zip(grid[0], sets, strict=True):
        for state, (title, colour, dash, mark) in STATES.items():
            layers, values = points(rows, "layer", state=state, documents="weighed", set=name)
            axes.plot(layers, values, dash, color=colour, marker=mark, label=title)
        layers, values = points(rows, "layer", state="mean", documents="weighed", set=name)
        best = max(range(len(values)), key=values.__getitem__)
        told, side = f"{values[best]:.2f} at layer {layers[best]}", "right" if best > len(values) / 2 else "left"
        axes.annotate(told, (layers[best], values[best]), (4, 7), textcoords="offset points", ha=side, weight="bold", color=STATES["mean"][1])
        axes.set_title(of_set(probes, name))
        axes.set_xlabel("layer")
        axes.set_xticks(apart(layers, 0.1))
        auc_axis(axes, [row["sensitive"] for row in rows if row["sensitive"] is not None])
    grid[0, 0].set_ylabel("AUC")
    lines = grid[0, 0].get_legend_handles_labels()
    title = "probe on the state (documents weighed so that surface tells nothing):"
    figure.legend(*lines, loc="outside lower left", ncols=2, handlelength=2.6, title=title, alignment="left")
    return figure


def learning_curve(probes: Mapping[str, Any]) -> Figure:
    """AUC over the number of documents fitted on, a line a set."""
    rows, sets = probes["sizes"], ranked_sets(probes)
    figure, ((axes,),) = new_figure(f"Malicious above sensitive: a probe at layer {probes['at']}, by documents it was fitted on", 290, 1, 1)
    lines = {name: points(rows, "fitted_on", set=name) for name in sets}
    heights = spread([lines[name][1][-1] for name in sets], 0.04)
    for name, height in zip(sets, heights, strict=True):
        sizes, values = lines[name]
        colour, mark = SET_LINES.get(name, (QUIET, "^"))
        axes.plot(sizes, values, color=colour, marker=mark, label=of_set(probes, name))
        axes.annotate(f"{values[-1]:.2f}", (sizes[-1], height), (8, 0), textcoords="offset points", va="center", color=colour, weight="bold")
    sizes = sorted({row["fitted_on"] for row in rows})
    kept = [round(float(np.exp(place))) for place in apart([float(np.log(size)) for size in sizes], 0.06)]
    axes.set_xscale("log")
    axes.set_xticks(kept, [f"{size:,}" for size in kept])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training documents, drawn by chance (logarithmic axis)")
    axes.set_ylabel("AUC")
    auc_axis(axes, [row["sensitive"] for row in rows if row["sensitive"] is not None])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(sets), borderaxespad=0.3, handlelength=2.4, columnspacing=1.6)
    return figure


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places, from the highest down, that stand at least a share `gap` of the whole range from each other: so much room a number takes under an axis."""
    kept: list[float] = []
    for place in sorted(set(places), reverse=True):
        if not kept or kept[-1] - place >= gap * (max(places) - min(places)):
            kept.append(place)
    return kept[::-1]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, pushed up where one is less than `gap` above the next lower one."""
    found, lowest = list(heights), -np.inf
    for place in sorted(range(len(found)), key=found.__getitem__):
        found[place] = lowest = max(found[place], lowest + gap)
    return found


def token_bias(run: Path) -> float | None:
    """What a run's tuned model adds to the logit of its refusal token; None where refusals have no token of their own."""
    from docward.models import token_biases
    from docward.tuning.tuning import tuned_folder

    config = tuned_folder(run) / "generation_config.json"
    kept = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found = token_biases(SimpleNamespace(generation_config=SimpleNamespace(sequence_bias=kept.get("sequence_bias"))))
    if len(found) > 1:
        raise SystemExit(f"{config} has a bias for more than one token, and scores.json does not say which of them a score is of.")
    return next(iter(found.values()), None)


def seed_folders(folder: Path) -> list[Path]:
    """The run folders of a variant that were measured, a seed each."""
    found = sorted(path for path in folder.glob("*") if path.name.isdigit() and (path / "measured").is_dir())
    if not found:
        raise SystemExit(f"{folder} has no seed that was measured (such as {folder / '0' / 'measured'}). Make it: python bench/defence.py")
    return found


def ranked(folder: Path) -> dict[str, Ranked]:
    """What a variant's folder says, by set: those that all its seeds were measured on."""
    runs = seed_folders(folder)
    sets = [place.name for place in sorted((runs[0] / "measured").iterdir(), reverse=True) if all((run / "measured" / place.name).is_dir() for run in runs)]
    biases = [token_bias(run) for run in runs]
    if len({bias is None for bias in biases}) > 1:
        raise SystemExit(f"{folder}: some seeds have a refusal token and some have none, so their scores do not go into one picture.")
    return {name: ranked_on([run / "measured" / name for run in runs], biases) for name in sets}


def ranked_on(places: Sequence[Path], biases: Sequence[float | None]) -> Ranked:
    """What the seeds' measurements say together, each one's bias added to its scores."""
    from sklearn.metrics import roc_auc_score

    from docward.evaluation.rates import pooled
    from docward.records import read_rows
    from docward.types import Label, Verdict

    verdicts, scores, aucs = list[Verdict](), dict[str, list[float]](), list[float]()
    for place, bias in zip(places, biases, strict=True):
        found = {key: score + (bias or 0) for key, score in read_scores(place / "scores.json").items()}
        rows = read_rows(place / "verdicts.jsonl", Verdict)
        if missing := sum(row.key not in found for row in rows):
            raise SystemExit(f"{place}: {missing} of {len(rows)} verdicts have no score. A variant that asks no model has none; else measure it again.")
        of = {label.value: [found[row.key] for row in rows if row.label == label] for label in Label}
        if of["malicious"] and of["sensitive"]:
            truth = [True] * len(of["malicious"]) + [False] * len(of["sensitive"])
            aucs.append(float(roc_auc_score(truth, of["malicious"] + of["sensitive"])))
        verdicts += rows
        scores = {label: scores.get(label, []) + more for label, more in of.items()}
    declined = {label: rate.value for label, rate in pooled(verdicts).items() if rate.value is not None}
    return Ranked({label: np.array(some) for label, some in scores.items() if some}, declined, aucs, biases[0] is not None)


def read_scores(path: Path) -> dict[str, float]:
    """Scores by key, without the bias."""
    try:
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"Cannot read {path} ({error}). Measure that variant again: python bench/defence.py") from error
    return found


def wanted_sets(sets: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The sets that are asked for, or all."""
    if unknown := [name for name in sets if name not in known]:
        raise SystemExit(f"--sets: nothing was measured on {', '.join(unknown)}. There are: {', '.join(known)}.")
    return sets or known


def ranking(folders: Mapping[str, Mapping[str, Ranked]], sets: Sequence[str]) -> Figure:
    """Scores by label: a column a folder, a row a set (all that any folder has, where none are named)."""
    known = list(dict.fromkeys(name for found in folders.values() for name in found))
    sets = wanted_sets(sets, known)
    figure, grid = new_figure("Refusal score before the first word of the reply, by label of the document", 45 + 225 * len(sets), len(sets), len(folders))
    for column, (title, found) in zip(grid.T, folders.items(), strict=True):
        for axes, name in zip(column, sets, strict=True):
            axes.set_title(f"{title}, {SETS.get(name, name)}")
            if name in found:
                ridges(axes, found[name])
            else:
                axes.set_axis_off()
                axes.annotate("not measured", (0, 0.9), xycoords="axes fraction", color=QUIET)
    return figure


def ridges(axes: Axes, found: Ranked) -> None:
    """A histogram a label, one above the other on one scale, pale where the model does not decline."""
    from docward.report.figures import LABEL_COLOURS

    edges = bin_edges(np.concatenate(list(found.scores.values())))
    zero = int(np.argmin(np.abs(edges)))
    shares = {label: np.histogram(values, edges)[0] / len(values) for label, values in found.scores.items()}
    highest, shown = max(share.max() for share in shares.values()), [label for label in reversed(LABEL_COLOURS) if label in shares]
    for place, label in enumerate(shown):
        heights = place + 0.8 * shares[label] / highest
        for part, alpha in ((slice(0, zero), 0.4), (slice(zero, None), 1.0 if found.own else 0.4)):
            if len(heights[part]):
                axes.stairs(heights[part], edges[part.start : part.stop and part.stop + 1], baseline=place, fill=True, color=LABEL_COLOURS[label], alpha=alpha)
        axes.axhline(place, color="#c4c9d2", linewidth=0.8)
        if label in found.declined:
            beside(axes, f"{found.declined[label]:.0%}", place + 0.25, weight="bold", size=10)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.04, len(shown) + 0.12))
    axes.set_yticks(np.arange(len(shown)) + 0.25, [f"{label}\n{len(found.scores[label])} prompts" for label in shown])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=1.2)
    for text, shift, side in zip(("answers", "declines") if found.own else ("other words", "like a refusal"), (-4, 4), ("right", "left"), strict=True):
        axes.annotate(text, (0, 1), (shift, -1), xycoords=("data", "axes fraction"), textcoords="offset points", ha=side, va="top", size=8, color=QUIET)
    beside(axes, "declined", len(shown) + 0.04, size=8, color=QUIET)
    if found.aucs:
        seeds = f" ({len(found.aucs)} seeds)" if len(found.aucs) > 1 else ""
        axes.set_title(f"{axes.get_title('left')}\nAUC {' and '.join(f'{auc:.2f}' for auc in found.aucs)}{seeds}")
    axes.set_xlabel(
        "margin of the refusal token over the highest\nother token, its bias added (logits)"
        if found.own
        else "margin of the tokens that refusals begin with\nover the highest other token (logits)"
    )


def beside(axes: Axes, text: str, height: float, **style: Any) -> None:
    """Text on the right of a plot, outside it."""
    axes.annotate(text, (1, height), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", **style)


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges of about `BINS` bins over (prompts,) values; 0 is one of them."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = max(high - low, 1e-6) / BINS
    return width * np.arange(np.floor(low / width), np.floor(high / width) + 2)


@dataclass(frozen=True)
class Trained:
    """One row of the transfer map: what was trained, how many seeds, and the rates by label and task (`all`: all tasks together)."""

    title: str
    seeds: int
    rates: Mapping[tuple[str, str], Any]


def only_one(folder: Path) -> dict[str, Path]:
    """Variants' folders by the one task that they were tuned on, in the order of docward's tasks."""
    from docward.tasks import TASKS

    found = {path.name.removeprefix(ONLY): path for path in folder.glob(f"{ONLY}*") if path.is_dir()}
    if not found:
        raise SystemExit(f"{folder} has no variant that was tuned on one task (such as {folder / f'{ONLY}summarize'}). Make it: python bench/defence.py")
    order = list(TASKS)
    return dict(sorted(found.items(), key=lambda one: (order.index(one[0]) if one[0] in order else len(order), one[0])))


def measured_sets(folders: Sequence[Path]) -> list[str]:
    """The sets that every seed of every one of these variants was measured on."""
    runs = [run for folder in folders for run in seed_folders(folder)]
    return [place.name for place in sorted((runs[0] / "measured").iterdir(), reverse=True) if all((run / "measured" / place.name).is_dir() for run in runs)]


def transfer(folder: Path, name: str) -> list[Trained]:
    """The rows of the map on one set: a task each, then all five, where there is such a variant, then the untuned model."""
    only, every = only_one(folder), folder / ALL_FIVE
    rows = [trained(task, [run / "measured" / name for run in seed_folders(path)]) for task, path in only.items()]
    if every.is_dir() and name in measured_sets([every]):
        rows.append(trained("all five", [run / "measured" / name for run in seed_folders(every)]))
    beside = {untuned for path in only.values() for run in seed_folders(path) if (untuned := untuned_beside(folder, run / "measured" / name))}
    return [*rows, trained("nothing", sorted(beside))] if beside else rows


def untuned_beside(folder: Path, place: Path) -> Path | None:
    """Where the untuned model's replies to the same prompts are; None where that is not said, or they are gone."""
    said = place / "asked.json"
    beside = folder / "_untuned" / json.loads(said.read_text(encoding="utf-8")) if said.is_file() else None
    return beside if beside and (beside / "verdicts.jsonl").is_file() else None


def trained(title: str, places: Sequence[Path]) -> Trained:
    """The rates of all seeds' verdicts together; intervals are over documents, each seed's replies on a document being that document's."""
    from docward.evaluation.rates import pooled
    from docward.records import read_rows
    from docward.types import Verdict

    verdicts = [one for place in places for one in read_rows(place / "verdicts.jsonl", Verdict)]
    of = {task: [one for one in verdicts if one.task == task] for task in dict.fromkeys(one.task for one in verdicts)} | {"all": verdicts}
    rates = {(label, task): rate for task, some in of.items() for label, rate in pooled(some).items() if rate.value is not None}
    return Trained(title, len(places), rates)


def transfer_map(rows: Sequence[Trained], name: str) -> Figure:
    """A panel a label that there is; a cell has its rate in numbers and as a depth of colour, with the 95% interval below."""
    from docward.report.figures import LABEL_COLOURS, RATE_NAMES

    tasks = [*dict.fromkeys(task for row in rows for _, task in row.rates if task != "all"), "all"]
    labels = [label for label in LABEL_COLOURS if any(place[0] == label for row in rows for place in row.rates)]
    title = f"What training on one task does to others: {SETS.get(name, name)}"
    figure, grid = new_figure(title, 30 + len(labels) * (58 + 30 * len(rows)), len(labels), 1)
    for (axes,), label in zip(grid, labels, strict=True):
        axes.set_title(f"{RATE_NAMES[label]}, % of replies on {label} documents ({'high' if label == 'malicious' else 'low'} is wanted; 95% intervals)")
        axes.set(xlim=(0, len(tasks)), ylim=(len(rows), 0), ylabel="trained on")
        axes.set_xticks([place + 0.5 for place in range(len(tasks))], [task.replace("_", " ") for task in tasks])
        axes.set_yticks([place + 0.5 for place in range(len(rows))], [row_title(row) for row in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for height, row in enumerate(rows):
            for place, task in enumerate(tasks):
                cell(axes, (place, height), row.rates.get((label, task)), LABEL_COLOURS[label], framed=row.title == task)
    grid[-1, 0].set_xlabel("tested on")
    return figure


def row_title(row: Trained) -> str:
    """What was trained, and on how many seeds where there are several."""
    return row.title.replace("_", " ") + (f"\n{row.seeds} seeds" if row.seeds > 1 and row.title != "nothing" else "")


def cell(axes: Axes, at: tuple[int, int], rate: Any, colour: str, *, framed: bool) -> None:
    """One rate: a field from the paper's colour (0) towards the label's (1), and a frame where what is tested was trained."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    depth = DEEPEST * rate.value if rate else 0.0
    ground = (1 - depth) * np.array(to_rgb(PAPER)) + depth * np.array(to_rgb(colour))
    edge = {"edgecolor": INK, "linewidth": 1.6, "zorder": 3} if framed else {"edgecolor": PAPER, "linewidth": 1.6}
    axes.add_patch(Rectangle((at[0] + 0.02, at[1] + 0.04), 0.96, 0.92, facecolor=ground, **edge))
    middle, style = at[0] + 0.5, {"ha": "center", "va": "center", "zorder": 4}
    if rate is None:
        axes.text(middle, at[1] + 0.5, "not measured", size=7.5, color=QUIET, **style)
        return
    axes.text(middle, at[1] + 0.36, f"{100 * rate.value:.0f}", size=10, weight="bold", **style)
    axes.text(middle, at[1] + 0.74, f"{100 * rate.low:.0f} to {100 * rate.high:.0f}", size=7.5, **style)


def pictures(given: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """The figures that the numbers at hand allow, by name of their file."""
    if given.probes:
        probes = read_probes(given.probes)
        yield "probes-by-layer", probes_by_layer(probes)
        yield "learning-curve", learning_curve(probes)
    if given.ranking:
        pairs = [pair.partition("=") for pair in given.ranking]
        if odd := [name for name, _, folder in pairs if not folder]:
            raise SystemExit(f"--ranking takes NAME=FOLDER, such as defended=runs/defence/quickstart; found {', '.join(odd)}.")
        yield "ranking", ranking({name: ranked(Path(folder)) for name, _, folder in pairs}, given.sets)
    if given.transfer:
        known = measured_sets(list(only_one(given.transfer).values()))
        for name in wanted_sets(given.sets, known):
            yield f"transfer-{name}", transfer_map(transfer(given.transfer, name), name)


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=Path, metavar="FILE.json", help="what bench/probing.py kept with --output")
    parser.add_argument("--ranking", nargs="*", default=[], metavar="NAME=FOLDER", help="variants' folders of bench/defence.py, side by side")
    parser.add_argument("--sets", nargs="*", default=[], metavar="SET", help="rows of the ranking and maps of transfer, such as held-out; default: all")
    parser.add_argument("--transfer", type=Path, metavar="FOLDER", help="the folder of bench/defence.py, with its variants `only TASK`")
    parser.add_argument("--output-dir", type=Path, default=HERE.parent / "docs" / "pictures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="png: for looking at where nothing shows SVG")
    given = parser.parse_args()
    if not given.probes and not given.ranking and not given.transfer:
        raise SystemExit("Nothing to draw: give --probes FILE.json, --ranking NAME=FOLDER, --transfer FOLDER or several of them.")
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("Pictures want matplotlib: pip install 'docward[bench]'") from error
    with matplotlib.rc_context(STYLE):
        drawn = list(pictures(given))  # all of them before the first is written
        given.output_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn:
            place = given.output_dir / f"{name}.{given.format}"
            about = {"Date": None, "Creator": "bench/pictures.py", "Title": figure.get_suptitle()}
            figure.savefig(place, dpi=144, metadata=about if given.format == "svg" else None)
            print(place)


if __name__ == "__main__":
    main()
