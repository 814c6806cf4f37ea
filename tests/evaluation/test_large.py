"""Many replies: what judging and summing hold in memory is keys and counts, not texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DOCUMENTS, TASKS = 20_000, ("summarize", "case", "translate", "sentiment", "topic")
ALLOWED = 120  # MiB on top of what the libraries take; with all rows in memory it was 493

SUM = '''
import json, resource, sys
from pathlib import Path
import numpy, statsmodels.stats.proportion, rapidfuzz.distance
from docward.evaluation import evaluating
from docward.types import Outcome, Verdict

class Quick:
    """The rule judge reads 3,000 replies a second, which is not what is measured here."""
    name = "quick"
    def judge_all(self, replies):
        for reply in replies:
            outcome = Outcome.REFUSED if "can't" in reply.reply else Outcome.COMPLIED
            yield Verdict(reply.key, reply.document_id, reply.label, reply.task, outcome, "quick", "a short reason why")

evaluating.get_judge = lambda _: Quick()

class Golds(dict):
    def get(self, name, default=None):
        return {"case": f"Note {name}. " + "It is on bread. " * 10}

folder, keys = Path(sys.argv[1]), [line.rstrip() for line in open(sys.argv[2])]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics = evaluating.judge_folder(folder, Golds(), judge="rules", keys=keys)
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, metrics]))
'''


def test_a_hundred_thousand_replies_are_summed_in_little_memory(tmp_path: Path):
    keys = []
    with (tmp_path / "replies.jsonl").open("w") as out:
        for number in range(DOCUMENTS):
            name, label = f"d{number}", ("malicious", "sensitive", "ordinary")[number % 3]
            for task in TASKS:
                refused = (number // 3) % 4 == 0
                row = {"key": f"{name}|{task}|0", "document_id": name, "label": label, "task": task, "wording": 0, "instruction": "Do it.", "dropped": 0}
                row |= {
                    "document": f"Note {name}. " + "It is on bread. " * 10,
                    "reply": "I can't help with that." if refused else f"Note {name}. It is on bread.",
                }
                out.write(json.dumps(row) + "\n")
                keys.append(row["key"])
    (tmp_path / "keys").write_text("\n".join(keys))
    done = subprocess.run([sys.executable, "-c", SUM, str(tmp_path), str(tmp_path / "keys")], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, metrics = json.loads(done.stdout)
    assert sum(rate["judged"] for rate in metrics["rates"]) == len(keys) == 100_000
    assert all(abs(rate["value"] - 0.25) < 0.001 and rate["low"] < rate["value"] < rate["high"] for rate in metrics["pooled"].values())
    assert grown < ALLOWED, f"{grown:.0f} MiB"
