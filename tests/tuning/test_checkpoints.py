"""Checkpoints are gone on from only when they are whole, as they were written, and of this very run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docward.errors import TuningError
from docward.tuning.checkpoints import FINISHED, RUN, claim, clear, last_checkpoint, mark_finished

MINE = {"model": "tiny", "weights": "a1", "data": "b2", "seed": 0, "learning_rate": 3e-4, "_examples_per_step": 8}


def checkpoint(folder: Path, step: int, *, finished: bool = True) -> Path:
    """One as Trainer leaves it, with a folder inside as a distributed optimizer's has."""
    place = folder / f"checkpoint-{step}"
    (place / "optimizer_0").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "optimizer_0/shard.distcp"):
        (place / name).write_bytes(f"{name} at {step}".encode() * 40)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if finished:
        mark_finished(str(folder), step, {"steps": 1, "sums": {}})
    return place


def claimed(folder: Path, mine: dict[str, object] = MINE) -> None:
    """A folder with a checkpoint of that run."""
    claim(folder, mine)
    checkpoint(folder, 2)


def flip(file: Path) -> None:
    """One bit of one byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda place: flip(place / "optimizer.pt"),
    "a flipped bit in a folder inside": lambda place: flip(place / "optimizer_0" / "shard.distcp"),
    "a missing file": lambda place: (place / "trainer_state.json").unlink(),
    "a file cut short": lambda place: (place / "adapter_model.safetensors").write_bytes(b""),
    "an unreadable list of hashes": lambda place: (place / FINISHED).write_bytes(b"\xff\x00{"),
    "a list of hashes that is none": lambda place: (place / FINISHED).write_text("[]"),
    "an empty list of hashes": lambda place: (place / FINISHED).write_text("{}"),
}
EACH_DAMAGE = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


def test_there_is_nothing_to_go_on_from_before_the_first_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "not there") is None


def test_the_latest_one_is_taken_by_number_and_not_by_name(tmp_path):
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_one_that_a_kill_cut_short_is_removed_and_not_gone_on_from(tmp_path):
    whole, cut = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, finished=False)
    assert last_checkpoint(tmp_path) == whole
    assert not cut.exists()
    assert whole.exists()


def test_one_cut_short_alone_means_starting_afresh(tmp_path):
    cut = checkpoint(tmp_path, 2, finished=False)
    assert last_checkpoint(tmp_path) is None
    assert not cut.exists()


def test_looking_alone_removes_nothing(tmp_path):
    cut = checkpoint(tmp_path, 2, finished=False)
    assert last_checkpoint(tmp_path, clean=False) is None
    assert cut.exists()


@EACH_DAMAGE
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    before, last = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    damage(last)
    assert last_checkpoint(tmp_path) == before


@EACH_DAMAGE
def test_a_damaged_checkpoint_is_out_of_the_way_of_the_next_ones(tmp_path, damage):
    """Trainer keeps the two highest numbers: a damaged one among them would push out the one that is gone on from."""
    checkpoint(tmp_path, 2)
    damage(last := checkpoint(tmp_path, 4))
    last_checkpoint(tmp_path)
    assert not last.exists()


@EACH_DAMAGE
def test_where_all_are_damaged_the_error_names_the_file_and_says_what_to_do(tmp_path, damage):
    place = checkpoint(tmp_path, 4)
    before = {file.name for file in place.iterdir()}
    damage(place)
    with pytest.raises(TuningError, match=rf"checkpoint-4/\S+ .*Delete {re.escape(str(tmp_path))} to start tuning afresh") as said:
        last_checkpoint(tmp_path)
    named = re.search(r"checkpoint-4/(\S+)", str(said.value))[1].split("/")[0]
    assert named in before
    assert place.exists(), "nothing is removed that somebody may want to look at"


def test_the_error_names_each_damaged_file(tmp_path):
    flip(checkpoint(tmp_path, 2) / "optimizer.pt")
    (checkpoint(tmp_path, 4) / "trainer_state.json").unlink()
    with pytest.raises(TuningError, match=r"checkpoint-2/optimizer\.pt, checkpoint-4/trainer_state\.json"):
        last_checkpoint(tmp_path)


def test_a_folder_that_only_looks_like_a_checkpoint_is_left_alone(tmp_path):
    stray = tmp_path / "checkpoint-best"
    stray.mkdir()
    assert last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert stray.exists()


def test_a_run_claims_its_checkpoints_and_is_known_again(tmp_path):
    assert claim(tmp_path, MINE) == MINE
    checkpoint(tmp_path, 2)
    assert claim(tmp_path, MINE) == MINE


def test_a_run_that_left_no_checkpoint_claims_nothing(tmp_path):
    claim(tmp_path, MINE)
    lower = MINE | {"learning_rate": 1e-4}
    assert claim(tmp_path, lower) == lower
    checkpoint(tmp_path, 2)
    with pytest.raises(TuningError, match="learning_rate"):
        claim(tmp_path, MINE)


@pytest.mark.parametrize(("name", "other"), [("model", "another"), ("weights", "c3"), ("data", "d4"), ("seed", 1), ("learning_rate", 1e-3)])
def test_another_runs_checkpoints_are_refused_by_name(tmp_path, name, other):
    claimed(tmp_path)
    with pytest.raises(TuningError, match=rf"of another run \({name}: {re.escape(repr(MINE[name]))} there, {re.escape(repr(other))} now\)\. Delete"):
        claim(tmp_path, MINE | {name: other})


def test_a_setting_that_only_the_other_run_had_is_a_difference_too(tmp_path):
    claimed(tmp_path, MINE | {"lora_r": 8})
    with pytest.raises(TuningError, match="lora_r: 8 there, None now"):
        claim(tmp_path, MINE)


def test_the_first_runs_step_is_kept_when_the_work_is_divided_otherwise(tmp_path):
    claimed(tmp_path)
    assert claim(tmp_path, MINE | {"_examples_per_step": 32})["_examples_per_step"] == 8


def test_checkpoints_of_nobody_known_are_refused(tmp_path):
    checkpoint(tmp_path, 2)
    with pytest.raises(TuningError, match=rf"holds checkpoints and no {RUN}.*Delete {re.escape(str(tmp_path))}, or choose another --output-dir"):
        claim(tmp_path, MINE)
    assert not (tmp_path / RUN).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_note_of_whose_they_are_says_what_to_do(tmp_path, content):
    claimed(tmp_path)
    (tmp_path / RUN).write_bytes(content)
    with pytest.raises(TuningError, match=rf"{RUN} cannot be read.*Delete {re.escape(str(tmp_path))}"):
        claim(tmp_path, MINE)


def test_what_a_kill_left_half_written_is_no_tracker_s(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("checkpoint-4", ".best-20.ab12", "runs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "events").write_text(name)
    (folder / ".run.json.1x.draft").write_text("{")
    clear(folder)
    assert sorted(str(place.relative_to(tmp_path)) for place in tmp_path.rglob("*") if place.is_file()) == ["trackers/runs/events"]
