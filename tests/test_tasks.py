"""The table of tasks: how many wordings in which languages, the paper's own, and how tasks are looked up."""

import pytest

from docward.errors import RecipeError
from docward.tasks import SYSTEM_PROMPTS, TASKS, document_for, get_tasks, system_prompt
from docward.types import Split, Task

LANGUAGES = ("en", "de", "es", "zh")
OF_THE_PAPER = {
    "summarize": "Summarize the above article briefly in 3 sentence.",
    "translate": "Translate the above article from English to Chinese: ",
    "sentiment": "How would you describe the sentiment of this document?",
    "case": "Write the above sentence using proper case.",
    "next_sentence": "Write the next sentence.",
}
ONLY_TESTED = {"question_answering", "topic", "keywords", "title", "rewrite", "bullet_points"}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_asked_in_five_seen_and_three_unseen_ways_in_every_language(name, language):
    seen, unseen = (TASKS[name].asked(language, unseen=which) for which in (False, True))
    assert len(seen) >= 5
    assert len(unseen) >= 3
    assert all(words.strip() for words in (*seen, *unseen))
    assert len({words.casefold().strip() for words in (*seen, *unseen)}) == len(seen) + len(unseen), "all differ, the unseen ones from the seen ones too"


def test_what_is_trained_is_asked_in_27_seen_ways_in_english():
    assert {name: len(task.wordings) for name, task in TASKS.items() if task.train} == dict.fromkeys(OF_THE_PAPER, 27)


@pytest.mark.parametrize(("count", "trained"), [(1, 1), (3, 3), (4, 3), (5, 4), (27, 21)])
def test_the_last_quarter_of_the_seen_wordings_is_kept_for_validation_where_it_is_one_at_least(count, trained):
    task = Task("count_words", wordings=tuple(f"How many? {number}" for number in range(count)))
    assert task.seen_by(Split.TRAIN, "en") == range(trained)
    assert task.seen_by(Split.VALIDATION, "en") == (range(trained, count) if trained < count else range(count))
    assert task.seen_by(Split.TEST, "en") == task.seen_by(None, "en") == range(count)


def test_no_two_tasks_are_asked_in_the_same_words_and_no_language_borrows_from_another():
    asked = [words for task in TASKS.values() for language in LANGUAGES for unseen in (False, True) for words in task.asked(language, unseen=unseen)]
    assert len(set(asked)) == len(asked)
    assert {tuple(task.translations) for task in TASKS.values()} == {("de", "es", "zh")}


def test_chinese_requests_and_only_they_are_in_chinese_signs():
    for task in TASKS.values():
        for language in LANGUAGES:
            for words in (*task.asked(language), *task.asked(language, unseen=True)):
                assert any("\u4e00" <= sign <= "\u9fff" for sign in words) is (language == "zh"), words


def test_the_first_wording_of_the_paper_s_tasks_is_the_paper_s():
    assert {name: TASKS[name].wordings[0] for name in OF_THE_PAPER} == OF_THE_PAPER


def test_the_paper_s_five_are_trained_on_and_six_more_are_only_tested():
    assert {name for name, task in TASKS.items() if task.train} == set(OF_THE_PAPER)
    assert {name for name, task in TASKS.items() if not task.train} == ONLY_TESTED


def test_a_translation_is_asked_for_into_chinese_and_from_chinese_into_english():
    into = {"en": ("chinese",), "de": ("chines",), "es": ("chin",), "zh": ("英",)}
    for language, words in into.items():
        task = TASKS["translate"]
        assert all(any(word in asked.lower() for word in words) for asked in (*task.asked(language), *task.asked(language, unseen=True)))


@pytest.mark.parametrize("name", TASKS)
def test_a_language_without_wordings_is_asked_in_english(name):
    task = TASKS[name]
    assert task.asked("tlh") == task.asked("en") == task.wordings
    assert task.asked("tlh", unseen=True) == task.asked("en", unseen=True) == task.unseen


def test_tasks_are_looked_up_by_name_in_the_order_asked_for():
    assert [task.name for task in get_tasks(["title", "case"])] == ["title", "case"]
    assert get_tasks(["case"]) == [TASKS["case"]]


def test_a_table_of_one_s_own_is_the_only_one_looked_at():
    own = Task("count_words", wordings=("How many words has this?",))
    assert get_tasks(["count_words"], {own.name: own}) == [own]
    assert [task.name for task in get_tasks(["count_words", "case"], TASKS | {own.name: own})] == ["count_words", "case"]
    with pytest.raises(RecipeError, match=r"No such task: 'case'.* Known tasks: count_words\."):
        get_tasks(["case"], {own.name: own})
    with pytest.raises(RecipeError, match="count_words"):
        get_tasks(["count_words"])


def test_a_near_miss_names_the_task_that_was_meant_and_a_task_comes_once():
    with pytest.raises(RecipeError, match=r"No such task: 'sumarise' \(did you mean 'summarize'\?\)"):
        get_tasks(["sumarise", "case"])
    with pytest.raises(RecipeError, match=r"Named twice: case\."):
        get_tasks(["case", "title", "case"])


def test_only_case_is_shown_in_small_letters():
    assert {name for name in TASKS if document_for(name, "An Oak") != "An Oak"} == {"case"}
    assert document_for("case", "An Oak") == "an oak"


def test_a_system_prompt_is_given_by_name_or_in_full():
    assert {name: system_prompt(name) for name in SYSTEM_PROMPTS} == SYSTEM_PROMPTS
    assert system_prompt("none") == system_prompt("") == ""
    assert system_prompt("You are a pirate.") == "You are a pirate."
