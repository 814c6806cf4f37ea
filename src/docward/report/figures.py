"""Numbers to figures: pure functions, nothing is read and nothing is written.

In: the metrics of one or more models (the `M` of metrics.json), the surface baseline, rows of training.jsonl and probes.jsonl as `tuning.py`
reads them, the curve of calibration.json as `dial.py` does, the `words` and the surface tells of audit.json.
Out: plotly figures with a see-through background, coloured for light and dark pages; the page sets ink and grid to its own theme.
One real row: `{"set": "malicious", "task": "summarize", "hits": 38, "judged": 40, "unjudged": 0, "value": 0.95, "low": 0.83, "high": 0.99}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from docward.report.values import percent, signed

SETS = ("malicious", "sensitive", "ordinary")
"""The order of the document sets, everywhere in the report."""

RATE_NAMES = {"malicious": "Block rate", "sensitive": "Over-refusal", "ordinary": "False refusal"}
"""What the share refused is called in each set."""

MODEL_COLOURS = {"untuned": "#d55e00", "defended": "#2f7fc1", "surface": "#808890"}
"""One colour per model: after Okabe and Ito (told apart by colour-blind readers), at least 3:1 against both page backgrounds."""

_OTHER_COLOURS = ("#00966e", "#a8559b", "#a67c00", "#5b6abf")
_SYMBOLS = {"untuned": "square", "defended": "circle", "surface": "diamond"}
_OTHER_SYMBOLS = ("triangle-up", "cross", "star", "pentagon")
LABEL_COLOURS = {"malicious": "#b5478a", "sensitive": "#a67c00", "ordinary": "#00907a"}
"""One colour per label, none of them a model's."""

_LABEL_PATTERNS = {"malicious": "", "sensitive": "/", "ordinary": "."}
TERMS = {
    "loss": ("total", "#2f7fc1", "solid", "circle"),
    "defense": ("defense (malicious, to refuse)", "#b5478a", "dash", "diamond"),
    "benign": ("benign (documents, to do the task)", "#00907a", "dot", "square"),
    "general": ("general (no document)", "#a06a48", "dashdot", "triangle-up"),
    "anchor": ("anchor (KL to the untuned model)", "#8a63d2", "longdash", "x"),
}
"""The terms of the loss: name, colour, dash and symbol of each curve."""
_PROBED = {"malicious": ("solid", "diamond"), "sensitive": ("dash", "square"), "ordinary": ("dot", "circle")}
_MIDDLE = "#808890"  # a grey that shows on white and on black
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_TICKS = (0, 20, 40, 60, 80, 100)
_PADDING = 4  # points of room beyond 0 and 100, so that a mark on the edge is not cut
_NEAR = 9  # points: marks nearer than this get their names on different sides
_FEW_POINTS = 40  # up to this many, a training curve shows each point
_FEW_STEPS = 6  # up to this many, the axis counts each: there is no half step
_STEP_ROOM = 0.02  # of the axis, on both sides of the steps, so that a mark on the edge is not cut
_LEVEL_LETTERS = 30  # of all levels' names together that fit side by side under a narrow figure
_DODGE = 0.14  # of the way to the next level: the three sets stand side by side
_GRID = {"gridcolor": "rgba(128,136,144,.25)", "zeroline": False, "fixedrange": True}


class Mark(NamedTuple):
    """A place in the trade-off plot: shares from 0 to 1, each as (value, low, high)."""

    model: str
    over_refusal: tuple[float, float, float]
    block: tuple[float, float, float]


def colour(model: str, models: Sequence[str]) -> str:
    """Give a model its colour: the same in every figure, table and badge of one report."""
    others = [name for name in models if name not in MODEL_COLOURS]
    return MODEL_COLOURS.get(model) or _OTHER_COLOURS[others.index(model) % len(_OTHER_COLOURS)]


def _symbol(model: str, models: Sequence[str]) -> str:
    others = [name for name in models if name not in _SYMBOLS]
    return _SYMBOLS.get(model) or _OTHER_SYMBOLS[others.index(model) % len(_OTHER_SYMBOLS)]


def display_name(model: str) -> str:
    """Say what a model is called in the page."""
    return "surface baseline" if model == "surface" else model


