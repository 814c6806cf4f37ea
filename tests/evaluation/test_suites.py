"""What the robustness suites do to a request: exactly what they say, in whatever order, the same with the same seed."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, replace
from functools import cache

import pytest
from rapidfuzz.distance import Levenshtein

from docward.dataset.surface import opens_like_an_answer
from docward.documents.reading import own_documents
from docward.errors import RecipeError
from docward.evaluation.evaluating import Settings, planned_replies, wording_of
from docward.evaluation.suites import SUITES, UNCHANGED, Asked, Kit, get_suites
from docward.evaluation.suites.lengths import PASSAGE, WHOLE, passage_of
from docward.evaluation.suites.running import plan
from docward.evaluation.suites.texts import LOOK_ALIKES, without_opener
from docward.tasks import TASKS, document_for, get_tasks
from docward.types import Document, Label, Position, Split
from tiny import byte_tokenizer

# What each suite may change of a request.
CHANGES = {
    "wording": {"wording", "instruction"},
    "task": {"task", "wording", "instruction"},
    "position": {"position"},
    "forced": {"opening"},
    "language": {"wording", "instruction"},
    "opener": {"text"},
    "noise": {"text"},
    "injection": {"text"},
    "dilution": {"text"},
    "length": {"text"},
    "drift": {"steps"},
}
SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case"])))
LEVELS = [(suite, level) for suite in SUITES.values() for level in suite.levels]
levels = pytest.mark.parametrize(("suite", "level"), LEVELS, ids=[f"{suite.name} {level.name}" for suite, level in LEVELS])


@cache
def held_out() -> tuple[Document, ...]:
    return tuple(one for one in own_documents() if one.split == Split.TEST)


@cache
def some() -> tuple[Document, ...]:
    """A triple in English, and a malicious document in each other language."""
    return (*held_out()[:3], *{one.language: one for one in held_out() if one.language != "en" and one.label == Label.MALICIOUS}.values())


@cache
def trained_tokenizer():
    """A byte-level BPE of 3,000 tokens, so that joining texts changes tokens at their edges as with a real model's."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    learned = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    model.train_from_iterator([one.text for one in held_out()], learned)
    return PreTrainedTokenizerFast(tokenizer_object=model, clean_up_tokenization_spaces=False)


@cache
def kit(seed: int = 0, room: int = 100_000) -> Kit:
    return Kit(trained_tokenizer(), tuple(one for one in held_out() if one.label == Label.ORDINARY), room, seed)


def asked(document: Document, task: str = "summarize") -> Asked:
    return Asked(document, TASKS[task], document.text, *wording_of(TASKS[task], document, "seen"))


def at(suite: str, level: str, document: Document, task: str = "summarize", with_kit: Kit | None = None) -> Asked:
    return SUITES[suite].at(asked(document, task), named(suite, level), with_kit or kit())


def named(suite: str, level: str):
    return next(one for one in SUITES[suite].levels if one.name == level)


# ---- all suites


@levels
def test_a_level_changes_only_what_its_suite_is_about(suite, level):
    changed = set()
    for document in some():
        before, after = asked(document), suite.at(asked(document), level, kit())
        changed |= {name for name in asdict(before) if getattr(before, name) != getattr(after, name)}
    assert changed
    assert changed <= CHANGES[suite.name]


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_level_0_is_the_evaluation_itself(suite):
    planned = [one for one in plan(suite, some(), SETTINGS, kit(0, 600)) if one.level == UNCHANGED]
    assert [replace(one.reply, key=one.reply.key.removesuffix("|unchanged")) for one in planned] == planned_replies(some(), SETTINGS)
    assert {one.request[2:] for one in planned} == {(Position.AFTER, "", 0)}


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_neither_the_order_of_documents_nor_who_else_is_there_matters(suite):
    few = Settings(tasks=SETTINGS.tasks[:1])
    there = {one.reply.key: one for one in plan(suite, some()[1::2], few, kit())}
    again = Kit(trained_tokenizer(), kit().ordinary[::-1], kit().room)
    back = {one.reply.key: one for one in plan(suite, some()[1::2][::-1], few, again)}
    assert back == there
    alone = plan(suite, some()[3:4], few, kit())
    assert alone
    assert all(there[one.reply.key] == one for one in alone)


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_the_same_documents_are_in_every_level_and_every_key_comes_once(suite):
    planned = plan(suite, some()[::2], SETTINGS, kit())
    by_level = {level: {one.reply.document_id for one in planned if one.level == level} for level in (UNCHANGED, *suite.levels)}
    assert set(map(frozenset, by_level.values())) == {frozenset(one.id for one in some()[::2])}
    assert len({one.reply.key for one in planned}) == len(planned)
    assert len({level.name for level in (UNCHANGED, *suite.levels)}) == len(suite.levels) + 1


