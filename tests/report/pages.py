"""Pages of the report as the tests read and change them."""

import json
import re

from docward.report.page import write_report


def change(path, edit):
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def render(run):
    return write_report(run).read_text(encoding="utf-8")


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="embedded">(.*?)</script>', page, re.DOTALL).group(1))


def words(page):
    """What a reader sees in the still page: no scripts, no styles, no tags, single spaces."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def assert_note_and_legend_fit(browser, figure):
    """The annotation of an open page's figure and its legend lie inside it, and the one not over the other."""
    box = "(node => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] })"
    left, top, right, bottom = browser.ask(f"{box}(document.querySelector('[data-figure={figure}]'))")
    note, legend = (browser.ask(f"{box}(document.querySelector('[data-figure={figure}] .{name}'))") for name in ("annotation-text", "legend"))
    for inner in (note, legend):
        assert (left, top) <= (inner[0], inner[1])
        assert inner[2] <= right
        assert inner[3] <= bottom
        assert top <= inner[1]
    assert legend[3] <= note[1] + 2