def marks(models: Mapping[str, Mapping[str, Any]], surface: Mapping[str, Any] | None) -> list[Mark]:
    """Place the marks of the trade-off plot: models (and baseline) whose block rate and over-refusal were both measured."""
    placed = []
    for name, metrics in {**models, **({"surface": surface} if surface else {})}.items():
        pooled = metrics.get("pooled") or {}
        over, block = pooled.get("sensitive"), pooled.get("malicious")
        if over and block and over["value"] is not None and block["value"] is not None:
            placed.append(Mark(name, _triple(over), _triple(block)))
    return placed


def _triple(rate: Mapping[str, Any]) -> tuple[float, float, float]:
    value = rate["value"]
    low, high = rate.get("low"), rate.get("high")
    return value, value if low is None else low, value if high is None else high


def _figure(**layout: Any) -> Any:
    import plotly.graph_objects as go

    base = {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13},
        "margin": {"l": 60, "r": 16, "t": 16, "b": 52},
        "dragmode": False,  # so that a finger on a figure scrolls the page
        "hoverlabel": {"align": "left"},
    }
    return go.Figure(layout={**base, **layout})


def _share_axis(title: str, **more: Any) -> dict[str, Any]:
    grid = {"gridcolor": "rgba(128,136,144,.25)", "zeroline": False, "fixedrange": True}
    ticks = {"tickvals": _TICKS, "ticktext": [f"{tick}%" for tick in _TICKS]}
    return {"title": {"text": title}, "range": [-_PADDING, 100 + _PADDING], **ticks, **grid, **more}


def _bars(value: Sequence[float], low: Sequence[float], high: Sequence[float], **more: Any) -> dict[str, Any]:
    """Error bars in points, from shares."""
    upper = [100 * (h - v) for v, h in zip(value, high, strict=True)]
    lower = [100 * (v - lo) for v, lo in zip(value, low, strict=True)]
    return {"type": "data", "symmetric": False, "array": upper, "arrayminus": lower, **more}


def trade_off(placed: Sequence[Mark]) -> Any:
    """Block rate over over-refusal, best top left, 95% intervals as bars; on the dotted line a model refuses both sets alike."""
    import plotly.graph_objects as go

    names = [mark.model for mark in placed]
    axes = {"xaxis": _share_axis("Over-refusal (lower is better)"), "yaxis": _share_axis("Block rate (higher is better)")}
    figure = _figure(height=500, showlegend=False, margin={"l": 64, "r": 16, "t": 34, "b": 52}, **axes)
    figure.add_shape(type="line", x0=0, y0=0, x1=100, y1=100, line={"color": _MIDDLE, "width": 1, "dash": "dot"}, layer="below")
    hint = {"showarrow": False, "font": {"color": _MIDDLE, "size": 12}, "xanchor": "left"}
    figure.add_annotation(text="refuses both alike", x=63, y=57, yanchor="top", **hint)
    figure.add_annotation(text="<b>↖ better</b>", xref="paper", yref="paper", x=0, y=1, yanchor="bottom", **{**hint, "font": {"color": _MIDDLE, "size": 14}})
    for mark, side in zip(placed, _sides(placed), strict=True):
        paint, name = colour(mark.model, names), escape(display_name(mark.model))
        looks = {"marker": {"size": 14, "color": paint, "symbol": _symbol(mark.model, names)}, "textfont": {"color": paint, "size": 14}}
        intervals = {
            f"error_{axis}": _bars([v], [lo], [hi], color=paint, thickness=2, width=5) for axis, (v, lo, hi) in (("x", mark.over_refusal), ("y", mark.block))
        }
        hover = f"<b>{name}</b><br>block rate {_range(mark.block)}<br>over-refusal {_range(mark.over_refusal)}<extra></extra>"
        place = {"x": [100 * mark.over_refusal[0]], "y": [100 * mark.block[0]], "text": [f"<b>{name}</b>"], "textposition": side, "cliponaxis": False}
        figure.add_trace(go.Scatter(mode="markers+text", name=name, hovertemplate=hover, **place, **looks, **intervals))
    return figure


def _sides(placed: Sequence[Mark]) -> list[str]:
    """Where each name stands: to the inner side of its mark, under it where the mark before is near."""
    sides: list[str] = []
    for number, mark in enumerate(placed):
        x, y = mark.over_refusal[0], mark.block[0]
        near = any(abs(x - other.over_refusal[0]) * 100 < _NEAR and abs(y - other.block[0]) * 100 < _NEAR for other in placed[:number])
        upper = (y < 0.9) != near
        sides.append(f"{'top' if upper else 'bottom'} {'right' if x < 0.6 else 'left'}")
    return sides


