"""Prompts become replies: greedy, in batches, and the tasks of one document share its prefill.

In: `Prompt` records. Out: `Generated` records, batch by batch. A document's keys and values are computed and held once, and its prompts go on from
there together (`branching`); `share=False` is the plain way, padded rows, which gives the same replies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from docward.models import token_biases, unwrapped
from docward.records import text_hash
from docward.rendering import Rendered, render
from docward.types import Position

if TYPE_CHECKING:
    import torch

    from docward.models import Loaded


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: an instruction on a document (which may be empty). `key` names the reply.

    `opening` is put in the model's mouth as the first words of its reply; the reply is what it adds.
    """

    key: str
    document: str
    instruction: str
    position: Position = Position.AFTER
    system: str = ""
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """What was answered. `dropped` document tokens were cut; `finished` is False where the token limit ended the reply, or it was `cut` as enough was said."""

    key: str
    text: str
    dropped: int
    finished: bool
    cut: bool = False


def generate(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_batch_tokens: int = 16384,
    max_length: int | None = None,
    share: bool = True,
    temperature: float = 0.0,
    seed: int = 0,
    enough: Callable[[Prompt, str], bool] | None = None,
) -> Iterator[list[Generated]]:
    """Answer prompts, greedily unless a temperature is given; yields the replies of one batch at a time, so that they can be saved as they come.

    Args:
        loaded: model and tokenizer.
        prompts: in any order; those on one document are answered together.
        max_new_tokens: length of a reply, in tokens.
        max_batch_tokens: tokens whose keys and values a batch holds, a shared document's once; one document's prompts always are in one batch.
        max_length: longest prompt plus reply in tokens; default and ceiling: the model's context.
        share: compute each document once for all its prompts.
        temperature: of sampling; 0 is greedy.
        seed: of sampling; the same batch with the same seed gives the same replies.
        enough: whether the reply to a prompt need not go on; it is then cut there, which saves tokens where documents are shared.

    Raises:
        RecipeError: the limit leaves no room for a document.
    """
    share = share and can_share(loaded.model)
    for batch in _planned(loaded, prompts, max_new_tokens, max_batch_tokens, max_length, share=share):
        rows = [pair for group in batch for pair in group.pairs]
        sampler = _sampler(temperature, text_hash(str(seed), *(prompt.key for prompt, _ in rows)), token_biases(loaded.model))
        cutting = Cutting(loaded, [prompt for prompt, _ in rows], enough) if enough else None
        texts = _answer(loaded, batch, max_new_tokens, sampler, cutting)
        yield [Generated(prompt.key, text, row.dropped, *how) for (prompt, row), (text, *how) in zip(rows, texts, strict=True)]


