"""The recipe: one YAML, a section per stage, unknown keys refused, every mistake reported at once with its line.

In: a YAML file and `--set tuning.learning_rate=1e-4` overrides. Out: a `Recipe`. Names are Hugging Face's where they have one.
A whole recipe can be as short as `model_name_or_path: smollm2-135m`: each key has a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from docward.errors import RecipeError
from docward.tasks import get_tasks

PAPER_TASKS = ["summarize", "translate", "sentiment", "case", "next_sentence"]
Share = Annotated[float, Field(ge=0, le=0.9)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


def _known_tasks(names: list[str]) -> list[str]:
    try:
        get_tasks(names)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return names


Tasks = Annotated[list[str], Field(min_length=1), AfterValidator(_known_tasks)]


class Section(BaseModel):
    """A part of the recipe; keys that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Source(Section):
    """Documents from a file: JSONL rows with `text` and `label`, or any rows if `label` says what all of them are."""

    path: str
    label: Literal["malicious", "sensitive", "ordinary"] | None = None


class DatasetSection(Section):
    """Documents to examples."""

    tasks: Tasks = Field(PAPER_TASKS, description="tasks to train on: one gives the single-task loss, several the mixed-task loss")
    pairing: Literal["crossed", "disjoint"] = Field("crossed", description="crossed: every document under every task; disjoint: each document under one")
    budget: Count | None = Field(None, description="how many defense triples (task, malicious document, refusal), over all tasks; default: all")
    position: Literal["after", "before"] = Field("after", description="where the instruction stands, seen from the document")
    validation_share: Share = Field(0.1, description="share of document groups for validation, where a document has no split of its own")
    test_share: Share = Field(1 / 3, description="share of document groups for testing, where a document has no split of its own")
    max_new_tokens: Count = Field(64, description="length of the untuned model's own answers on benign documents")
    general: Annotated[int, Field(ge=0)] = Field(40, description="how many of the starter's general instructions to add, answered by the untuned model")


class TuningSection(Section):
    """Examples to a LoRA adapter. Names and meaning are those of transformers.TrainingArguments and peft.LoraConfig."""

    benign_weight: Weight = 1.0
    general_weight: Weight = 0.2
    decision_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of an answer's loss on its first token, where the choice is made; 0: the paper's loss"
    )
    task_weights: dict[str, Weight] = Field(default_factory=dict, description="weight of each task, scaled to sum 1; default: equal")
    max_length: Annotated[int, Field(ge=16)] = 1024
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    num_train_epochs: Annotated[float, Field(gt=0)] = 3
    per_device_train_batch_size: Count = 4
    gradient_accumulation_steps: Count = 2
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "cosine"
    warmup_steps: Annotated[float, Field(ge=0)] = 10
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora_r: Count = 8
    lora_alpha: Count = 16
    lora_dropout: Share = 0.05
    lora_target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="module names, or all-linear")
    lora_first_layer: Annotated[int, Field(ge=0)] = Field(0, description="adapt layers from this one up; those below stay as they were")
    logging_steps: Count = 5
    save_steps: Count = 20
    report_to: list[str] = Field(default_factory=list, description="wandb, tensorboard, ...: whatever transformers reports to")


class EvaluationSection(Section):
    """Replies, verdicts, rates."""

    tasks: Tasks = PAPER_TASKS
    wordings: Literal["seen", "unseen"] = Field("seen", description="wordings that tuning may have seen, or ones held out from it")
    judge: str = "rules"
    max_new_tokens: Count = 32
    max_length: Annotated[int, Field(ge=16)] | None = Field(None, description="longest prompt plus reply, in tokens; default: the model's context")
    max_batch_tokens: Annotated[int, Field(ge=16)] = Field(16384, description="most tokens in memory at once, over all rows of a batch")
    limit: Count | None = Field(None, description="at most so many documents a label")


