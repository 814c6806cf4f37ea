"""THE renderer: document + instruction (+ answer) become token ids, an answer mask and a count of what was cut.

Tuning, evaluation and processing all use it, so a model is tested on the very prompts it was tuned on. The tokenizer's own chat
template is applied once, to text; the text is tokenised once, with no special tokens added; only the document is ever cut, in its
middle. One real row: `render(tokenizer, document="...", instruction="Summarize ...", answer="No.", limit=256)` gives `Rendered(ids=[1, 9690, ...],
answer_start=70, dropped=0)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from docward.errors import RecipeError, RenderError
from docward.types import Position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENT_SLOT = "\ue000d\ue001"  # private-use characters: no real text holds them
ANSWER_SLOT = "\ue000a\ue001"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a prompt, with or without its answer.

    `ids[answer_start:]` are the answer's tokens, up to and with the end-of-turn token; a prompt alone has `answer_start == len(ids)`, or the place
    where its opening begins.
    `dropped` document tokens were cut from the middle. `document` is the span of the document's tokens in `ids`.
    """

    ids: list[int]
    answer_start: int
    dropped: int
    document: range

    @property
    def answer_mask(self) -> list[bool]:
        """True on the answer's tokens; as long as `ids`."""
        return [place >= self.answer_start for place in range(len(self.ids))]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Document tokens that fit, and how many were dropped from the middle."""

    ids: list[int]
    dropped: int


def fit_document(ids: list[int], *, frame: int, answer: int, limit: int) -> Fitted:
    """Drop tokens from the middle of a document until frame + document + answer fit in `limit` tokens.

    Raises:
        RecipeError: the limit leaves no room for a document at all.
    """
    room = limit - frame - answer
    if room < 1:
        raise RecipeError(
            f"max_length = {limit} leaves no room for a document (instruction {frame} tokens, answer {answer}). Set it to at least {frame + answer + 1}."
        )
    head = min(len(ids), (room + 1) // 2)
    tail = min(len(ids) - head, room - head)
    return Fitted([*ids[:head], *ids[len(ids) - tail :]], dropped=len(ids) - head - tail)


def compose(document: str, instruction: str, position: Position = Position.AFTER) -> str:
    """Put document and instruction together as a user would; where one is empty, the other stands alone."""
    if not document or not instruction:
        return document or instruction
    return f"{document}\n\n{instruction}" if position == Position.AFTER else f"{instruction}\n\n{document}"


def render(
    tokenizer: PreTrainedTokenizerBase,
    *,
    document: str,
    instruction: str,
    answer: str | None = None,
    opening: str = "",
    position: Position = Position.AFTER,
    system: str = "",
    limit: int,
    reserve: int = 0,
) -> Rendered:
    """Render a prompt, with its answer if one is given, in at most `limit` tokens.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        document: the text to process; may be empty (a general instruction).
        instruction: what to do with it; may be empty (a question that is asked as it is).
        answer: the text to learn; None for generation.
        opening: first words of the answer that is yet to be generated; the model goes on from there. Not with `answer`.
        position: where the instruction stands.
        system: a system prompt, where the template takes one.
        limit: the most tokens, answer and `reserve` included.
        reserve: tokens kept free for an answer yet to be generated.

    Raises:
        RenderError: the answer is empty, or the chat template does not keep prompt and answer apart.
        RecipeError: `limit` is too small for instruction and answer.
    """
    if answer is not None and not answer.strip():
        raise RenderError(
            f"An example has an empty answer (instruction: {instruction[:60]!r}): there would be nothing to learn. Give it a response, or drop it."
        )
    prompt, closed = _texts(tokenizer, compose(DOCUMENT_SLOT if document else "", instruction, position), system, with_answer=answer is not None)
    safe = without_special_tokens(document.strip(), special_tokens(tokenizer))
    before, _, after = prompt.partition(DOCUMENT_SLOT) if document else (prompt, "", "")
    text = before + (safe + after if document else "")
    span = (len(before), len(before) + len(safe) if document else len(before))
    assert answer is None or not opening, "an answer is given whole"
    full = text + (closed or ANSWER_SLOT).replace(ANSWER_SLOT, without_special_tokens((answer or opening).strip(), special_tokens(tokenizer)))
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    start = next((place for place, (left, right) in enumerate(offsets) if right > len(text) and right > left), len(ids))
    if answer is not None:
        ids = _upto_end(ids, start, tokenizer)
    first = next((place for place, (left, right) in enumerate(offsets) if right > span[0]), start)
    last = next((place for place, (left, _) in enumerate(offsets) if left >= span[1] and place >= first), start)
    inside = range(first, last if document else first)
    fitted = fit_document(ids[inside.start : inside.stop], frame=start - len(inside), answer=len(ids) - start + reserve, limit=limit)
    ids = ids[: inside.start] + fitted.ids + ids[inside.stop :]
    start -= fitted.dropped
    if answer is not None and start >= len(ids):
        raise RenderError(f"The answer {answer[:40]!r} gives no tokens with this tokenizer: there would be nothing to learn.")
    return Rendered(ids=ids, answer_start=start, dropped=fitted.dropped, document=range(inside.start, inside.start + len(fitted.ids)))


def _texts(tokenizer: PreTrainedTokenizerBase, content: str, system: str, *, with_answer: bool) -> tuple[str, str]:
    """The prompt's text up to where the model speaks, and what follows it: answer slot and end of turn."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    try:
        prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError:
        if not system:
            raise
        messages = [{"role": "user", "content": f"{system}\n\n{content}"}]  # templates that know no system role say so by an error (Gemma, Mistral)
        prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if system and system.strip() not in prompt:
        raise RenderError("This chat template drops the system prompt. Leave `system_prompt` out for this model.")
    if not with_answer:
        return prompt, ""
    whole = str(tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": ANSWER_SLOT}], tokenize=False))
    if whole.startswith(prompt) and ANSWER_SLOT in whole:
        return prompt, whole[len(prompt) :]
    if tokenizer.eos_token is None:
        raise RenderError("This chat template changes the prompt once there is an answer, and the tokenizer has no end token to close the answer with.")
    return prompt, ANSWER_SLOT + str(tokenizer.eos_token)


def _upto_end(ids: list[int], start: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Cut what the template writes after the end-of-turn token: generation stops there, so nothing after it is learned."""
    ends = {tokenizer.eos_token_id, *(place for token, place in tokenizer.get_added_vocab().items() if token in END_OF_TURN)}
    for place in range(len(ids) - 1, start, -1):
        if ids[place] in ends:
            return ids[: place + 1]
    return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]


# End-of-turn tokens that are not always the tokenizer's eos_token (Gemma, Llama 3, Phi 3, ChatML).
END_OF_TURN = frozenset({"<end_of_turn>", "<|eot_id|>", "<|end|>", "<|im_end|>", "<turn|>"})


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """All control tokens a document must not be able to speak."""
    flagged = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset(token for token in (*tokenizer.all_special_tokens, *flagged) if len(token) > 1)


def without_special_tokens(text: str, tokens: Iterable[str]) -> str:
    """Break control tokens that stand in a text (`<|im_end|>` becomes `< |im_end|>`), so that a document cannot end its own turn."""
    for token in sorted(tokens, key=len, reverse=True):
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
