"""An exported model runs in lm-evaluation-harness, without a network, by the command that docs/utility.md gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from docward.serving.exporting import export
from tiny import adapted

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "utility.md").read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: pip install --constraint constraints.txt 'docward[lm-eval]'")
def test_the_command_of_the_docs_measures_an_exported_model_offline(tiny_folder, tmp_path):
    adapted(str(tiny_folder), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "exported")
    (command,) = re.findall(r"^(lm_eval .*--include_path recipes/lm_eval.*)$", PAGE, re.MULTILINE)
    asked = command.replace("pretrained=exported", f"pretrained={tmp_path / 'exported'}").split()[1:]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *asked, "--device", "cpu", "--output_path", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (place,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(place.read_text())
    assert found["n-samples"]["docward_reading"]["effective"] == 24
    assert 0 <= found["results"]["docward_reading"]["acc,none"] <= 1
    assert found["chat_template"], "the model is asked in its own chat template"


def test_each_question_of_the_task_has_one_answer_among_four():
    rows = [json.loads(line) for line in (ROOT / "recipes" / "lm_eval" / "docward_reading.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24
    assert all(len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4 for row in rows)
    places = [row["answer"] for row in rows]
    assert {place: places.count(place) for place in range(4)} == dict.fromkeys(range(4), 6), "no place of an answer is likelier than another"
