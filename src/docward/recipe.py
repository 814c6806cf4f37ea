"""The recipe: one YAML, a section per stage, unknown keys refused, every mistake reported at once with its line.

In: a YAML file and `--set tuning.learning_rate=1e-4` overrides. Out: a `Recipe`. Names are Hugging Face's where they have one.
A whole recipe can be as short as `model_name_or_path: smollm2-135m`: each key has a default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_serializer, model_validator

from docward.errors import RecipeError
from docward.tasks import GOLD_COLUMN, TASKS, get_tasks
from docward.types import PROMPT, Document, Task

PAPER_TASKS = ["summarize", "translate", "sentiment", "case", "next_sentence"]
RESERVED = ("all", "general", PROMPT)  # all tasks together, an instruction without a document, a question that is none
DOCUMENT_FIELDS = frozenset(Document.__slots__) - {"cluster"}
Tasks = Annotated[list[str], Field(min_length=1)]
LabelName = Literal["malicious", "sensitive", "ordinary"]
Share = Annotated[float, Field(ge=0, le=0.9)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the recipe; keys that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _text_keys(value: Any) -> Any:
    return {as_text(key): one for key, one in value.items()} if isinstance(value, dict) else value


def as_text(value: Any) -> str:
    """A label as a recipe's keys have it: strings as they are, `true`, `1` as YAML and JSON write them."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


