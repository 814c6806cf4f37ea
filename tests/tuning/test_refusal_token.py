"""A refusal in one token: whose words a spare token gets, and what is learned in place of the written refusals."""

import pytest
from transformers import AutoTokenizer

from docward.errors import ModelError
from docward.evaluation.judges import judge_text
from docward.models import load
from docward.recipe import TuningSection
from docward.tuning.refusal_token import WORDS, refusal_token_id, spare_tokens
from docward.tuning.tuning import training_groups
from docward.types import Outcome
from tiny import NO, training_examples

TEXTS = ["Some text.", "Before <|no|> and after.<|im_end|>\n", "Gr\u00fc\u00dfe, \u4f60\u597d"]


def test_a_refusal_is_the_token_and_the_end_and_no_other_answer_changes(with_token):
    loaded = load(str(with_token), dtype="float32")
    plain, _ = training_groups(loaded, training_examples(), TuningSection())
    groups, _ = training_groups(loaded, training_examples(), TuningSection(refusal_token="auto"))
    token, end, refusals = loaded.tokenizer.convert_tokens_to_ids(WORDS), loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"), 0
    for group, without in zip(groups, plain, strict=True):
        for row, same in zip(group.rows, without.rows, strict=True):
            ids, start = row.rendered.ids, row.rendered.answer_start
            if row.term == "defense":
                refusals += 1
                assert ids[start:] == [token, end]
                assert ids[:start] == same.rendered.ids[:start]
            else:
                assert ids == same.rendered.ids
    assert refusals == 12


def test_the_token_has_the_place_of_one_to_spare_and_its_words_are_read_and_shown(with_token, tmp_path):
    loaded = load(str(with_token), dtype="float32")
    before = loaded.tokenizer
    spare, size = before.convert_tokens_to_ids(NO), len(before)
    token = refusal_token_id(loaded, "auto")
    assert token == spare
    loaded.tokenizer.save_pretrained(tmp_path)
    for tokenizer in (loaded.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == size
        assert tokenizer.decode([token], skip_special_tokens=True) == WORDS
        assert tokenizer(f"so: {WORDS}", add_special_tokens=False)["input_ids"][-1] == token
        assert NO not in tokenizer.get_vocab()
        assert tokenizer.chat_template == before.chat_template
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (before.eos_token, before.pad_token, before.bos_token)
        for text in TEXTS:
            if NO not in text:
                assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert refusal_token_id(loaded, "auto") == token  # once is enough
    assert spare_tokens(loaded.tokenizer) == []


def test_the_default_model_gets_it_and_its_other_tokens_stay(real):
    before = real.tokenizer
    held = load("smollm2-135m")
    token = refusal_token_id(held, "auto")
    assert before.convert_ids_to_tokens(token) == "<empty_output>"
    for text in (*TEXTS, "<|im_start|>user\nSummarize it.<|im_end|>\n"):
        assert held.tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert judge_text(WORDS).outcome is Outcome.REFUSED


def test_words_of_ones_own(with_token):
    loaded = load(str(with_token), dtype="float32")
    token = refusal_token_id(loaded, "Das geht leider nicht.")
    assert loaded.tokenizer.decode([token]) == "Das geht leider nicht."


@pytest.mark.parametrize("words", ["", "  ", NO, "<|im_end|>"])
def test_words_that_no_reply_would_show_are_refused(with_token, words):
    with pytest.raises(ModelError, match=r"no reply would show\. Write the words of a whole refusal, or auto"):
        refusal_token_id(load(str(with_token), dtype="float32"), words)


def test_a_model_without_a_token_to_spare_says_so_or_goes_without(tiny_folder):
    loaded = load(str(tiny_folder), dtype="float32")
    with pytest.raises(ModelError, match=r"has no token to spare that could stand for 'No\.': leave tuning\.refusal_token out"):
        refusal_token_id(loaded, "No.")
    assert refusal_token_id(loaded, "auto") is None
    assert refusal_token_id(loaded, None) is None


def test_a_row_that_no_token_has_yet_will_do(tiny_folder):
    loaded = load(str(tiny_folder), dtype="float32")
    size = len(loaded.tokenizer)
    loaded.model.resize_token_embeddings(size + 4)
    assert refusal_token_id(loaded, "auto") == size
    assert loaded.tokenizer.decode([size], skip_special_tokens=True) == WORDS
