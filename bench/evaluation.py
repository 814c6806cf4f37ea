"""How fast evaluation is: documents under K tasks, each document read once, against `generate` as people write it and the paper's script.

    python bench/evaluation.py [--quick] [--lengths 600] [--tasks 5] [--documents 12] [--model NAME] [--float32]

Same model, prompts and dtype for all, each in a process of its own; greedy replies of 32 new tokens, but for the paper's:

    shared      docward: a document's keys and values once, its branches together, several documents a batch
    verdicts    the same where only verdicts are wanted: a reply is cut where its verdict is settled
    generate    transformers' generate on padded batches of `--rows` prompts in the order of documents
    continuous  transformers' continuous batching (`generate_batch`)
    paper       the published script: one prompt at a time, 4 beams, 128 new tokens; on the first document's prompts only

Prompts a second (rendering, padding and decoding of tokens counted, loading not), peak memory of the process, and how many replies are those of `generate` to
the letter, of `verdicts` how many those begin with (in float32 all should be: bfloat16 rounds differently where sums are taken in another order). `--quick` is
three documents and no `continuous`. The last line is JSON: what is found at the first length, and under `lengths` at the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from tuning import documents, model_of, peak

CONTESTANTS = ("generate", "shared", "verdicts", "continuous", "paper")
QUICK = 3  # documents
NEW = 32  # tokens a reply
PATIENCE = 600  # seconds
PAPER = {"num_beams": 4, "do_sample": False, "max_new_tokens": 128}  # of github.com/FYYFU/safety-defense, as the paper has it


def prompts(tokenizer: Any, length: int, tasks: int, count: int) -> list[Any]:
    """`count` documents of about `length` tokens under `tasks` tasks."""
    from docward.evaluation.generating import Prompt
    from docward.tasks import TASKS

    wordings = [task.wordings[0] for task in TASKS.values()][:tasks]
    texts = documents(tokenizer, length, count)
    return [Prompt(f"{place}|{number}", text, wording) for place, text in enumerate(texts) for number, wording in enumerate(wordings)]


def shared(loaded: Any, asked: list[Any], rows: int) -> dict[str, str]:
    """Docward's own."""
    from docward.evaluation.generating import generate

    return {one.key: one.text for batch in generate(loaded, asked, max_new_tokens=NEW) for one in batch}


def verdicts(loaded: Any, asked: list[Any], rows: int) -> dict[str, str]:
    """Docward's own, as far as verdicts want."""
    from docward.evaluation.generating import Prompt, generate
    from docward.evaluation.judges import is_settled

    def enough(prompt: Prompt, said: str) -> bool:
        return is_settled(said, document=prompt.document, instruction=prompt.instruction)

    return {one.key: one.text for batch in generate(loaded, asked, max_new_tokens=NEW, enough=enough) for one in batch}


def rendered(loaded: Any, asked: list[Any]) -> list[list[int]]:
    """Token ids of prompts."""
    from docward.rendering import render

    return [render(loaded.tokenizer, document=one.document, instruction=one.instruction, limit=loaded.context, reserve=128).ids for one in asked]


def generate(loaded: Any, asked: list[Any], rows: int, **options: Any) -> dict[str, str]:
    """Padded batches through `generate`."""
    import torch

    found: dict[str, str] = {}
    how = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": loaded.tokenizer.pad_token_id} | options
    ids = rendered(loaded, asked)
    for start in range(0, len(asked), rows):
        batch = loaded.tokenizer.pad({"input_ids": ids[start : start + rows]}, padding_side="left", return_tensors="pt").to(loaded.model.device)
        with torch.inference_mode():
            out = loaded.model.generate(**batch, **how)
        texts = loaded.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= {one.key: text.strip() for one, text in zip(asked[start : start + rows], texts, strict=True)}
    return found


def continuous(loaded: Any, asked: list[Any], rows: int) -> dict[str, str]:
    """Transformers' continuous batching."""
    from transformers import GenerationConfig

    ends = loaded.model.generation_config.eos_token_id
    how = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=loaded.tokenizer.pad_token_id)
    out = loaded.model.generate_batch(inputs=rendered(loaded, asked), generation_config=how, progress_bar=False)
    ordered = sorted(out.values(), key=lambda one: int(one.request_id.split("_")[-1]))
    texts = [loaded.tokenizer.decode(one.generated_tokens, skip_special_tokens=True).strip() for one in ordered]
    return {one.key: text for one, text in zip(asked, texts, strict=True)}