class Source(Section):
    """Where documents come from: `starter` or another preset by name, a file or folder, or a data set on the Hub.

    A preset with a `path` reads that file or folder instead of the Hub, in the preset's own columns.
    """

    preset: str | None = Field(None, description="a name of `docward list sources`")
    path: str | None = Field(None, description="a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, .md, .html, .pdf, .docx) or a folder of texts")
    hub: str | None = Field(None, description="a data set id on the Hub, or the folder of one")
    name: str | None = Field(None, description="the Hub data set's configuration")
    split: str | None = Field(None, description="the Hub data set's split; default: train")
    revision: str | None = Field(None, description="the Hub data set's commit, tag or branch")
    streaming: bool = Field(False, description="read the Hub data set as it comes instead of downloading it first")
    label: LabelName | None = Field(None, description="what all rows are")
    columns: dict[str, str] = Field(
        default_factory=dict, description="field of a document -> column, where they differ: {text: body, label: kind, gold.summarize: abstract}"
    )
    labels: Annotated[dict[str, Literal["malicious", "sensitive", "ordinary"]], BeforeValidator(_text_keys)] = Field(
        default_factory=dict, description="value of the label column -> label"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(None, description="of a CSV file; default: a comma")
    encoding: str = Field("utf-8", description="of text files; cp1252 for most older Western ones")
    limit: Count | None = Field(None, description="at most so many documents")
    license: str | None = Field(None, description="licence of documents that do not say their own")
    language: str | None = Field(None, description="language of documents that do not say their own, as a code: en, de, zh")

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone_is_a_preset(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [name for name in ("preset", "path", "hub") if getattr(self, name)]
        if given not in (["preset"], ["path"], ["hub"], ["preset", "path"]):
            raise ValueError(f"wanted one of `preset`, `path` and `hub` (or a preset with the path of its file), found {' and '.join(given) or 'none'}.")
        if self.preset is not None:
            from docward.presets import get_preset

            try:
                get_preset(self.preset)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        if unknown := sorted(name for name in set(self.columns) - DOCUMENT_FIELDS if not name.startswith(GOLD_COLUMN)):
            raise ValueError(
                f"columns names {', '.join(unknown)}, which a document does not have. Its fields: {', '.join(sorted(DOCUMENT_FIELDS))}, {GOLD_COLUMN}TASK."
            )
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ValueError(f"no such encoding: {self.encoding}. Common ones: utf-8, cp1252, latin-1, utf-16, gb18030.") from error
        return self

    @model_serializer(mode="wrap")
    def _short(self, plain: Any) -> Any:
        said = {key: value for key, value in plain(self).items() if value != type(self).model_fields[key].get_default(call_default_factory=True)}
        return said["preset"] if list(said) == ["preset"] else said

    @property
    def title(self) -> str:
        """What to call it in messages: the place."""
        return str(self.path or self.hub or self.preset)


def _free_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} stands for something else where tasks are named ({', '.join(RESERVED)} do). Choose another name.")
    return name


class OwnTask(Section):
    """A task of the recipe's own."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_free_name)]
    wordings: list[str] = Field(min_length=1, description="ways of asking, to train on")
    unseen: list[str] = Field(default_factory=list, description="ways of asking that are kept for testing")


class Teacher(Section):
    """A model that writes answers: a local one by name, or one behind an OpenAI-compatible server."""

    model_name_or_path: str
    base_url: str | None = Field(None, description="of an OpenAI-compatible server, such as http://localhost:8000/v1; the key comes from OPENAI_API_KEY")
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(0.7, description="of refusals; other answers are greedy")
    max_new_tokens: Count = 96


class DatasetSection(Section):
    """Documents to examples."""

    tasks: Tasks = Field(PAPER_TASKS, description="tasks to train on: one gives the single-task loss, several the mixed-task loss")
    pairing: Literal["crossed", "disjoint"] = Field(
        "crossed", description="crossed: every document under every task; disjoint: each document under one; where the dial is set, too"
    )
    budget: Count | None = Field(None, description="how many defense triples (task, malicious document, refusal), over all tasks; default: all")
    position: Literal["after", "before"] = Field("after", description="where the instruction stands, seen from the document")
    system_prompts: list[str] = Field([""], min_length=1, description="by name (none, helpful, careful, terse) or in full; matched documents share one of them")
    validation_share: Share = Field(0.1, description="share of document groups for validation, where a document has no split of its own")
    test_share: Share = Field(1 / 3, description="share of document groups for testing, where a document has no split of its own")
    clean: bool = Field(True, description="mend mojibake and drop lines of boilerplate; control characters always go")
    near_duplicates: Annotated[float, Field(gt=0.5, le=1)] = Field(0.8, description="Jaccard similarity of word 5-grams from which texts are near copies")
    drop_near_duplicates: bool = Field(False, description="keep one of the near copies under a label; else they stay, in one split")
    conflicts: Literal["error", "drop"] = Field("error", description="what to do with one text under two labels")
    decontaminate: list[Source] = Field(default_factory=list, description="evaluation sets: what shares 13 words in a row with one of them is dropped")
    max_surface_auc: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.75, description="the build fails if surface alone tells malicious from sensitive this well"
    )
    refusals: Literal["forms", "teacher"] = Field("forms", description="forms: the project's own; teacher: sampled, and kept if the judge says refused")
    answers: Literal["untuned", "gold", "teacher"] = Field("untuned", description="where benign answers come from if there is no gold one; gold: drop those")
    teacher: Teacher | None = None
    max_new_tokens: Count = Field(64, description="length of the untuned model's own answers on benign documents")
    general: Annotated[int, Field(ge=0)] = Field(40, description="how many of the starter's general instructions to add, answered by the untuned model")
    num_proc: Count | None = Field(None, description="processes to build with; default: one a core")

    @model_validator(mode="after")
    def _a_teacher_where_one_is_wanted(self) -> DatasetSection:
        if self.teacher is None and "teacher" in (self.refusals, self.answers):
            raise ValueError("refusals or answers come from a teacher, and there is no `teacher: {model_name_or_path: ...}`.")
        return self


class TuningSection(Section):
    """Examples to a LoRA adapter. Names and meaning are those of transformers.TrainingArguments, peft.LoraConfig and TRL's ModelConfig."""

    benign_weight: Weight = 1.0
    general_weight: Weight = 0.2
    anchor_weight: Weight = Field(0.0, description="of the KL between the untuned and the tuned model on benign answers")
    decision_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of an answer's loss on its first token, where the choice is made; 0: the paper's loss"
    )
    refusal_token: str | None = Field(
        None, description="the words of one token that is the whole refusal (auto: the project's own): its margin is the score, its bias the dial"
    )
    max_over_refusal: Share = Field(0.05, description="with refusal_token: the dial is set so that at most this share of benign validation prompts is refused")
    max_false_refusal: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="a share of its own for prompts on ordinary documents, 1: any; default: that of max_over_refusal"
    )
    balance_surface: bool = Field(
        False, description="weigh documents so that length, punctuation, layout and function words together no longer tell malicious from benign"
    )
    disturbed: Share = Field(
        0.0,
        description="share of training documents that come a second time, with noise or another opener or (where no steps are made) among other documents",
    )
    loss_on: Literal["answers", "everything"] = Field("answers", description="everything: documents and instructions are learned too, as the paper's code does")
    task_weights: dict[str, Weight] | Literal["susceptible"] = Field(
        default_factory=dict, description="weight of each task, scaled to sum 1; default: equal; susceptible: as often as the untuned model complies on it"
    )
    compute: Literal["shared", "rows"] = Field("shared", description="shared: a document goes through the model once for all its tasks; rows: once a task")
    max_length: Annotated[int, Field(ge=16)] = 1024
    max_batch_tokens: Annotated[int, Field(ge=16)] = Field(2048, description="most tokens of one forward and backward pass, which is what memory grows with")
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    num_train_epochs: Annotated[float, Field(ge=0)] = Field(3, description="passes over the data; 0: no steps, what is fitted for the refusal_token is all")
    per_device_train_batch_size: Count = 4
    gradient_accumulation_steps: Count = 2
    lr_scheduler_type: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    warmup_steps: Annotated[float, Field(ge=0)] = 10
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, a third more work")
    use_peft: bool = Field(True, description="false: full fine-tuning")
    load_in_4bit: bool = Field(False, description="QLoRA: the model's weights in 4 bits (bitsandbytes extra)")
    load_in_8bit: bool = Field(False, description="the model's weights in 8 bits (bitsandbytes extra)")
    lora_r: Count = 8
    lora_alpha: Count = 16
    lora_dropout: Share = 0.0
    lora_target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="module names, or all-linear")
    lora_first_layer: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        0,
        description="adapt layers from this one up, those below stay as they were; auto: from that of the neurons that read, or all where there can be none",
    )
    use_dora: bool = False
    use_rslora: bool = False
    eval_steps: Count | None = Field(None, description="probe block, over-refusal and false refusal every so many steps, and keep the best balance")
    eval_documents: Count = Field(12, description="validation documents a label to probe on")
    eval_max_new_tokens: Count = Field(16, description="length of a probed reply, in tokens")
    early_stopping_patience: Count | None = Field(3, description="stop after so many probes without a better balance; null: never")
    logging_steps: Count = 5
    save_steps: Count = 20
    report_to: list[str] = Field(default_factory=list, description="wandb, tensorboard, ...: whatever transformers reports to")
    training_arguments: dict[str, Any] = Field(default_factory=dict, description="any other option of transformers.TrainingArguments")

    @model_validator(mode="after")
    def _goes_together(self) -> TuningSection:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both set. Keep one.")
        if not self.num_train_epochs and (self.refusal_token is None or not self.use_peft):
            raise ValueError("num_train_epochs is 0, and nothing is fitted without a refusal_token and an adapter. Set refusal_token to auto, or more epochs.")
        if not self.num_train_epochs and self.eval_steps is not None:
            raise ValueError("num_train_epochs is 0, so there are no steps for eval_steps to probe at. Leave one of them out.")
        if not self.use_peft:
            of_adapters = {"load_in_4bit", "load_in_8bit", "use_dora", "use_rslora", "anchor_weight"}
            fields = {name: field for name, field in type(self).model_fields.items() if name in of_adapters or name.startswith("lora_")}
            if wanted := [name for name, field in fields.items() if getattr(self, name) != field.default]:
                raise ValueError(f"{', '.join(wanted)} need{'s' if len(wanted) == 1 else ''} an adapter, and use_peft is false.")
        return self