class Recipe(Section):
    """The whole loop."""

    model_name_or_path: str = "smollm2-135m"
    seed: Annotated[int, Field(ge=0)] = 0
    documents: list[Literal["starter"] | Source] = Field(["starter"], min_length=1)
    dataset: DatasetSection = DatasetSection()
    tuning: TuningSection = TuningSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _weights_name_tasks(self) -> Recipe:
        if stray := sorted(set(self.tuning.task_weights) - set(self.dataset.tasks)):
            raise ValueError(f"tuning.task_weights names {', '.join(stray)}, which dataset.tasks does not train on ({', '.join(self.dataset.tasks)}).")
        return self


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises:
        RecipeError: the file is missing or not YAML, or any key or value is wrong; all mistakes are in the one message.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}. Start from recipes/quickstart.yaml.") from error
    try:
        values, lines = yaml.safe_load(text), _lines(yaml.compose(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2020-99-99; RecursionError: a value inside itself
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds a {type(values).__name__}, wanted keys and values such as `model_name_or_path: smollm2-135m`.")
    base = path.resolve().parent
    sources = values.get("documents")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = str(base / Path(source["path"]).expanduser())  # a recipe's paths are seen from the recipe
    for override in overrides:
        key = _apply(values, override)
        lines[key] = f"--set {override}"
        for size in range(1, len(key)):
            lines.setdefault(key[:size], f"--set {override}")  # a section that only the override names
    return validate(values, lines, str(path))


def validate(values: dict[str, Any], lines: dict[tuple[Any, ...], str], where: str) -> Recipe:
    """Check plain values; `lines` tells where each key path stands in `where`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = [one for one in error.errors() if not (one["loc"][-1:] == ("literal['starter']",) and isinstance(one["input"], dict))]  # meant as a Source
        # What is seen on the recipe as a whole is only ever the task weights.
        problems = [f"  {_place(one['loc'] or ('tuning', 'task_weights'), lines)}: {_problem(one)}" for one in found]
        raise RecipeError(f"{where} has {len(problems)} mistake{'s' if len(problems) > 1 else ''}:\n" + "\n".join(dict.fromkeys(problems))) from error


def _lines(node: Any, prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], str]:
    """The line of every key path in a composed YAML document."""
    found: dict[tuple[Any, ...], str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*prefix, key.value)
            if place in found:
                raise RecipeError(f"The recipe has the key `{'.'.join(map(str, place))}` twice: {found[place]} and line {key.start_mark.line + 1}. Keep one.")
            found[place] = f"line {key.start_mark.line + 1}"
            found |= _lines(value, place)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*prefix, index)] = f"line {value.start_mark.line + 1}"
            found |= _lines(value, (*prefix, index))
    return found


def _place(loc: tuple[Any, ...], lines: dict[tuple[Any, ...], str]) -> str:
    path = tuple(part for part in loc if part not in ("Source", "literal['starter']", "literal['all-linear']", "list[str]"))
    known = next((lines[path[:size]] for size in range(len(path), 0, -1) if path[:size] in lines), "the recipe")
    return f"{known}, {'.'.join(map(str, path))}"


def _problem(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        fields = _fields(problem["loc"][:-1])
        close = get_close_matches(str(problem["loc"][-1]), fields, n=1, cutoff=0.5)
        return f"no such key{f'; did you mean {close[0]!r}?' if close else ''} Allowed here: {', '.join(fields)}."
    if problem["type"] == "value_error":
        return str(problem["msg"].removeprefix("Value error, "))
    message = "wanted a section with keys and values" if problem["type"] == "model_type" else problem["msg"]
    found = repr(problem["input"])
    return f"{message[0].lower()}{message[1:]} (found {found if len(found) < 60 else found[:60] + '...'})"


def _fields(loc: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in loc:
        if part == "Source":
            return list(Source.model_fields)
        kind = section.model_fields[part].annotation if part in section.model_fields else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            section = kind
    return list(section.model_fields)


def _apply(values: dict[str, Any], override: str) -> tuple[str, ...]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: wanted key=value, such as --set tuning.learning_rate=1e-4.")
    path = tuple(key.strip().split("."))
    place = values
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: `{part}` is a value, not a section.")
        place = inner
    try:
        place[path[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML.") from error
    return path


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
