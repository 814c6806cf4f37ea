"""How fast and how large a build is: 200,000 documents from JSONL to a dataset.

    python bench/building.py [--quick]

Documents are made by resampling sentences of the starter corpus. Measured in processes of their own: documents per second and peak memory at 200,000
(all processes of the build together, proportional set size), growth (time per document at 200,000 over 20,000), and whether a build that is killed half-way and
run again ends with the same bytes. `--quick` does 20,000 over 2,000. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from docward.dataset.building import SENTENCE_END
from docward.documents.reading import own_documents
from docward.records import file_hash
from docward.types import Label

RECIPE = """documents: [{path: documents.jsonl}]
dataset:
  tasks: [case, next_sentence]  # both have gold answers: the build is measured, not a model
  answers: gold
  general: 0
  max_surface_auc: 1
"""
SENTENCES = 14  # a document: about 220 words


def write_documents(path: Path, count: int) -> None:
    """Write matched triples of sentences drawn from the starter corpus, each label's from its own documents."""
    draw = random.Random(0)
    sentences = {label: [s for d in own_documents() if d.label == label for s in SENTENCE_END.split(d.text) if len(s) > 20] for label in Label}
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            label = list(Label)[number % 3]
            row = {"id": f"d{number}", "text": " ".join(draw.choices(sentences[label], k=SENTENCES)), "label": label.value, "triple": f"t{number // 3}"}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a build in a session of its own, so that it can be killed with all its processes."""
    command = [str(Path(sys.executable).with_name("docward")), "build", str(folder / "recipe.yaml"), "--output-dir", str(folder / "run")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def memory(pid: int) -> float:
    """MiB of a process and its children, shared pages counted once."""
    total = 0
    try:
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += one.memory_full_info().pss
    except psutil.Error:
        return 0.0
    return total / 2**20


def build(folder: Path) -> tuple[float, float]:
    """Build to the end: seconds and peak MiB."""
    began, peak = time.monotonic(), 0.0
    process = start(folder)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"The build of {folder} failed with exit code {process.returncode}.")
    return time.monotonic() - began, peak


def prepared(place: Path, name: str, count: int) -> Path:
    """A folder with documents and a recipe."""
    folder = place / name
    folder.mkdir()
    write_documents(folder / "documents.jsonl", count)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """The hashes of a built dataset's files."""
    return {path.name: file_hash(path) for path in sorted((folder / "run" / "dataset").iterdir())}


def killed_and_run_again(place: Path, count: int, seconds: float, wanted: dict[str, str]) -> bool:
    """Kill a build half-way with SIGKILL, run it again, compare every byte of the dataset."""
    folder = prepared(place, "killed", count)
    process = start(folder)
    time.sleep(seconds / 2)
    if process.poll() is not None:
        raise SystemExit("The build was over before it could be killed: its time varies too much here.")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    build(folder)
    return digests(folder) == wanted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 over 2,000 documents")
    small, large = (2_000, 20_000) if parser.parse_args().quick else (20_000, 200_000)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        first = prepared(place, "small", small)
        seconds_small, _ = build(first)
        print(f"{small:>8,} documents: {seconds_small:7.1f} s, {small / seconds_small:7.0f} documents/s", flush=True)
        seconds, peak = build(prepared(place, "large", large))
        print(f"{large:>8,} documents: {seconds:7.1f} s, {large / seconds:7.0f} documents/s, {peak:.0f} MiB at most", flush=True)
        same = killed_and_run_again(place, small, seconds_small, digests(first))
        print(f"killed after {seconds_small / 2:.1f} s and run again: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
    growth = (seconds / large) / (seconds_small / small)
    figures = {"documents_per_second": round(large / seconds, 1), "peak_memory_mib": round(peak), "growth": round(growth, 3), "same_bytes_after_kill": same}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
