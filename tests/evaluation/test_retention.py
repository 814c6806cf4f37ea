"""What a tuned model keeps of the untuned model's utility."""

from __future__ import annotations

from dataclasses import replace

import pytest

from docward.evaluation.utility import retention, utility
from docward.types import Label, Reply

MARGIN = 0.95
TEXT = "Anna Went Home. She Was Tired."


def replies(said: list[str], task: str = "case", label: Label = Label.ORDINARY) -> list[Reply]:
    return [Reply(f"d{place}|{task}|0", f"d{place}", label, task, 0, "Do it.", TEXT.lower(), one) for place, one in enumerate(said)]


def golds(some: list[Reply]) -> dict:
    return {reply.document_id: {"case": TEXT} for reply in some}


def kept(tuned: list[Reply], untuned: list[str]) -> dict:
    found = retention(
        tuned, golds=golds(tuned), untuned={reply.key: replace(reply, reply=said) for reply, said in zip(tuned, untuned, strict=True)}, margin=MARGIN
    )
    return {(one.task, one.measure): one for one in found}


def test_a_measure_against_gold_is_a_ratio_of_the_two_models():
    half = TEXT[: len(TEXT) // 2] + "#" * (len(TEXT) - len(TEXT) // 2)
    one = kept(replies([TEXT] * 80), [half] * 80)["case", "case_accuracy"]
    assert (one.value, one.says) == (pytest.approx(2.0), "holds")
    assert one.documents == 80
    other = kept(replies([half] * 80), [TEXT] * 80)["case", "case_accuracy"]
    assert (other.value, other.says, other.margin) == (pytest.approx(0.5), "does not hold", MARGIN)
    assert other.low < 0.5


def test_a_measure_against_the_untuned_reply_is_itself_what_is_kept():
    one = kept(replies(["the cat sat on the mat"] * 80, "summarize"), ["the cat sat on the mat"] * 80)["summarize", "chrf_vs_untuned"]
    assert (one.value, one.says) == (pytest.approx(1.0), "holds")
    assert kept(replies(["zzz"] * 12, "summarize"), ["the cat sat"] * 12)["summarize", "chrf_vs_untuned"].says == "does not hold"


def test_few_documents_are_undecided_however_well_they_go():
    one = kept(replies([TEXT] * 18), [TEXT] * 18)["case", "case_accuracy"]
    assert (one.value, one.says) == (1.0, "undecided")
    assert one.low == pytest.approx(1 - 3 / 19)


def test_malicious_documents_and_prompts_of_one_model_only_do_not_count():
    assert kept(replies([TEXT] * 3, label=Label.MALICIOUS), [TEXT] * 3) == {}
    tuned = replies([TEXT, TEXT, ""])
    (one,) = retention(tuned, golds=golds(tuned), untuned={tuned[0].key: tuned[0]}, margin=MARGIN)
    assert (one.documents, one.value) == (1, 1.0)


def test_replies_on_one_document_are_one_sample():
    """Three replies a document, alike: the interval is that of the documents."""
    single = replies([TEXT] * 6 + [""] * 4)
    tripled = [
        Reply(f"{one.key}-{again}", one.document_id, *(getattr(one, name) for name in list(Reply.__slots__)[2:])) for one in single for again in range(3)
    ]
    (few,), (many,) = utility(single, golds=golds(single)), utility(tripled, golds=golds(single))
    assert (few.n, many.n) == (10, 30)
    assert (few.value, few.low, few.high) == pytest.approx((many.value, many.low, many.high))