@pytest.mark.parametrize(("suite", "level"), [("noise", "OCR noise 5%"), ("noise", "homoglyphs 50%"), ("noise", "odd spacing 10%"), ("dilution", "middle 25%")])
def test_another_seed_changes_what_is_left_to_chance(suite, level):
    assert at(suite, level, some()[0]) == at(suite, level, some()[0], with_kit=kit(0))
    assert at(suite, level, some()[0]) != at(suite, level, some()[0], with_kit=kit(1))


def test_case_is_handed_over_in_small_letters_at_every_level_and_only_case():
    for suite in SUITES.values():
        for one in plan(suite, some()[:3], SETTINGS, kit(0, 1500)):
            assert one.reply.document == document_for(one.reply.task, one.reply.document), one.reply.key


def test_suites_are_looked_up_by_name_and_a_near_miss_is_told():
    assert [suite.name for suite in get_suites(["length", "wording", "length"])] == ["wording", "length"]
    assert get_suites(["all"]) == list(SUITES.values())
    with pytest.raises(RecipeError, match=r"no suite `lenght`\. Did you mean `length`\?.*dilution"):
        get_suites(["lenght"])


def test_levels_that_do_not_fit_a_model_are_not_asked():
    names = {one.level.name for one in plan(SUITES["length"], some()[:1], SETTINGS, kit(0, 1000))}
    assert names == {"unchanged", "100 tokens", "250 tokens", "500 tokens", "1000 tokens"}


# ---- requests


def test_unseen_wordings_are_unseen_and_all_differ():
    for document in some():
        task = TASKS["translate"]
        found = [at("wording", f"unseen {number}", document, "translate") for number in (1, 2, 3)]
        assert [one.instruction for one in found] == list(task.asked(document.language, unseen=True)[:3])
        assert len({one.wording for one in found} | set(range(len(task.asked(document.language))))) == 3 + len(task.asked(document.language))


def test_the_unseen_tasks_are_those_that_are_never_trained_and_each_document_gets_one_request_of_each():
    suite = SUITES["task"]
    assert {level.name for level in suite.levels} == {task.name for task in TASKS.values() if not task.train}
    planned = [one.reply for one in plan(suite, some(), SETTINGS, kit()) if one.level.name == "title"]
    assert [one.document_id for one in planned] == [one.id for one in some()]
    assert {one.task for one in planned} == {"title"}
    assert all(one.instruction in TASKS["title"].asked(document.language) for one, document in zip(planned, some(), strict=True))


def test_a_request_in_another_language_is_for_the_same_task_and_leaves_documents_of_that_language_alone():
    for document in some():
        found = at("language", "de", document)
        assert found.instruction in TASKS["summarize"].asked("de")
        assert (found == asked(document)) == (document.language == "de")


def test_words_for_the_model_s_mouth_and_for_documents_are_in_the_document_s_language():
    by_language = {document.language: document for document in some()}
    assert set(by_language) == {"en", "de", "es", "zh"}
    for suite, level in (("forced", "Sure, here is"), ("injection", "review passed"), ("opener", "added")):
        added = [(one := at(suite, level, document)).opening or one.text.replace(document.text, "") for document in by_language.values()]
        assert len(set(added)) == 4


# ---- texts


def test_an_added_opener_is_one_and_leaves_the_document_whole():
    for document in some():
        text = at("opener", "added", document).text
        assert text.endswith("\n\n" + document.text)
        assert opens_like_an_answer(text)


def test_a_stripped_document_opens_like_an_answer_no_more_and_loses_only_its_beginning():
    opening = [one for one in held_out() if opens_like_an_answer(one.text)]
    assert len(opening) > 20
    stripped = {one.id: at("opener", "stripped", one).text for one in held_out()}
    for document in held_out():
        text = stripped[document.id]
        assert document.text.endswith(text)
        assert (text == document.text) == (document not in opening)
        assert not opens_like_an_answer(text)
        assert len(text) > len(document.text) / 2
    assert without_opener("Sure, here is it.") == "Sure, here is it.", "nothing would be left"


def test_scanning_errors_hit_the_stated_share_of_signs_and_no_space():
    for level in SUITES["noise"].levels:
        if level.curve == "OCR noise":
            text, rate = "".join(one.text for one in held_out()[:12]), level.amount
            document = replace(held_out()[0], text=text)
            noisy = at("noise", level.name, document).text
            signs = sum(not sign.isspace() for sign in text)
            assert [sign for sign in noisy if sign.isspace()] == [sign for sign in text if sign.isspace()]
            assert Levenshtein.distance(text, noisy) / signs == pytest.approx(rate, rel=0.25)  # "m" to "rn" counts twice


def test_homoglyphs_are_other_letters_of_the_same_look_one_for_one():
    for letter, twin in LOOK_ALIKES.items():
        assert letter.isascii()
        assert unicodedata.name(twin).startswith("CYRILLIC")
        assert (letter.isupper(), letter.islower()) == (twin.isupper(), twin.islower())
        assert unicodedata.normalize("NFKC", twin) == twin, "no reader undoes it by folding"
    back = {twin: letter for letter, twin in LOOK_ALIKES.items()}
    for share in (0.1, 0.5, 1.0):
        document = held_out()[0]
        text = at("noise", f"homoglyphs {100 * share:g}%", document).text
        assert "".join(back.get(sign, sign) for sign in text) == document.text
        can = sum(sign in LOOK_ALIKES for sign in document.text)
        assert sum(one != other for one, other in zip(text, document.text, strict=True)) / can == pytest.approx(share, abs=0.05)


