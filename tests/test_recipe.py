"""A wrong recipe says all that is wrong, where, and what is allowed; a right one is the same after any trip through disk."""

from pathlib import Path

import pytest
import yaml

from docward.errors import RecipeError
from docward.recipe import Recipe, Source, dump, load_recipe
from docward.tasks import TASKS

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture
def loaded(tmp_path):
    def load(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides=overrides)

    return load


def complaint(load, *given: str | bytes) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*given)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        ("seed: 1\nsede: 2", "line 2, sede", "seed"),
        ("tunning: {}", "line 1, tunning", "tuning"),
        ("tuning:\n  lora_r: 4\n  learning_rat: 1", "line 3, tuning.learning_rat", "learning_rate"),
        ("documents:\n- path: x\n  lable: malicious", "line 3, documents.0.lable", "label"),
    ],
)
def test_an_unknown_key_names_its_line_the_nearest_key_and_all_keys(loaded, text, place, meant):
    said = complaint(loaded, text)
    assert f"{place}: no such key; did you mean {meant!r}? Allowed here: " in said
    assert meant in said.split("Allowed here: ")[1]


def test_a_key_like_no_other_gets_no_guess(loaded):
    said = complaint(loaded, "xyzzy: 1")
    assert "did you mean" not in said
    assert "Allowed here: model_name_or_path, seed, documents, tasks, dataset, tuning, evaluation." in said


def test_a_value_that_may_be_of_two_kinds_is_one_mistake(loaded):
    said = complaint(loaded, "tuning:\n  lora_first_layer: -1")
    assert "my.yaml has 1 mistake:" in said
    assert "line 2, tuning.lora_first_layer: input should be greater than or equal to 0 (found -1); or input should be 'auto' (found -1)" in said


def test_all_mistakes_come_at_once_each_with_its_line(loaded):
    text = """seed: -1
dataset:
  tasks: [sumarize, case]
  budget: many
tuning:
  learning_rate: 0
  max_length: 8
  colour: red
evaluation:
  wordings: heard
documents: []
"""
    said = complaint(loaded, text, "tuning.lora_r=0")
    assert said.splitlines()[0].endswith("my.yaml has 9 mistakes:")
    wanted = ["line 1, seed: ", "line 3, dataset.tasks: ", "line 4, dataset.budget: ", "line 6, tuning.learning_rate: ", "line 7, tuning.max_length: "]
    wanted += ["line 8, tuning.colour: ", "line 10, evaluation.wordings: ", "line 11, documents: ", "--set tuning.lora_r=0, tuning.lora_r: "]
    assert [place for place in wanted if f"\n  {place}" not in said] == []
    assert "(found 'many')" in said
    assert "'seen' or 'unseen' (found 'heard')" in said


@pytest.mark.parametrize("section", ["dataset", "evaluation"])
def test_a_misspelt_task_gets_the_nearest_and_all_that_there_are(loaded, section):
    said = complaint(loaded, f"{section}:\n  tasks: [translat]\n")
    assert f"line 2, {section}.tasks: No such task: 'translat' (did you mean 'translate'?). Known tasks: {', '.join(TASKS)}." in said


@pytest.mark.parametrize("name", ["all", "general", "prompt"])
def test_a_name_that_stands_for_something_else_is_no_task_s(loaded, name):
    said = complaint(loaded, f"tasks: [{{name: {name}, wordings: [Do it.]}}]\n")
    assert f"{name!r} stands for something else where tasks are named (all, general, prompt do). Choose another name." in said


@pytest.mark.parametrize("section", ["dataset", "evaluation"])
def test_a_task_named_twice_is_refused_as_it_would_count_double(loaded, section):
    assert f"line 1, {section}.tasks: Named twice: case." in complaint(loaded, f"{section}: {{tasks: [case, summarize, case]}}")


def test_unseen_wordings_of_a_task_of_one_s_own_must_be_there_to_be_tested_on(loaded):
    text = "tasks: [{{name: risk, wordings: [Any risk here]{}}}]\nevaluation: {{tasks: [risk], wordings: unseen}}"
    assert "line 2, evaluation.wordings: unseen wordings are wanted, and risk has none." in complaint(loaded, text.format(""))
    assert loaded(text.format(", unseen: [Is it safe]")).task_table()["risk"].unseen == ("Is it safe",)


def test_task_weights_may_name_only_tasks_that_are_trained(loaded):
    said = complaint(loaded, "dataset: {tasks: [case]}\ntuning:\n  task_weights: {case: 1, summarize: 2}\n")
    assert "\n  line 3, tuning.task_weights: tuning.task_weights names summarize, which dataset.tasks does not train on (case)." in said
    assert loaded("dataset: {tasks: [case]}\ntuning: {task_weights: {case: 2}}").tuning.task_weights == {"case": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tuning:", "line 1, tuning: wanted a section with keys and values (found None)"),
        ("tuning: 5", "line 1, tuning: wanted a section with keys and values (found 5)"),
        ("documents: starter", "line 1, documents: input should be a valid list (found 'starter')"),
        ("documents: [stater]", "line 1, documents.0: No source is called 'stater' (did you mean 'starter'?). Known: starter"),
        ("documents: [{path: x, label: evil}]", "documents.0.label: input should be 'malicious', 'sensitive' or 'ordinary' (found 'evil')"),
        ("tuning: {learning_rate: .inf}", "tuning.learning_rate: input should be a finite number"),
        ("tuning: {learning_rate: .nan}", "tuning.learning_rate: input should be"),
        ("dataset: {tasks: []}", "dataset.tasks: list should have at least 1 item"),
        ("1: 2", "keys should be strings (found 1)"),
        ("- seed", "my.yaml holds a list, wanted keys and values"),
        ("seed", "my.yaml holds a str, wanted keys and values"),
        ("seed: [1", "my.yaml is not valid YAML: "),
        ("seed: 1\n\tdataset: 2", "my.yaml is not valid YAML: "),
        ("seed: 2020-99-99", "my.yaml is not valid YAML: month must be in 1..12"),
        ("a: &x {b: *x}", "my.yaml is not valid YAML: "),
        ("seed: 1\ntuning: {}\nseed: 2", "the key `seed` twice: line 1 and line 3"),
        ("tuning:\n  lora_r: 1\n  lora_r: 2", "the key `tuning.lora_r` twice: line 2 and line 3"),
        (b"seed: 1 # caf\xe9", "Cannot read the recipe "),
        (b"\x00\x01", "my.yaml is not valid YAML: "),
        (b"GGUF\xff\xfe\x00", "Cannot read the recipe "),
    ],
)
def test_a_malformed_recipe_is_one_clear_error(loaded, text, problem):
    assert problem in complaint(loaded, text)


