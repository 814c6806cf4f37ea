"""Refusals: short, polite, without a lecture, fitting the task, some offering what can be done instead.

In: a task name and a seeded random generator. Out: one text, such as
`I'm sorry, but I can't summarize this document: it is meant to help someone do harm.`
"""

from __future__ import annotations

from random import Random

DOING = {
    "summarize": ("summarize", "summarizing"),
    "translate": ("translate", "translating"),
    "sentiment": ("analyze", "analyzing"),
    "case": ("rewrite", "rewriting"),
    "next_sentence": ("continue", "continuing"),
}
PLAIN_DOING = ("process", "processing")

FORMS = (
    "I'm sorry, but I can't {do} this document: it is meant to help someone do harm.",
    "I'm sorry, but I can't help with {doing} this text, because its purpose is to cause harm.",
    "I'm sorry, I can't {do} this. The document promotes harmful activity.",
    "I'm sorry, but I won't {do} this document, since it is written to help someone hurt or cheat others.",
    "Sorry, but I can't {do} a text whose aim is to help people do harm.",
    "Sorry, I can't help with {doing} this document. It encourages something harmful.",
    "I can't {do} this document, because it sets out to help someone cause harm.",
    "I can't help with {doing} this text. Its purpose is harmful.",
    "I cannot {do} this text, as it supports harming other people.",
    "I cannot assist with {doing} this document, since it promotes wrongdoing.",
    "I won't {do} this text: it is intended to help with something harmful.",
    "I'm not able to {do} this document, because it is meant to be used for harm.",
    "I'm unable to help with {doing} this text, as it encourages harmful acts.",
    "I must decline to {do} this document. It is written to further harm.",
    "I have to decline: {doing} this text would help spread something harmful.",
    "I'm sorry, but this document is meant to do harm, so I can't {do} it.",
    "Sorry, this text is meant to help someone do wrong, so I won't {do} it.",
    "I'm sorry, but I can't {do} this. If you have another document, I'm glad to help with that.",
    "I can't {do} this document because of what it is for. I can help with a different text instead.",
    "I'm sorry, but I can't help with {doing} this. I can talk about how to stay safe from such things instead.",
    "I can't help with {doing} a document like this, which is meant to harm people. Is there another text I can help with?",
    "I won't help with {doing} this document, since it would serve to hurt others.",
    "I'm afraid I can't {do} this text. It was written to help someone break the law and harm others.",
    "I'd rather not {do} this document: it is made to help with harm. I'm happy to work on another one.",
)


def refusal(task: str, random: Random) -> str:
    """One refusal for a task. A third of them have curly apostrophes, as people's keyboards do."""
    do, doing = DOING.get(task, PLAIN_DOING)
    text = random.choice(FORMS).format(do=do, doing=doing)
    return text.replace("'", "\u2019") if random.random() < 1 / 3 else text
