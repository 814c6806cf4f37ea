"""Cleaning: what strangers' files carry besides their text goes, words stay, a second cleaning finds nothing more."""

import json
from random import Random

import pytest

from docward.documents.cleaning import clean, tidy
from docward.documents.reading import own_documents

FINE = {
    "English": "He said “no” — and that’s it… naïve café, “quoted ‘within’”.",
    "German": "Größe, Maß und Übermut – „nein“, sagte sie.",
    "French": "L’été à Nîmes… où ça ? «Là-bas», dit-il. “Qualité” — né à Orléans; «café».",
    "Spanish": "¿Cuándo? ¡Mañana! El niño.",
    "Portuguese": "Não, obrigação às três.",
    "Polish": "Zażółć gęślą jaźń, łódź.",
    "Czech": "Příliš žluťoučký kůň.",
    "Turkish": "İstanbul’da güneşli bir gün.",
    "Greek": "Καλημέρα κόσμε.",
    "Russian": "Привет, как дела? Это письмо.",
    "Chinese": "不行,这是一个测试文档。",
    "Japanese": "これはテストです。",
    "Persian": "می‌خواهم نان بخرم.",
    "Hindi": "यह एक परीक्षण है।",
    "signs": "Bread 🍞 and ☕️ for 3 €, 5 % off — a 👨‍👩‍👧 of 3.",
}
NOISE = ["\r", "\r\n", "\x00", "\x1b[0m", "\u200b", "\ufeff", "\u0301", "\ud800", "\x92", "\xa0", "Ã©", "â€™", "Ã\u200b©", "e", " ", "\n", "\n\n\n", "\u2028"]
LINES = [
    "Privacy Policy",
    "Page 3 of 9",
    "© 2024 Bakers",
    "  Advertisement",
    "We use cookies to bake.",
    "Read more",
    " " * 310 + "Loading...",
    "Bread is baked.",
    "",
]


def sloppy_cp1252(raw):
    return "".join(bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte) for byte in raw)


@pytest.mark.parametrize("language", FINE)
def test_text_that_is_fine_stays_as_it_is(language):
    text = FINE[language]
    assert clean(text) == text
    assert (tidy(text).text, tidy(text).changes) == (text, ())


@pytest.mark.parametrize("misread", [sloppy_cp1252, lambda raw: raw.decode("latin-1")], ids=["cp1252", "latin-1"])
@pytest.mark.parametrize("language", FINE)
def test_utf_8_that_was_read_as_western_is_mended(language, misread):
    text = FINE[language]
    broken = misread(text.encode())
    assert broken != text
    found = tidy(f"A plain line before.\n{broken}\nAnd one after.")
    assert found.text == f"A plain line before.\n{text}\nAnd one after."
    assert found.changes == ("mojibake",)


def test_what_was_misread_twice_is_mended_too():
    assert tidy(sloppy_cp1252(sloppy_cp1252("Zażółć gęślą, “jaźń”.".encode()).encode())).text == "Zażółć gęślą, “jaźń”."


def test_cp1252_quotes_that_were_read_as_latin_1_are_mended():
    assert tidy("He said “don’t” — once…".encode("cp1252").decode("latin-1")).text == "He said “don’t” — once…"


def test_mending_does_nothing_but_mend():
    text = "&lt;b&gt; “curly” ﬁne ｆｕｌｌ \u2028 a\tb"
    assert tidy(f"{text} Ã©").text == f"{text} é"


@pytest.mark.parametrize("mark", [chr(code) for code in (*range(9), 11, 12, *range(14, 32), 127, 0x200B, 0x2060, 0xFEFF, 0xE000, 0xE001)], ids=repr)
def test_what_cannot_be_seen_goes_and_is_counted(mark):
    found = tidy(f"{mark}Bre{mark}ad.{mark}")
    assert (found.text, found.changes) == ("Bread.", ("control characters and line ends",))
    assert clean(f"{mark}Bre{mark}ad.{mark}") == "Bread."


def test_tabs_and_marks_that_join_letters_stay():
    for text in ("a\tb", "a\nb", "\u0646\u0627\u0646\u200c\u0647\u0627", "👩\u200d🍳", "co\u00adop", "a\u00a0b"):
        assert tidy(text).text == text


@pytest.mark.parametrize("text", ["a\r\nb\r\nc", "a\rb\rc", "a\nb\r\nc", "a\r\x00\nb\nc"])
def test_line_ends_become_one_kind(text):
    assert tidy(text).text == clean(text) == "a\nb\nc"
    assert tidy(text).changes == ("control characters and line ends",)


@pytest.mark.parametrize("text", ["cafe\u0301", "cafe\u200b\u0301", "cafe\x00\u0301"])
def test_an_accent_joins_its_letter_whatever_stood_between(text):
    assert clean(text) == tidy(text).text == "café"


def test_a_text_of_nothing_visible_is_empty():
    for text in ("", " \n\t ", "\x00\x01\x02", "\ufeff", "\u200b\r\n\u2060", "\xa0"):
        assert clean(text) == tidy(text).text == ""


@pytest.mark.parametrize(
    "line",
    [
        "Privacy Policy",
        "* Terms of Service *",
        "We use cookies to make this page better.",
        "© 2024 The Bakers. All rights reserved.",
        "Copyright © 2019-2024 The Bakers",
        "Copyright 2024 by the bakers",
        "(c) 2024 The Bakers",
        "All rights reserved.",
        "Page 3 of 12",
        "Sent from my iPhone",
        "Subscribe to our newsletter",
        "Share on Facebook",
        "Follow us on every channel!",
        "[Skip to content]",
        "ADVERTISEMENT",
        "Read more",
    ],
)
def test_a_line_of_boilerplate_goes_as_a_whole_line_only(line):
    found = tidy(f"Bread is baked at six.\n\n{line}\n\nIt is sold at nine.")
    assert (found.text, found.changes) == ("Bread is baked at six.\n\nIt is sold at nine.", ("boilerplate",))
    inside = f"In it stood the words: {line} And nobody read them."
    assert tidy(inside).text == inside
    assert tidy(line).text == line, "never all of a text"
    assert tidy(f"{line}\n\n{line}").text == f"{line}\n\n{line}"


@pytest.mark.parametrize(
    "line",
    [
        "(c) the tenant pays the rent on the first day of the month;",
        "Copyright law protects the one who wrote it.",
        "The privacy policy of the bakery changed.",
        "Subscribe!",
        "Share the bread with all who ask.",
        "Page 3 of the ledger was gone.",
        "Read more books.",
        "Copyright is not 2024's first concern.",
        "x" * 290 + " all rights reserved",
        "Privacy policy" + "." * 300,
    ],
)
def test_a_line_that_says_something_stays(line):
    text = f"Bread is baked at six.\n{line}\nIt is sold at nine."
    assert tidy(text).text == text


def test_a_second_cleaning_finds_nothing():
    random = Random(0)
    pieces = [*FINE.values(), *NOISE, *LINES, *(sloppy_cp1252(text.encode()) for text in FINE.values())]
    for _ in range(3000):
        text = "".join(random.choice(pieces) + random.choice(["", "\n", " "]) for _ in range(random.randint(1, 8)))
        for first in (clean(text), tidy(text).text):
            assert clean(first) == first, json.dumps(text)
        again = tidy(tidy(text).text)
        assert (again.text, again.changes) == (tidy(text).text, ()), json.dumps(text)


def test_the_starter_s_documents_carry_nothing_to_clean():
    assert {document.id: tidy(document.text).changes for document in own_documents() if tidy(document.text).changes} == {}