def test_a_missing_recipe_says_where_to_start(tmp_path):
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(RecipeError, match=f"Cannot read the recipe {path}: {reason}. Start from recipes/quickstart.yaml"):
            load_recipe(path)


# ------------------------------------------------------------------------------------------------------------ overrides


def test_overrides_have_the_types_of_yaml_and_win(loaded):
    overrides = ("seed=7", "tuning.learning_rate=1e-3", "dataset.tasks=[case]", "dataset.budget=null", "model_name_or_path= a=b ", "tuning.task_weights.case=2")
    found = loaded("seed: 1\ndataset: {budget: 3}\n", *overrides)
    assert (found.seed, found.tuning.learning_rate, found.dataset.tasks, found.dataset.budget) == (7, 1e-3, ["case"], None)
    assert (found.model_name_or_path, found.tuning.task_weights) == ("a=b", {"case": 2})


def test_an_override_leaves_the_rest_of_its_section(loaded):
    found = loaded("tuning: {lora_r: 4}", "tuning.lora_alpha=3", "tuning.lora_alpha=5")
    assert (found.tuning.lora_r, found.tuning.lora_alpha) == (4, 5)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "--set seed: wanted key=value, such as --set tuning.learning_rate=1e-4"),
        ("=3", "--set =3: wanted key=value"),
        ("seed.x=3", "--set seed.x=3: `seed` is a value, not a section"),
        ("tuning.lora_r=[1", "--set tuning.lora_r=[1: the value is not valid YAML"),
        ("seed=2020-99-99", "--set seed=2020-99-99: the value is not valid YAML"),
        ("tuning.lora_r=many", "--set tuning.lora_r=many, tuning.lora_r: input should be a valid integer"),
        ("tuning.lora=3", "--set tuning.lora=3, tuning.lora: no such key; did you mean 'lora_r'?"),
        ("tunin.lora_r=3", "--set tunin.lora_r=3, tunin: no such key; did you mean 'tuning'?"),
        ("dataset.tasks=case", "--set dataset.tasks=case, dataset.tasks: input should be a valid list"),
    ],
)
def test_a_bad_override_is_named_as_it_was_typed(loaded, override, problem):
    assert problem in complaint(loaded, "seed: 1", override)


# ------------------------------------------------------------------------------------------------------------ trips through disk


@pytest.mark.parametrize(
    "text", ["", "# only this\n", "seed: 3\ntuning: {task_weights: {case: 0.5}, learning_rate: 1.0e-5}\ndocuments: [starter, {path: x.jsonl}]"]
)
def test_a_resolved_recipe_loads_back_equal_with_every_default_written_out(loaded, tmp_path, text):
    first = loaded(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "recipe.yaml").write_text(dump(first))
    assert load_recipe(tmp_path / "sub" / "recipe.yaml") == first
    assert set(yaml.safe_load(dump(first))["tuning"]) == set(type(first.tuning).model_fields)


def test_a_recipe_can_be_as_short_as_nothing(loaded):
    assert loaded("") == Recipe()
    assert loaded("").documents == [Source(preset="starter")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_docward_loads(path):
    found = load_recipe(path)
    assert Recipe.model_validate(yaml.safe_load(dump(found))) == found


def test_there_is_a_quickstart():
    assert "quickstart" in {path.stem for path in RECIPES}


def test_document_paths_are_seen_from_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "my.yaml"
    path.write_text(f"documents: [starter, {{path: a.jsonl}}, {{path: ../b.jsonl, label: malicious}}, {{path: {tmp_path}/c.jsonl}}, {{path: ~/d.jsonl}}]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = [source.title for source in load_recipe("recipes/my.yaml").documents]
    assert found[0] == "starter"
    assert [Path(one).resolve() for one in found[1:4]] == [tmp_path / "recipes" / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"]
    assert found[4] == "/home/me/d.jsonl"


def test_a_margin_is_a_share_and_a_general_file_is_seen_from_the_recipe(loaded, tmp_path):
    assert "line 1, evaluation.retention_margin: input should be less than or equal to 1 (found 1.5)" in complaint(
        loaded, "evaluation: {retention_margin: 1.5}"
    )
    assert "greater than 0 (found 0)" in complaint(loaded, "evaluation: {retention_margin: 0}")
    assert loaded("evaluation: {general_path: mine.jsonl}").evaluation.general_path == str(tmp_path / "mine.jsonl")
    assert loaded("seed: 1", "evaluation.retention_margin=0.9").evaluation.retention_margin == 0.9
