"""A refusal in one token: a token that the model has to spare gets the words of a whole refusal.

In: a loaded model and the words. Out: the token's id, and, in place, a tokenizer in which it stands for them and a generation config that ends with it; both
are saved beside the adapter. So a refusal is one decision, always the same sentence, and costs one step; no word of it has to be learned. Refusal Tokens,
arXiv 2412.06748, put text behind theirs: a tied model reads the row it decides by as the beginning of that text, and a row that decides well reads badly
(`docs/lab-log.md`).
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from docward.errors import ModelError
from docward.models import Loaded
from docward.rendering import special_tokens

AUTO = "auto"
WORDS = "I\u2019m sorry, but I can\u2019t help with this document."


def refusal_token_id(loaded: Loaded, wanted: str | None) -> int | None:
    """The id of the token that is a refusal; the tokenizer gets it, if it has none yet. None where none is wanted, or (`auto`) the model has none to spare.

    Raises:
        ModelError: words are given, and the model has no token to spare; or they are none: nothing, or a control token, which no reply would show.
    """
    if wanted is None:
        return None
    words = WORDS if wanted == AUTO else wanted
    if not words.strip() or words in special_tokens(loaded.tokenizer):
        raise ModelError(f"tuning.refusal_token is {wanted!r}, which no reply would show. Write the words of a whole refusal, or auto.")
    if words not in loaded.tokenizer.get_added_vocab():
        spare = spare_tokens(loaded.tokenizer)
        if spare:
            loaded.tokenizer = renamed(loaded.tokenizer, spare[-1], words)
        elif len(loaded.tokenizer) < int(loaded.model.config.get_text_config().vocab_size):  # rows that no token has yet
            from transformers import AddedToken

            loaded.tokenizer.add_tokens([AddedToken(words, normalized=False)])
        elif wanted == AUTO:
            return None
        else:
            raise ModelError(f"{loaded.name} has no token to spare that could stand for {words!r}: leave tuning.refusal_token out, or set it to auto.")
    token = int(loaded.tokenizer.get_added_vocab()[words])
    config: Any = loaded.model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = [*(end for end in ends if end not in (None, token)), token]
    return token


def spare_tokens(tokenizer: Any) -> list[str]:
    """Special tokens that have no part in texts or chats, by id."""
    taken = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    special = [str(one.content) for _, one in sorted(tokenizer.added_tokens_decoder.items()) if one.special]
    return [name for name in special if name not in taken and name not in (tokenizer.chat_template or "")]


def renamed(tokenizer: Any, name: str, words: str) -> Any:
    """The same tokenizer, in which a special token has other words and is no control token: it is shown, and text that says just this is read as it."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as draft:
        folder = Path(draft)
        tokenizer.save_pretrained(str(folder))
        place = folder / "tokenizer.json"
        found = json.loads(place.read_text(encoding="utf-8"))
        [entry] = [one for one in found["added_tokens"] if one["content"] == name]
        entry |= {"content": words, "special": False, "normalized": False, "lstrip": False, "rstrip": False}
        vocabulary = found["model"]["vocab"]
        if isinstance(vocabulary, dict):
            found["model"]["vocab"] = {words if token == name else token: number for token, number in vocabulary.items()}
        else:  # pieces with scores, by id
            found["model"]["vocab"] = [[words, score] if token == name else [token, score] for token, score in vocabulary]
        place.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        place = folder / "tokenizer_config.json"
        config = json.loads(place.read_text(encoding="utf-8"))
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if key in config:
                config[key] = [one for one in config[key] if one != name]
        config.get("added_tokens_decoder", {}).pop(str(entry["id"]), None)  # tokenizer.json has it
        place.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        return AutoTokenizer.from_pretrained(str(folder))