def paper(loaded: Any, asked: list[Any], rows: int) -> dict[str, str]:
    """One by one with beams."""
    return generate(loaded, asked, 1, **PAPER)


def worker(model: str, name: str, length: int, tasks: int, count: int, rows: int, dtype: str) -> None:
    """Answer in this process and print seconds, peak memory and replies."""
    from docward.models import load

    loaded = load(model, dtype="float32") if dtype == "float32" else model_of(model)
    asked = prompts(loaded.tokenizer, length, tasks, count)
    if name == "paper":
        asked = asked[:tasks]
    answer = {"shared": shared, "verdicts": verdicts, "generate": generate, "continuous": continuous, "paper": paper}[name]
    answer(loaded, prompts(loaded.tokenizer, 50, tasks, 1)[:2], rows)  # what is done once in a process is not counted
    start = time.perf_counter()
    replies = answer(loaded, asked, rows)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "prompts": len(asked), "mib": peak(loaded.model.device), "dtype": str(loaded.model.dtype)[6:], "replies": replies}))


def measured(given: argparse.Namespace, name: str, length: int, tasks: int) -> dict[str, Any] | None:
    """What a worker finds, in a process of its own; None where it does not end."""
    told = [given.model, name, length, tasks, given.documents, given.rows, "float32" if given.float32 else ""]
    command = [sys.executable, "-W", "ignore", __file__, "--worker", *map(str, told)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise SystemExit(f"{name} at {length} tokens, K = {tasks} failed: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"rate": found["prompts"] / found["seconds"]}


def agreeing(name: str, replies: dict[str, str], theirs: dict[str, str]) -> int:
    """How many replies are those of `generate`; of `verdicts`, how many those begin with."""
    if name == "verdicts":
        return sum(theirs[key].startswith(text.rstrip("\ufffd")) for key, text in replies.items())  # a letter may be cut in two
    return sum(text == theirs[key] for key, text in replies.items())


def figures(at: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the JSON line says of one length."""
    if "shared" not in at:
        return {}
    found = {f"speedup_vs_{name}": round(at["shared"]["rate"] / one["rate"], 2) for name, one in at.items() if name not in ("shared", "verdicts")}
    found |= {"prompts_per_second": round(at["shared"]["rate"], 3), "dtype": at["shared"]["dtype"]}
    if "verdicts" in at:
        found["speedup_of_verdicts"] = round(at["verdicts"]["rate"] / at["shared"]["rate"], 2)
    if "generate" in at:
        found["memory_vs_generate"] = round(at["shared"]["mib"] / at["generate"]["mib"], 3)
    return found


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} documents, no `continuous`")
    parser.add_argument("--lengths", type=int, nargs="+", default=[600])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--rows", type=int, default=16, help="prompts in a batch of `generate`")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--float32", action="store_true", help="in float32, where replies must be the same")
    parser.add_argument("--worker", nargs=7, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.quick:
        given.documents, given.contestants = QUICK, [name for name in given.contestants if name != "continuous"]
    return given


def main() -> None:
    """Measure and print."""
    given = parsed()
    if given.worker:
        model, name, length, tasks, count, rows, dtype = given.worker
        worker(model, name, int(length), int(tasks), int(count), int(rows), dtype)
        return
    print("tokens   K  contestant   prompts/s      MiB  replies as generate's")
    ended = {(length, name): measured(given, name, length, given.tasks) for length in given.lengths for name in given.contestants}
    found = {place: one for place, one in ended.items() if one}
    for length, name in ended.keys() - found.keys():
        print(f"{length:>6} {given.tasks:>3}  {name:<11} did not end within {PATIENCE} s")
    for (length, name), one in found.items():
        theirs = found.get((length, "generate"), one)["replies"]
        agree = f"{agreeing(name, one['replies'], theirs)}/{len(one['replies'])}" if name != "paper" else ""
        print(f"{length:>6} {given.tasks:>3}  {name:<11} {one['rate']:>10.3f} {one['mib']:>8,}  {agree:<10} {one['dtype']}")
    told = {length: figures({name: one for (where, name), one in found.items() if where == length}) for length in given.lengths}
    first, *others = given.lengths
    print(json.dumps(told[first] | ({"lengths": {length: told[length] for length in others}} if others else {})))


if __name__ == "__main__":
    main()
