from __future__ import annotations

import pytest

from docward.errors import RunError
from docward.evaluation.generating import Prompt, generate
from docward.models import Loaded
from docward.serving.exporting import export
from tiny import adapted


def replies(loaded: Loaded) -> list[str]:
    texts = ["The bakery opens at eight. It sells bread and cake.", "Our club meets on Monday. Bring a chair."]
    asked = [Prompt(f"{place}{ask}", text, ask) for place, text in enumerate(texts) for ask in ("Summarize this text.", "Write the next sentence.")]
    return [one.text for batch in generate(loaded, asked, max_new_tokens=8, share=False) for one in batch]


def test_the_exported_model_gives_the_replies_of_base_and_adapter_in_plain_transformers(real, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with_adapter = adapted("smollm2-135m", tmp_path / "run")
    folder = export(tmp_path / "run", tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = Loaded("plain", model, AutoTokenizer.from_pretrained(folder), "plain")
    found = replies(plain)
    assert found == replies(with_adapter)
    assert found != replies(real), "the adapter must change something, or this shows nothing"


def test_the_model_card_carries_the_measured_rates(tiny_folder, tmp_path):
    adapted(str(tiny_folder), tmp_path / "run")
    card = (export(tmp_path / "run", tmp_path / "exported") / "README.md").read_text()
    assert "90.0 (59.6 to 98.2)" in card
    assert "10 malicious" in card
    assert "not measured" in card  # the sets that were not


def test_an_export_never_overwrites(tiny_folder, tmp_path):
    adapted(str(tiny_folder), tmp_path / "run")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match="not an empty folder"):
        export(tmp_path / "run", tmp_path / "exported")
    assert (tmp_path / "exported" / "mine.txt").read_text() == "keep me"


def test_a_run_without_an_adapter_says_how_to_make_one(tmp_path):
    with pytest.raises(RunError, match="docward run RECIPE"):
        export(tmp_path, tmp_path / "exported")