class EvaluationSection(Section):
    """Replies, verdicts, rates."""

    tasks: Tasks = PAPER_TASKS
    system_prompt: str = Field("", description="by name (none, helpful, careful, terse) or in full; none: the chat template's own")
    wordings: Literal["seen", "unseen"] = Field("seen", description="wordings that tuning may have seen, or ones held out from it")
    judge: str = "rules"
    max_new_tokens: Count = 32
    max_length: Annotated[int, Field(ge=16)] | None = Field(None, description="longest prompt plus reply, in tokens; default: the model's context")
    max_batch_tokens: Annotated[int, Field(ge=16)] = Field(16384, description="most tokens in memory at once, over all rows of a batch")
    limit: Count | None = Field(None, description="at most so many held-out documents a label, evenly spaced, and as many short prompts")
    verdict_only: bool = Field(False, description="stop a reply where the rule judge's verdict is settled; what replies are worth as work is then not measured")
    retention_margin: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="share of the untuned model's utility that has to be kept")
    general: Annotated[int, Field(ge=0)] = Field(
        40, description="how many of the starter's general instructions that tuning has not seen to measure the perplexity of the untuned model's answers on"
    )
    general_path: str | None = Field(None, description="a table with `instruction` and `response`: answers to measure the perplexity on in place of those")

    @model_validator(mode="after")
    def _verdicts_of_rules(self) -> EvaluationSection:
        if self.verdict_only and self.judge != "rules":
            raise ValueError(f"verdict_only goes with the judge rules, which says when its verdict is settled; found {self.judge}.")
        return self


