"""What `docward evaluate` says of a model's worth on benign documents."""

from __future__ import annotations

import json

from docward.cli.main import app
from docward.records import write_rows


def test_evaluate_shows_what_a_model_is_worth_against_gold(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "Note {} is a note on bread. The second sentence is a short one. A third one follows here."
    write_rows(tmp_path / "mine.jsonl", [{"text": text.format(number), "gold": {"summarize": "On bread."}} for number in range(2)])
    write_rows(tmp_path / "general.jsonl", [{"instruction": "Say hello.", "response": "Hello."}])
    asked = ["evaluate", "--model", str(tiny_folder), "--documents", "ordinary=mine.jsonl", "--tasks", "summarize,next_sentence", "--max-new-tokens", "2"]
    app([*asked, "--output-dir", "out", "--general", "general.jsonl"], standalone_mode=False)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    shown = {tuple(row[:3]): row[3] for row in cells if row[2] in ("gold", "untuned")}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert shown == {(one["task"], one["measure"], one["against"]): f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in metrics["utility"]}
    assert list(shown) == [("summarize", "rouge_l", "gold"), ("next_sentence", "log_likelihood", "gold"), ("general", "perplexity", "gold")]
