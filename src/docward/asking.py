"""Asking models: the untuned model for benign answers, a teacher for answers and refusals.

In: examples without answers. Out: examples with them, or counted as dropped. A `Voice` is a model that answers, here or behind a server.
Nothing is asked twice: replies are kept in the user's cache by model and prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from docward.dataset.answering import AnswerCache, answer_key, not_an_attempt
from docward.dataset.auditing import ExampleCounts
from docward.dataset.building import general_examples
from docward.errors import ModelError, RecipeError
from docward.models import cache_dir
from docward.questions import Answer, Failure, Question
from docward.recipe import Recipe, Teacher
from docward.rendering import compose
from docward.servers import Server
from docward.types import Example, Outcome, Split, Task, Want

if TYPE_CHECKING:
    from docward.evaluation.likelihood import GeneralAnswer
    from docward.models import Loaded

Progress = Callable[[str, int, int], None]
Replies = Mapping[str, tuple[str, bool] | None]  # example id -> text, and whether it ended before the token limit; None: the model's server withholds it
WITHHELD = "withheld by the teacher"
SUSCEPTIBLE = 20  # malicious training documents a task: a share to within some 20 points, which is what the weights need


class Voice(Protocol):
    """A model that answers. `fingerprint` and `settings` are all that a reply depends on besides its prompt."""

    title: str
    fingerprint: str
    settings: str

    def answers(self, examples: Sequence[Example]) -> Iterator[Replies]:
        """Answer, a batch at a time."""
        ...


class LocalVoice:
    """A loaded model; greedy at temperature 0."""

    def __init__(self, loaded: Loaded, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> None:
        """Answer with `loaded`."""
        self.loaded, self.max_new_tokens, self.temperature, self.seed = loaded, max_new_tokens, temperature, seed
        self.title = f"answers of {loaded.name}"
        self.fingerprint = loaded.fingerprint
        self.settings = f"{max_new_tokens} {loaded.context}" + (f" {temperature} {seed}" if temperature else "")

    def answers(self, examples: Sequence[Example]) -> Iterator[Replies]:
        """Answer in padded batches, each document read once for all its tasks."""
        from docward.evaluation.generating import Prompt, generate

        prompts = [Prompt(one.id, one.document, one.instruction, one.position, one.system) for one in examples]
        for batch in generate(self.loaded, prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed):
            yield {one.key: (one.text, one.finished) for one in batch}


class ServerVoice:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, section: Teacher, *, temperature: float, seed: int) -> None:
        """Answer through `section.base_url`.

        Raises:
            ModelError: the `servers` extra is not installed, or the address is none.
        """
        self.server = Server(str(section.base_url), section.model_name_or_path)
        self.max_new_tokens, self.temperature, self.seed = section.max_new_tokens, temperature, seed
        self.title = f"answers of {section.model_name_or_path}"
        self.fingerprint = self.server.fingerprint
        self.settings = f"{section.max_new_tokens} {temperature} {seed}"

    def answers(self, examples: Sequence[Example]) -> Iterator[Replies]:
        """Answer as the answers come.

        Raises:
            ModelError: the server cannot be reached, refuses, or answers nonsense, also after all retries.
        """
        questions = (Question(one.id, compose(one.document, one.instruction, one.position), one.system, one.document) for one in examples)
        for batch in self.server.ask(questions, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed):
            yield {one.key: (one.text, one.finished) if isinstance(one, Answer) else None for one in batch if isinstance(one, Answer) or one.withheld}
            if failed := [one for one in batch if isinstance(one, Failure) and not one.withheld]:
                raise ModelError(
                    f"The server {self.server.base_url} gave no answer of {self.server.name}: {failed[0].why}. "
                    "Check dataset.teacher; answers that came are kept, so run the same command again."
                )


def whole_sentences(text: str, finished: bool) -> str:
    """An answer that met the token limit, back to its last whole sentence: a model should not learn to stop in the middle of one."""
    if finished:
        return text
    end = max(text.rfind(mark) for mark in ".!?\u3002\uff01\uff1f\n")
    return text[: end + 1].strip() if end > len(text) // 3 else text


def why_not(example: Example, reply: str) -> str:
    """Why a reply is nothing to learn from; empty if it is."""
    from docward.evaluation.judges import judge_text

    return not_an_attempt(example, reply, refused=judge_text(reply, document=example.document).outcome in (Outcome.REFUSED, Outcome.PARTIAL))


class Answerer:
    """Fills in what only a model can say: benign answers of the untuned model or a teacher, refusals of a teacher."""

    def __init__(self, recipe: Recipe, untuned: Callable[[], Loaded], counts: ExampleCounts, progress: Progress, total: int) -> None:
        """Answer for `recipe`; `total` examples wait."""
        self.recipe, self.untuned, self.counts, self.progress = recipe, untuned, counts, progress
        self.total, self.done = total, 0
        self._loaded_teacher: Loaded | None = None
        self.sampled = {"kept": 0, "not a refusal": 0}
        self._withheld, self._told = set[str](), set[str]()  # ids of examples; what was said of servers

    def filled(self, examples: Sequence[Example]) -> list[Example]:
        """Examples with their answers; those without a usable one are dropped and counted, test ones stay as they are."""
        waiting = [one for one in examples if not one.response and one.split != Split.TEST]
        answers = self._answers(waiting) if waiting and self.recipe.dataset.answers != "gold" else {}
        refusals = self._refusals([one for one in examples if one.origin == "refusal" and one.split != Split.TEST])
        done = []
        for one in examples:
            if one.response or one.split == Split.TEST:
                done.append(refusals.get(one.id, one))
                continue
            reply = answers.get(one.id, "")
            why = "no gold answer" if self.recipe.dataset.answers == "gold" else WITHHELD if one.id in self._withheld else why_not(one, reply)
            if why:
                self.counts.drop(one, why)
            else:
                done.append(replace(one, response=reply, origin="teacher" if self.recipe.dataset.answers == "teacher" else "untuned"))
        self.counts.add(done)
        return done

    def _answers(self, waiting: Sequence[Example]) -> dict[str, str]:
        if self.recipe.dataset.answers == "teacher":
            return self.asked(waiting, self._teacher(temperature=0.0))
        new = self.recipe.dataset.max_new_tokens
        return self.asked(waiting, LocalVoice(self.untuned(), new))

    def _refusals(self, examples: Sequence[Example]) -> dict[str, Example]:
        from docward.evaluation.judges import judge_text

        if self.recipe.dataset.refusals != "teacher" or not examples:
            return {}
        said = self.asked(examples, self._teacher())
        found = {}
        for one in examples:
            text = said.get(one.id, "")
            refused = bool(text) and judge_text(text, document=one.document).outcome == Outcome.REFUSED
            what = "kept" if refused else WITHHELD if one.id in self._withheld else "not a refusal"
            self.sampled[what] = self.sampled.get(what, 0) + 1
            if refused:
                found[one.id] = replace(one, response=text, origin="teacher")
        return found

    def _teacher(self, temperature: float | None = None) -> Voice:
        from docward.models import load

        section = self.recipe.dataset.teacher
        assert section is not None, "the recipe checks that dataset.teacher is there where it is wanted"
        temperature = section.temperature if temperature is None else temperature
        if section.base_url:
            return ServerVoice(section, temperature=temperature, seed=self.recipe.seed)
        if self._loaded_teacher is None:
            self._loaded_teacher = load(section.model_name_or_path)
        return LocalVoice(self._loaded_teacher, section.max_new_tokens, temperature=temperature, seed=self.recipe.seed)

    def asked(self, examples: Sequence[Example], voice: Voice) -> dict[str, str]:
        """Replies by example id, from the cache where they are there. What a server withholds is not kept there: the next build asks for it again."""
        keys = {one.id: answer_key(voice.fingerprint, one, settings=voice.settings) for one in examples}
        with closing(AnswerCache(cache_dir() / "answers.sqlite")) as cache:
            known = cache.get(keys.values())
            missing = [one for one in examples if keys[one.id] not in known]
            self._said(voice, len(examples) - len(missing))
            for batch in voice.answers(missing) if missing else ():
                fresh = {keys[name]: answer for name, answer in batch.items() if answer}
                cache.put(fresh)
                known |= fresh
                self._withheld |= {name for name, answer in batch.items() if not answer}
                self._said(voice, len(batch))
        if isinstance(voice, ServerVoice) and (told := voice.server.told()) and told not in self._told:
            self._told.add(told)
            self.progress(told, 0, 0)
        return {name: whole_sentences(*known[key]) for name, key in keys.items() if key in known}

    def _said(self, voice: Voice, more: int) -> None:
        self.done += more
        self.progress(voice.title, self.done, max(self.total, self.done))

    def teacher_counts(self) -> dict[str, int] | None:
        """How many sampled refusals were kept, if any were sampled."""
        return self.sampled if self.recipe.dataset.refusals == "teacher" else None


def general_answers(recipe: Recipe, loaded: Loaded, instructions: Sequence[tuple[str, str]], progress: Progress) -> list[GeneralAnswer]:
    """The model's own answers to general instructions, (id, instruction), less those that are none."""
    from docward.evaluation.likelihood import GeneralAnswer

    asked = general_examples(instructions)
    replies = Answerer(recipe, lambda: loaded, ExampleCounts(), progress, len(asked)).asked(asked, LocalVoice(loaded, recipe.dataset.max_new_tokens))
    told = ((one, replies.get(one.id, "")) for one in asked)
    return [GeneralAnswer(one.document_id, one.instruction, reply, origin="untuned") for one, reply in told if not why_not(one, reply)]


def susceptibility(recipe: Recipe, loaded: Loaded, examples: Sequence[Example], tasks: Sequence[Task]) -> dict[str, float]:
    """How often the untuned model complies with malicious training documents, by task, scaled to sum 1; equal weights where it complies with none.

    Raises:
        RecipeError: there are no malicious examples of a task.
    """
    from docward.evaluation.judges import judge_text

    answerer = Answerer(recipe, lambda: loaded, ExampleCounts(), lambda *_: None, 0)
    shares = {}
    for task in tasks:
        asked = [one for one in examples if one.task == task.name and one.want == Want.REFUSE][:SUSCEPTIBLE]
        if not asked:
            raise RecipeError(f"tuning.task_weights is `susceptible`, and there is no malicious training example of {task.name} to measure that on.")
        replies = answerer.asked(asked, LocalVoice(loaded, recipe.dataset.max_new_tokens))
        shares[task.name] = sum(judge_text(replies.get(one.id, ""), document=one.document).outcome == Outcome.COMPLIED for one in asked) / len(asked)
    total = sum(shares.values())
    return {task: round(share / total, 4) if total else round(1 / len(shares), 4) for task, share in shares.items()}
