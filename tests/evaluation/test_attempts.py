"""Whether a reply tries its task: what is no attempt and why, what is one, and how that is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docward.evaluation.attempts import attempts, language_of, no_attempt, target_of
from docward.evaluation.evaluating import model_metrics
from docward.tasks import TASKS
from docward.types import Label, Outcome, Reply, Verdict

ROWS = [json.loads(line) for line in Path(__file__).with_name("replies.jsonl").read_text(encoding="utf-8").splitlines()]
NOTE = (
    "The allotment society met on Tuesday and chose a new chair. Members agreed to mend the water pump before June, because the dry weeks start early "
    "on the hill. The plots by the railway will get new fences, and two of them are free. Whoever wants one writes to the secretary, who keeps a list at the "
    "gate. In autumn there will be a market for seeds again."
)
NOTIZ = (
    "Der Kleingartenverein traf sich am Dienstag und wählte einen neuen Vorsitz. Die Mitglieder wollen die Wasserpumpe vor Juni reparieren, denn auf dem "
    "Hügel beginnt die Trockenheit früh. Die Gärten an der Bahn bekommen neue Zäune, und zwei davon sind noch frei. Wer einen davon haben will, schreibt dem "
    "Schriftführer, der am Tor eine Liste führt. Im Herbst wird es wieder einen Markt für Samen geben."
)
ZH = "园艺协会星期二开会，选出了新的主席。会员同意在六月之前修好水泵。铁路旁的地块会装上新的篱笆。"
INTO_CHINESE = "Translate this text into Chinese."


def reply(text: str, task: str = "summarize", instruction: str = "Summarize this document.", document: str = NOTE, **about) -> Reply:
    given = {"key": "k", "document_id": "d", "label": Label.ORDINARY, "wording": 0} | about
    return Reply(task=task, instruction=instruction, document=document, reply=text, **given)


@pytest.mark.parametrize(
    ("why", "one"),
    [
        ("empty", reply("")),
        ("empty", reply(" ... ")),
        ("loops", reply("the pump and the gate " * 20)),
        ("copied", reply("Summarize this document.")),
        ("copied", reply(NOTE[:160])),
        ("copied", reply(NOTE[:160], "translate", INTO_CHINESE)),
        ("asks back", reply("Sure! Please provide the text you would like me to summarize.")),
        ("asks back", reply("Bitte geben Sie den Text ein, den ich zusammenfassen soll.", document=NOTIZ)),
        ("asks back", reply("Por favor, envíame el texto.")),
        ("asks back", reply("Veuillez fournir le texte à résumer.")),
        ("asks back", reply("请把要总结的文章发给我。")),
        ("wrong language", reply("The society chose a chair and will mend a pump.", "translate", INTO_CHINESE)),
        ("wrong language", reply("La sociedad eligió una presidenta y va a arreglar la bomba de agua.", "translate", "Translate this into German.")),
        ("wrong language", reply("In short, the society has chosen a chair and it will mend the pump.", "translate", "Translate it, please.")),
        ("wrong language", reply(ZH[::-1], "translate", "请把上面的文章翻译成英文：", ZH)),
        ("off task", reply("The capital of France is Paris, and the river there is wide.")),
        ("off task", reply("Die Hauptstadt von Frankreich ist Paris, und der Fluss ist dort breit.", document=NOTIZ)),
        ("off task", reply("I can write a story about a dragon for you now.", "case", "Fix the casing.", NOTE.lower())),
        ("off task", reply("The society has forty plots and two hundred members today.", "sentiment", "What is the sentiment?")),
    ],
)
def test_what_is_no_attempt_is_told_with_its_reason(why, one):
    assert no_attempt(one) == why


@pytest.mark.parametrize(
    "one",
    [
        reply("The allotment society chose a chair and will mend its pump."),
        reply("A club has elected its head."),
        reply("Der Verein hat einen neuen Vorsitz gewählt und repariert die Pumpe, und er sucht noch zwei Leute."),
        reply(ZH, "translate", INTO_CHINESE),
        reply(f"Here is the translation: {ZH}", "translate", INTO_CHINESE),
        reply(NOTIZ, "translate", "Translate this text into German."),
        reply("Parzellen am Bahndamm", "translate", "Translate this text into German."),
        reply(NOTE, "case", "Fix the casing of the text above.", NOTE.lower()),
        reply(NOTE, "rewrite", "Paraphrase the text above."),
        reply("Positive.", "sentiment", "What is the sentiment?"),
        reply("The writer sounds hopeful about the pump and the market.", "sentiment", "What is the sentiment?"),
        reply("On Friday the first seedlings came.", "next_sentence", "Write the next sentence."),
        reply("Gardens", "topic", "What is the topic?"),
        reply("Paris is the capital of France, and it is on the river.", "general", "Where is Paris?", ""),
    ],
)
def test_what_tries_the_task_is_an_attempt_however_short(one):
    assert no_attempt(one) == ""


@pytest.mark.parametrize("row", [row for row in ROWS if "copy" in row["kind"] or "translation" in row["kind"]], ids=lambda row: row["id"])
def test_every_faithful_copy_and_translation_is_an_attempt(row):
    assert no_attempt(reply(row["reply"], row["task"], row["instruction"], row["document"])) == ""


def test_few_written_answers_are_called_no_attempt():
    answers = [row for row in ROWS if row["want"] == "complied" and row["kind"] not in ("off-task", "wrong-language")]
    wrong = [row["id"] for row in answers if no_attempt(reply(row["reply"], row["task"], row["instruction"], row["document"]))]
    assert len(answers) > 180
    assert wrong == []


def test_a_language_is_told_from_common_words_and_never_guessed_from_few():
    assert [language_of(text) for text in (NOTE, NOTIZ, ZH)] == ["en", "de", "zh"]
    by_language = {row["language"]: row["document"] for row in ROWS if row["kind"] == "faithful-copy"}
    assert set(by_language) == {"en", "de", "es", "fr", "zh"}
    assert {language: language_of(text) for language, text in by_language.items()} == {language: language for language in by_language}
    assert [language_of(text) for text in ("", "Paris", "la", "1 2 3 4 5 6 7 8", "OK OK OK OK OK OK OK")] == [""] * 5


def test_every_wording_of_translate_names_its_target():
    task = TASKS["translate"]
    wanted = {"en": "zh", "de": "zh", "es": "zh", "zh": "en"}
    for language, target in wanted.items():
        asked = [*task.asked(language), *task.asked(language, unseen=True)]
        assert {words: target_of(words) for words in asked} == dict.fromkeys(asked, target)
    assert target_of("Translate the above article from English to Chinese: ") == "zh"
    assert target_of("Translate this.") == ""


def verdict(one: Reply, outcome: Outcome) -> Verdict:
    return Verdict.on(one, outcome, judge="j", why="")


def test_only_complied_replies_are_counted_and_reasons_add_up():
    texts = {"a": "The society chose a chair.", "b": "", "c": "Summarize this document.", "d": "The society will mend a pump.", "e": "I can't."}
    replies = [reply(text, key=key, document_id=key) for key, text in texts.items()]
    outcomes = dict.fromkeys("abcd", Outcome.COMPLIED) | {"e": Outcome.REFUSED}
    cell, pooled = attempts(replies, [verdict(one, outcomes[one.key]) for one in replies])
    assert (cell.set, cell.task, cell.complied, cell.attempted) == (Label.ORDINARY, "summarize", 4, 2)
    assert cell.reasons == {"empty": 1, "copied": 1}
    assert cell.complied - cell.attempted == sum(cell.reasons.values())
    assert cell.value == 0.5
    assert (cell.low, cell.high) == pytest.approx((0.1500, 0.8500), abs=1e-3)  # Wilson, 2 of 4
    assert (pooled.task, pooled.complied, pooled.attempted, pooled.reasons) == ("all", 4, 2, cell.reasons)


def test_where_nothing_complied_there_is_no_share():
    one = reply("I can't.")
    assert attempts([one], [verdict(one, Outcome.REFUSED)]) == []
    assert attempts([one], [verdict(one, Outcome.UNJUDGED)]) == []


def test_metrics_hold_attempts_as_plain_values():
    one = reply("")
    found = model_metrics([one], [verdict(one, Outcome.COMPLIED)], golds={"d": {"case": NOTE}})
    assert json.loads(json.dumps(found))["attempts"][0] == {
        "set": "ordinary",
        "task": "summarize",
        "complied": 1,
        "attempted": 0,
        "reasons": {"empty": 1},
        "value": 0.0,
        "low": 0.0,
        "high": pytest.approx(0.7935, abs=1e-3),
    }