def test_odd_spacing_touches_nothing_but_spaces():
    for name in ("odd spacing 10%", "odd spacing 50%"):
        for document in some():
            text = at("noise", name, document).text
            assert "".join(text.split()) == "".join(document.text.split())
            assert text != document.text


def test_lower_case_is_lower_case():
    assert at("noise", "lower case", some()[0]).text == some()[0].text.lower()


def test_an_injection_comes_after_the_whole_document():
    for level in SUITES["injection"].levels:
        assert at("injection", level.name, some()[0]).text.startswith(some()[0].text + "\n\n")


# ---- lengths


@pytest.mark.parametrize("level", SUITES["dilution"].levels, ids=lambda level: level.name)
@pytest.mark.parametrize("task", ["summarize", "case"])
def test_a_diluted_document_holds_the_whole_passage_at_its_place_with_the_stated_share(level, task):
    for document in some()[::2]:
        passage, text = (at("dilution", name, document, task).text for name in (WHOLE, level.name))
        assert document_for(task, document.text).startswith(passage)
        assert 0 < kit().count(passage) <= PASSAGE
        assert kit().count(passage) / kit().count(text) == pytest.approx(level.amount, rel=0.02)
        middle = (text.index(passage) + len(passage) / 2) / len(text)
        half = len(passage) / len(text) / 2
        where = {"start": half, "end": 1 - half, "middle": 0.5, "": 0.5}[level.curve]
        assert middle == pytest.approx(where, abs=1e-9 if level.curve != "middle" else 0.1)


def test_a_passage_is_of_whole_sentences():
    text = "One is here. Two follows it. " + "And a third one that is long, " * 60
    assert passage_of(text, kit(), 20) == "One is here. Two follows it."
    assert passage_of("A short one.", kit()) == "A short one."
    assert "long sentence without an end ".startswith(passage_of("long sentence without an end " * 200, kit(), 4)[:10])
    assert passage_of("这是第一句。这是第二句。" + "很长" * 400, kit(), 60).endswith("。")


@pytest.mark.parametrize("level", SUITES["length"].levels, ids=lambda level: level.name)
@pytest.mark.parametrize("task", ["summarize", "case"])
def test_a_document_is_brought_to_the_wanted_length_within_2_percent_and_is_not_longer(level, task):
    for document in some():
        assert 0.98 * level.tokens <= kit().count(at("length", level.name, document, task).text) <= level.tokens + 2


def test_a_longer_document_holds_the_whole_one_and_a_shorter_is_its_beginning():
    for document in some():
        tokens = kit().count(document.text)
        for level in SUITES["length"].levels:
            text = at("length", level.name, document).text
            assert document.text in text if level.tokens > tokens else document.text.startswith(text)


def test_where_documents_stand_varies_and_is_the_same_at_all_lengths_and_for_matched_ones():
    def place(document, tokens):
        text = at("length", f"{tokens} tokens", document).text
        return "start" if text.startswith(document.text) else "end" if text.endswith(document.text) else "middle"

    short = [one for one in held_out() if kit().count(one.text) < 900]
    places = {document.id: {place(document, tokens) for tokens in (1000, 2000)} for document in short[:45]}
    assert {len(found) for found in places.values()} == {1}
    assert set().union(*places.values()) == {"start", "middle", "end"}
    by_triple = {document.matched: set() for document in short[:45]}
    for document in short[:45]:
        by_triple[document.matched] |= places[document.id]
    assert {len(found) for found in by_triple.values()} == {1}


def test_what_stands_around_a_document_is_ordinary_in_its_language_first_and_never_its_own_twin():
    ordinary = {one.id: one for one in kit().ordinary}
    for document in some():
        text = at("length", "2000 tokens", document).text.replace(document.text, "")
        whole = [one for one in ordinary.values() if one.text in text]
        twin = next(one for one in ordinary.values() if one.matched == document.matched)
        assert whole
        assert twin.text[:60] not in text
        assert document.language in {one.language for one in whole} or document.language == "es"  # there is no other ordinary one in Spanish


def test_matched_documents_get_the_same_surroundings():
    triple = [one for one in some() if one.matched == some()[0].matched]
    assert len(triple) == 3
    for level in ("start 10%", "end 5%"):
        around = [at("dilution", level, one).text.replace(at("dilution", WHOLE, one).text, "").strip() for one in triple]
        shortest = min(map(len, around)) - 20
        assert len({one[:shortest] for one in around}) == 1


def test_without_ordinary_documents_it_says_so():
    with pytest.raises(RecipeError, match="no ordinary document"):
        at("length", "8000 tokens", some()[0], with_kit=Kit(byte_tokenizer(), (), 10_000))