def _range(shares: tuple[float, float, float]) -> str:
    value, low, high = (100 * share for share in shares)
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


def task_rates(models: Mapping[str, Mapping[str, Any]], label: str) -> Any | None:
    """Draw the share refused per task in one set, a bar per model with its 95% interval; None where nothing was measured."""
    import plotly.graph_objects as go

    cells = {name: _measured(metrics, label) for name, metrics in models.items()}
    tasks = list(dict.fromkeys(task for rows in cells.values() for task in rows))
    if not tasks:
        return None
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}
    bars = {"barmode": "group", "bargap": 0.32, "bargroupgap": 0.08, "height": 110 + len(tasks) * (18 + 17 * len(cells))}
    figure = _figure(legend=legend, showlegend=len(cells) > 1, margin={"l": 8, "r": 12, "t": 30, "b": 44}, **bars)
    figure.update_layout(xaxis=_share_axis("share refused", range=[0, 100 + _PADDING]))
    figure.update_layout(yaxis={"automargin": True, "autorange": "reversed", "type": "category", "fixedrange": True, "ticksuffix": "  "})
    hover = "<b>%{fullData.name}</b>, %{y}<br>%{customdata[0]}<br>%{customdata[1]} of %{customdata[2]} judged, %{customdata[3]} unjudged<extra></extra>"
    for name, rows in cells.items():
        shown = [rows[task] for task in tasks if task in rows]
        values, lows, highs = ([_triple(row)[i] for row in shown] for i in range(3))
        figure.add_trace(
            go.Bar(
                name=escape(display_name(name)),
                orientation="h",
                y=[escape(row["task"]) for row in shown],
                x=[100 * value for value in values],
                marker={"color": colour(name, list(models))},
                error_x=_bars(values, lows, highs, thickness=1.5, width=4, color="#444"),
                customdata=[[_range(_triple(row)), row["hits"], row["judged"], row["unjudged"]] for row in shown],
                hovertemplate=hover,
            )
        )
    return figure


def _measured(metrics: Mapping[str, Any], label: str) -> dict[str, Mapping[str, Any]]:
    return {row["task"]: row for row in metrics.get("rates") or [] if row["set"] == label and row["value"] is not None}


def training_curves(rows: Sequence[Mapping[str, Any]], *, reach: int, kept: int | None = None) -> Any | None:
    """Training loss over steps up to `reach`, the total and its terms, the anchor in a panel of its own; None where no row has a step and a loss."""
    import plotly.graph_objects as go

    rows = [row for row in rows if _is_number(row.get("step"))]
    terms = {term: found for term in TERMS if (found := [(row["step"], row[term]) for row in rows if _is_number(row.get(term))])}
    if not terms:
        return None
    figure = _over_steps(reach, kept, yaxis={"title": {"text": "loss"}, "rangemode": "tozero", **_GRID}, height=400)
    if "anchor" in terms:  # a KL is far smaller than the other terms: on one axis it would lie flat at zero
        lower = {"title": {"text": "anchor"}, "rangemode": "tozero", "domain": [0, 0.24], "nticks": 4, **_GRID}
        figure.update_layout(xaxis={"anchor": "y2"}, yaxis={"domain": [0.34, 1]}, yaxis2=lower, hoversubplots="axis", height=500)
    for term, points in terms.items():
        name, paint, dash, symbol = TERMS[term]
        steps, losses = zip(*points, strict=True)
        looks = {"line": {"color": paint, "dash": dash, "width": 3 if term == "loss" else 2}, "marker": {"symbol": symbol, "size": 6, "color": paint}}
        where = {"mode": _mode(points), "yaxis": "y2" if term == "anchor" else "y"}
        figure.add_trace(go.Scatter(x=steps, y=losses, name=name, hovertemplate="%{y:.3f}", **where, **looks))
    return figure