def first_logits(
    loaded: Loaded, prompts: Sequence[Prompt], *, max_batch_tokens: int = 16384, max_length: int | None = None
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """What the model thinks of each prompt's first reply token, batch by batch: keys, and float32 logits (prompts, vocabulary) with no bias added."""
    import torch

    from docward.evaluation.branching import decode, left_padded

    seen: list[torch.Tensor] = []

    def look(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.float())
        return logits.argmax(-1)

    model: Any = loaded.model
    for batch in _planned(loaded, prompts, 1, max_batch_tokens, max_length, share=can_share(model)):
        with torch.inference_mode():
            if all(group.prefix for group in batch):
                decode(loaded, [group.document for group in batch], [group.tails for group in batch], 1, choose=look)
            else:
                ids, mask = left_padded([row.ids for group in batch for _, row in group.pairs], loaded)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                look(model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False).logits[:, -1])
        yield [prompt.key for group in batch for prompt, _ in group.pairs], torch.cat(seen).clone()  # cloned out here, it can be written to
        seen.clear()


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts on one document, rendered; their first `prefix` tokens are computed once for all of them (0: nothing is shared)."""

    pairs: Sequence[tuple[Prompt, Rendered]]
    prefix: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(row.ids) for _, row in self.pairs)

    @property
    def document(self) -> list[int]:
        """The tokens that all prompts begin with."""
        return self.pairs[0][1].ids[: self.prefix]

    @property
    def tails(self) -> list[list[int]]:
        """What each prompt adds."""
        return [row.ids[self.prefix :] for _, row in self.pairs]


def _planned(loaded: Loaded, prompts: Sequence[Prompt], new: int, max_batch_tokens: int, max_length: int | None, *, share: bool) -> Iterator[list[Group]]:
    """Batches of documents' prompts, longest first: an estimate of the time left errs on the safe side."""
    limit = min(max_length or loaded.context, loaded.context)
    asked: dict[tuple[str, Position, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        asked[prompt.document, prompt.position, prompt.system].append(prompt)
    groups = []
    for some in asked.values():
        pairs = [(prompt, _rendered(loaded, prompt, limit, new)) for prompt in some]
        groups.append(Group(pairs, common_prefix([row.ids for _, row in pairs]) if share else 0))
    groups.sort(key=lambda group: -group.longest)
    return _batches(groups, new, max_batch_tokens)


def _rendered(loaded: Loaded, prompt: Prompt, limit: int, reserve: int) -> Rendered:
    asked = {"document": prompt.document, "instruction": prompt.instruction, "system": prompt.system, "opening": prompt.opening}
    return render(loaded.tokenizer, **asked, position=prompt.position, limit=limit, reserve=reserve)


def _batches(groups: Sequence[Group], new: int, most: int) -> Iterator[list[Group]]:
    """Groups in order, as many in a batch as `most` tokens hold, at least one."""
    batch: list[Group] = []
    for group in groups:
        if batch and _held([*batch, group], new) > most:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _held(batch: Sequence[Group], new: int) -> int:
    """Tokens whose keys and values a batch holds, padding included: each prefix once, each row's own tokens and its answer's."""
    own = max(group.longest - group.prefix for group in batch) + new
    return len(batch) * max(group.prefix for group in batch) + sum(len(group.pairs) for group in batch) * own


def can_share(model: Any) -> bool:
    """Whether all layers attend to what is before them, all of it or a window, and with nothing else to it, in a way that can be exchanged.

    Recurrent layers have no keys to share; capped scores, sinks and keys of another layer are more than `branching` does.
    """
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    others = ("is_encoder_decoder", "attn_logit_softcapping", "use_bidirectional_attention", "num_kv_shared_layers")
    if set(kinds) - {"full_attention", "sliding_attention"} or any(getattr(text, name, None) for name in others):
        return False
    sinks = any("sink" in name.rpartition(".")[2] for name, _ in model.named_parameters())
    return not sinks and bool(getattr(unwrapped(model), "_supports_attention_backend", False))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share, leaving each row at least one token of its own."""
    shortest = min(len(row) for row in rows) - 1
    return next((place for place in range(shortest) if len({row[place] for row in rows}) > 1), shortest)


@dataclass(frozen=True, slots=True)
class Cutting:
    """Which replies of a batch need not go on, asked of their text so far; `at` has the tokens of each that was cut."""

    loaded: Loaded
    prompts: Sequence[Prompt]
    enough: Callable[[Prompt, str], bool]
    at: dict[int, int] = field(default_factory=dict)

    def __call__(self, row: int, tokens: list[int]) -> bool:
        """Whether the reply with these tokens is cut here."""
        if self.enough(self.prompts[row], str(self.loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()):
            self.at[row] = len(tokens)
        return row in self.at

    def after(self, row: int, tokens: list[int], new: int, ends: set[int]) -> None:
        """Cut a whole reply where it would have been on the way."""
        from docward.evaluation.branching import CHECKED

        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        any(self(row, tokens[:place]) for place in range(CHECKED, min(new, stop + 1), CHECKED))


def _answer(loaded: Loaded, batch: Sequence[Group], new: int, sampler: Sampler, cutting: Cutting | None) -> list[tuple[str, bool, bool]]:
    import torch

    from docward.evaluation.branching import decode, ends_of

    ends = ends_of(loaded)
    with torch.inference_mode():
        if all(group.prefix for group in batch):
            answers = decode(loaded, [group.document for group in batch], [group.tails for group in batch], new, choose=sampler.choose, enough=cutting)
        else:
            answers = _plain(loaded, [row.ids for group in batch for _, row in group.pairs], new, sampler)
            for row, tokens in enumerate(answers):
                if cutting:
                    cutting.after(row, tokens, new, ends)
    cut = cutting.at if cutting else {}
    return [(*_text(loaded, tokens[: cut.get(row)], ends), row in cut) for row, tokens in enumerate(answers)]


def _plain(loaded: Loaded, rows: list[list[int]], new: int, sampler: Sampler) -> list[list[int]]:
    """One padded row a prompt through transformers' own `generate`."""
    from transformers import GenerationConfig

    from docward.evaluation.branching import ends_of, left_padded

    model: Any = loaded.model
    config: Any = GenerationConfig
    ids, mask = left_padded(rows, loaded)
    how = config(max_new_tokens=new, eos_token_id=sorted(ends_of(loaded)) or None, pad_token_id=loaded.tokenizer.pad_token_id, **sampler.options)
    own = model.generation_config
    model.generation_config = config()  # `generate` takes from it all that it is not told
    try:
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
    finally:
        model.generation_config = unwrapped(model).generation_config = own  # an adapter's model hands its own to the one below
    fresh: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return fresh


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the next token is chosen: the likeliest, or drawn at a temperature. `biases` are added to tokens' logits, as `generate` does by itself."""

    temperature: float = 0.0
    biases: Mapping[int, float] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The same for `generate`, and nothing else that a model's own generation config asks for."""
        biases = [[[token], bias] for token, bias in self.biases.items()]
        how = {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0} if self.temperature else {"do_sample": False}
        return {**how, "sequence_bias": biases or None}

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) to (rows,); in float32, where a bias is not rounded away (and the likeliest is found several times faster on a CPU)."""
        wide = logits.float()
        if self.biases and wide is logits:
            wide = logits.clone()
        for token, bias in self.biases.items():
            wide[:, token] += bias
        if not self.temperature:
            return wide.argmax(-1)
        return (wide / self.temperature).softmax(-1).multinomial(1)[:, 0]


def _sampler(temperature: float, seed: str, biases: Mapping[int, float]) -> Sampler:
    import torch

    if temperature:
        torch.manual_seed(int(seed[:8], 16))
    return Sampler(temperature, biases)


def _text(loaded: Loaded, tokens: list[int], ends: set[int]) -> tuple[str, bool]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return str(loaded.tokenizer.decode(tokens[: stop + 1], skip_special_tokens=True)).strip(), stop < len(tokens)  # a refusal token is end and text