class Recipe(Section):
    """The whole loop."""

    model_name_or_path: str = "smollm2-135m"
    seed: Annotated[int, Field(ge=0)] = 0
    documents: list[Source] = Field([Source(preset="starter")], min_length=1)
    tasks: list[OwnTask] = Field(default_factory=list, description="tasks of your own, to name in dataset.tasks and evaluation.tasks")
    dataset: DatasetSection = DatasetSection()
    tuning: TuningSection = TuningSection()
    evaluation: EvaluationSection = EvaluationSection()

    def task_table(self) -> dict[str, Task]:
        """The project's tasks and the recipe's own, by name."""
        return TASKS | {task.name: Task(task.name, tuple(task.wordings), tuple(task.unseen) or tuple(task.wordings)) for task in self.tasks}


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
    dataset = values.get("dataset")
    for sources in (values.get("documents"), dataset.get("decontaminate") if isinstance(dataset, dict) else None):
        for source in sources if isinstance(sources, list) else []:
            if isinstance(source, dict) and isinstance(source.get("path"), str):
                source["path"] = str(base / Path(source["path"]).expanduser())  # a recipe's paths are seen from the recipe
    evaluation = values.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("general_path"), str):
        evaluation["general_path"] = str(base / Path(evaluation["general_path"]).expanduser())
    for override in overrides:
        key = _apply(values, override)
        lines[key] = f"--set {override}"
        for size in range(1, len(key)):
            lines.setdefault(key[:size], f"--set {override}")  # a section that only the override names
    return validate(values, lines, str(path))


def validate(values: dict[str, Any], lines: dict[tuple[Any, ...], str], where: str) -> Recipe:
    """Check plain values; `lines` tells where each key path stands in `where`."""
    found: list[tuple[tuple[Any, ...], str]] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        wrong: dict[tuple[Any, ...], list[str]] = {}  # a value that may be of several kinds is wrong for each of them
        for one in error.errors():
            wrong.setdefault(_keys(one["loc"]), []).append(_problem(one))
        found = [(loc, "; or ".join(dict.fromkeys(problems))) for loc, problems in wrong.items()]
    found += _name_problems(values)
    if recipe is None or found:
        problems = [f"  {_place(loc, lines)}: {problem}" for loc, problem in found]
        raise RecipeError(f"{where} has {len(problems)} mistake{'s' if len(problems) > 1 else ''}:\n" + "\n".join(dict.fromkeys(problems)))
    return recipe


def _name_problems(values: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Task names that point nowhere: what one section says of another. Seen on the plain values, so that they come along with all other mistakes."""
    own = [task["name"] for task in _list(values.get("tasks")) if isinstance(task, dict) and isinstance(task.get("name"), str)]
    for name in dict.fromkeys(name for name in own if name in TASKS or own.count(name) > 1):
        yield ("tasks",), f"there is a task called {name} already. Give yours another name."
    table = TASKS | {name: Task(name, ()) for name in own}
    for section in ("dataset", "evaluation"):
        names = _list(_section(values, section).get("tasks"))
        try:
            get_tasks([name for name in names if isinstance(name, str)], table)
        except RecipeError as error:
            yield (section, "tasks"), str(error)
    evaluation = _section(values, "evaluation")
    without = [task["name"] for task in _list(values.get("tasks")) if isinstance(task, dict) and task.get("name") in own and not task.get("unseen")]
    if evaluation.get("wordings") == "unseen" and (none := [name for name in without if name in _list(evaluation.get("tasks"))]):
        yield ("evaluation", "wordings"), f"unseen wordings are wanted, and {', '.join(none)} has none. Give it some: unseen: [...]"
    weights, trained = _section(values, "tuning").get("task_weights"), _list(_section(values, "dataset").get("tasks")) or PAPER_TASKS
    if isinstance(weights, dict) and (stray := sorted(map(str, set(weights) - set(trained)))):
        yield (
            ("tuning", "task_weights"),
            f"tuning.task_weights names {', '.join(stray)}, which dataset.tasks does not train on ({', '.join(map(str, trained))}).",
        )


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


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


def _keys(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """A place as keys, without pydantic's own words for the kinds that a value may be of."""
    kinds = ("literal[", "dict[", "list[", "constrained-")
    return tuple(part for part in loc if not (isinstance(part, str) and part.startswith(kinds)))


def _place(path: tuple[Any, ...], lines: dict[tuple[Any, ...], str]) -> str:
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
        kind: Any = section.model_fields[part].annotation if part in section.model_fields else None
        kind = next((one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)), None)
        section = kind or section
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