def probe_curves(probes: Sequence[Mapping[str, Any]], *, reach: int, kept: int | None = None) -> Any | None:
    """Share refused in each set over steps, 95% intervals as bands, or as bars where there is one only; None where nothing was measured."""
    import plotly.graph_objects as go

    measured = {label: [(row["step"], rate) for row in probes if (rate := row["rates"][label]) and rate["value"] is not None] for label in SETS}
    if not any(measured.values()):
        return None
    figure = _over_steps(reach, kept, yaxis=_share_axis("share refused"), height=440)
    figure.add_traces([go.Scatter(**_band(label, points)) for label, points in measured.items() if _known_ends(points) > 1])
    figure.add_traces([go.Scatter(**_probed(label, points)) for label, points in measured.items() if points])  # later, so that no band lies over a line
    return figure


def _known_ends(points: Sequence[tuple[int, Mapping[str, Any]]]) -> int:
    return sum(rate["low"] is not None for _, rate in points)


def _band(label: str, points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The intervals of one set as an area: along their upper ends and back along the lower ones."""
    ends = [(step, 100 * rate["low"], 100 * rate["high"]) for step, rate in points if rate["low"] is not None]
    around = [*((step, high) for step, _, high in ends), *((step, low) for step, low, _ in reversed(ends))]
    red, green, blue = (int(LABEL_COLOURS[label][place : place + 2], 16) for place in (1, 3, 5))
    looks = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},.15)", "line": {"color": f"rgba({red},{green},{blue},.5)", "width": 1}}
    words = {"name": f"{label}, interval", "showlegend": False, "legendgroup": label, "hoverinfo": "skip"}
    return {"x": [step for step, _ in around], "y": [end for _, end in around], "mode": "lines", **looks, **words}


def _probed(label: str, points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The rates of one set as a line, with what a pointer on it says."""
    dash, symbol = _PROBED[label]
    triples = [_triple(rate) for _, rate in points]
    paint = LABEL_COLOURS[label]
    looks: dict[str, Any] = {"line": {"color": paint, "dash": dash, "width": 2.5}, "marker": {"symbol": symbol, "size": 8, "color": paint}}
    if _known_ends(points) == 1:
        looks["error_y"] = _bars(*zip(*triples, strict=True), color=paint, thickness=2, width=5)
    ranges = [_range(triple) if rate["low"] is not None else percent(rate["value"]) for triple, (_, rate) in zip(triples, points, strict=True)]
    said = [f"{words}, {rate['hits']} of {rate['judged']} judged, {rate['unjudged']} unjudged" for words, (_, rate) in zip(ranges, points, strict=True)]
    words = {"name": _wanted(label), "customdata": said, "hovertemplate": "%{customdata}", "legendgroup": label}
    return {"x": [step for step, _ in points], "y": [100 * value for value, _, _ in triples], "mode": _mode(points), "cliponaxis": False, **words, **looks}


def _wanted(label: str) -> str:
    return f"{RATE_NAMES[label]} (wanted: {'high' if label == 'malicious' else 'low'})"


def _over_steps(reach: int, kept: int | None, **layout: Any) -> Any:
    """A figure over steps: the losses and the probes have the same axis, so that one can be read under the other. The kept step is a line through it."""
    figure = _marked(kept, (0, reach), f"kept: step {kept or 0:,}", **layout)
    room = max(0.5, _STEP_ROOM * reach)
    ticks = {"dtick": 1} if reach <= _FEW_STEPS else {}
    steps = {"title": {"text": "step"}, "tickformat": ",", "unifiedhovertitle": {"text": "step %{x}"}, "range": [-room, reach + room]}
    figure.update_layout(xaxis={**steps, **_GRID, **ticks})
    return figure


def _marked(place: float | None, ends: tuple[float, float], text: str, **layout: Any) -> Any:
    """A figure with its legend above it and one place on its x axis marked by a line and a text, if there is one; the text stays inside the ends."""
    legend = {"orientation": "h", "x": 0, "y": 1.07, "yanchor": "bottom"}
    figure = _figure(legend=legend, showlegend=True, hovermode="x unified", margin={"l": 64, "r": 16, "t": 60, "b": 50}, **layout)
    if place is not None:
        figure.add_shape(type="line", x0=place, x1=place, yref="paper", y0=0, y1=1, line={"color": _MIDDLE, "width": 2, "dash": "dot"}, layer="below")
        near = 0.1 * (ends[1] - ends[0])
        side = "left" if place < ends[0] + near else "right" if place > ends[1] - near else "center"
        figure.add_annotation(text=f"<b>{text}</b>", x=place, y=1, yref="paper", yanchor="bottom", xanchor=side, showarrow=False)
    return figure


def dial_curves(rows: Sequence[Mapping[str, Any]], *, bias: float | None) -> Any | None:
    """Share refused in each set over the bias of the refusal token, with a mark where the dial stands; None where there is no curve."""
    import plotly.graph_objects as go

    curves = {label: found for label in SETS if (found := [(row["bias"], row[label]) for row in rows if row[label] is not None])}
    if not curves:
        return None
    places = [row["bias"] for row in rows] + ([] if bias is None else [bias])
    low, high = min(places), max(places)
    room = _STEP_ROOM * (high - low) or 0.5
    figure = _marked(bias, (low, high), f"the dial: {signed(bias)}", yaxis=_share_axis("share refused"), height=440)
    axis = {"title": {"text": "added to the refusal token's logit"}, "range": [low - room, high + room], "unifiedhovertitle": {"text": "%{x:+.2f}"}}
    figure.update_layout(xaxis={**axis, **_GRID})
    for label, points in curves.items():
        dash, symbol = _PROBED[label]
        paint = LABEL_COLOURS[label]
        looks = {"line": {"color": paint, "dash": dash, "width": 2.5}, "marker": {"symbol": symbol, "size": 6, "color": paint}, "cliponaxis": False}
        biases, shares = zip(*points, strict=True)
        heights = [100 * one for one in shares]
        figure.add_trace(go.Scatter(x=biases, y=heights, name=_wanted(label), mode=_mode(points), hovertemplate="%{y:.1f}%", **looks))
    return figure


def suite_curves(levels: Sequence[Mapping[str, Any]]) -> Any | None:
    """Share refused in each set at each level of a robustness suite, with 95% intervals; a line joins levels of one curve. None where nothing was measured."""
    import plotly.graph_objects as go

    traces = [trace for number, label in enumerate(SETS) for trace in _suite_traces(levels, label, (number - 1) * _DODGE)]
    if not traces:
        return None
    legend = {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom"}
    figure = _figure(legend=legend, showlegend=True, margin={"l": 56, "r": 10, "t": 44, "b": 20}, yaxis=_share_axis("share refused"), height=380)
    names = [str(level["name"]) for level in levels]
    slant = -35 if sum(map(len, names)) > _LEVEL_LETTERS else 0  # leaning left, so that the last name stays in the figure
    ticks = {"tickvals": list(range(len(names))), "ticktext": list(map(escape, names)), "tickangle": slant, "ticklabeloverflow": "allow", "automargin": True}
    figure.update_layout(xaxis={"range": [-0.5, len(levels) - 0.5], **ticks, **_GRID, "showgrid": False})
    figure.add_shape(type="line", x0=0.5, x1=0.5, yref="paper", y0=0, y1=1, line={"color": _MIDDLE, "width": 1, "dash": "dot"}, layer="below")
    figure.add_traces([go.Scatter(**trace) for trace in traces])
    return figure


def _suite_traces(levels: Sequence[Mapping[str, Any]], label: str, aside: float) -> list[dict[str, Any]]:
    """One set's traces, a curve each; only the first is in the legend. Sets stand side by side, so that no interval hides another."""
    measured = [(place, level, rate) for place, level in enumerate(levels) if (rate := level["rates"][label]) and rate["value"] is not None]
    curves: dict[Any, list[Any]] = {}
    for place, level, rate in measured:
        curves.setdefault(level["curve"] or place, []).append((place, level, rate))
    dash, symbol = _PROBED[label]
    paint = LABEL_COLOURS[label]
    traces: list[dict[str, Any]] = []
    for points in curves.values():
        triples = [_triple(rate) for _, _, rate in points]
        said = [
            f"<b>{escape(level['name'])}</b><br>{RATE_NAMES[label]} {_range(triple)}<br>{rate['hits']} of {rate['judged']} judged, {rate['unjudged']} unjudged"
            + (f"<br>against unchanged: {told}" if (told := level["differences"][label]) else "")
            for triple, (_, level, rate) in zip(triples, points, strict=True)
        ]
        looks = {"line": {"color": paint, "dash": dash, "width": 2}, "marker": {"symbol": symbol, "size": 8, "color": paint}, "cliponaxis": False}
        words = {"name": RATE_NAMES[label], "legendgroup": label, "showlegend": not traces, "customdata": said, "hovertemplate": "%{customdata}<extra></extra>"}
        where = {"x": [place + aside for place, _, _ in points], "y": [100 * value for value, _, _ in triples], "mode": _mode(points)}
        traces.append({**where, **words, **looks, "error_y": _bars(*zip(*triples, strict=True), color=paint, thickness=1.5, width=4)})
    return traces


def _mode(points: Sequence[Any]) -> str:
    return "lines+markers" if len(points) <= _FEW_POINTS else "lines"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def word_lengths(words: Mapping[str, Any]) -> Any | None:
    """What share of each label's documents falls into each bin of words; None where there is no histogram. Bins empty at both ends are left out."""
    import plotly.graph_objects as go

    counts = {label: found for label in SETS if (found := _histogram(words.get(label)))}
    bins = sorted({name for histogram in counts.values() for name in histogram}, key=_bin_start)
    filled = [place for place, name in enumerate(bins) if any(histogram.get(name) for histogram in counts.values())]
    if not filled:
        return None
    bins = bins[filled[0] : filled[-1] + 1]
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure = _figure(height=320, barmode="group", bargap=0.25, legend=legend, showlegend=True, margin={"l": 52, "r": 12, "t": 34, "b": 58})
    figure.update_layout(xaxis={"title": {"text": "words in the document"}, "type": "category", "fixedrange": True, "automargin": True})
    shares = {"title": {"text": "share of documents"}, "ticksuffix": "%", "rangemode": "tozero"}
    figure.update_layout(yaxis={**shares, "gridcolor": "rgba(128,136,144,.25)", "fixedrange": True, "zeroline": False})
    for label, histogram in counts.items():
        marker = {"color": LABEL_COLOURS[label], "pattern": {"shape": _LABEL_PATTERNS[label], "fillmode": "overlay", "fgcolor": "#fff", "fgopacity": 0.55}}
        many = [histogram.get(name, 0) for name in bins]
        heights = [round(100 * one / (sum(histogram.values()) or 1), 2) for one in many]
        hover = "%{x} words: %{customdata} documents, %{y:.0f}%<extra>" + label + "</extra>"
        figure.add_trace(go.Bar(x=[escape(name) for name in bins], y=heights, customdata=many, name=label, marker=marker, hovertemplate=hover))
    return figure


def _histogram(lengths: Any) -> dict[str, float]:
    given = lengths.get("histogram") if isinstance(lengths, Mapping) else None
    return {str(name)[:24]: many for name, many in given.items() if _is_number(many) and many >= 0} if isinstance(given, Mapping) else {}


def _bin_start(name: str) -> tuple[float, str]:
    found = re.search(r"[0-9]+(\.[0-9]+)?", name)
    return (float(found.group()) if found else float("inf"), name)


def surface_tells(tells: Sequence[tuple[str, float]]) -> Any | None:
    """The surface features that weigh most, heaviest on top: to the right those that speak for malicious, to the left those for sensitive."""
    import plotly.graph_objects as go

    if not tells:
        return None
    reach = 1.15 * max(abs(weight) for _, weight in tells) or 1.0
    figure = _figure(height=96 + 27 * len(tells), showlegend=False, bargap=0.35, margin={"l": 8, "r": 12, "t": 34, "b": 44})
    grid = {"gridcolor": "rgba(128,136,144,.25)", "fixedrange": True}
    figure.update_layout(xaxis={"title": {"text": "weight"}, "range": [-reach, reach], "zeroline": True, "zerolinecolor": _MIDDLE, **grid})
    figure.update_layout(yaxis={"automargin": True, "autorange": "reversed", "type": "category", "fixedrange": True, "ticksuffix": "  "})
    for text, place, anchor, paint in (("← sensitive", 0, "left", "sensitive"), ("malicious →", 1, "right", "malicious")):
        figure.add_annotation(
            text=text, x=place, y=1, xref="paper", yref="paper", xanchor=anchor, yanchor="bottom", showarrow=False, font={"color": LABEL_COLOURS[paint]}
        )
    colours = [LABEL_COLOURS["malicious" if weight > 0 else "sensitive"] for _, weight in tells]
    names, heavy = [escape(name) for name, _ in tells], [weight for _, weight in tells]
    figure.add_trace(go.Bar(orientation="h", y=names, x=heavy, marker={"color": colours}, hovertemplate="%{y}: %{x:+.3f}<extra></extra>"))
    return figure
