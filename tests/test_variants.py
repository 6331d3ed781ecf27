"""Each variant of conf/bench starts the server that it names; one that makes no server is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from scripts.bench import Bench
from temper import envs, params, variants
from temper.speculation import Speculation
from tests.test_serve import GGUF
from tests.test_server import MODEL

RUNTIME: dict[str, Any] = {"threads": 1, "serve_memory_gb": 1, "serve_eager": True, "serve_port": None}


def shipped(name: str) -> Bench:
    settings = OmegaConf.create(composed([]))
    assert isinstance(settings, DictConfig)
    return params.fitted(settings, f"bench.{name}", Bench, "conf/")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(envs, "python", lambda env: Path(f"/{env}/python"))
    for name in ("dpo", "gptq", "awq", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"")
    return tmp_path


def command(served: Bench, models: Path, folder: str) -> str:
    endpoint = variants.endpoint(served, models / folder, models / "dpo", 17, RUNTIME)
    return " ".join(endpoint.command)


def test_every_variant_is_a_section_that_makes_a_server(models: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed([]))
    names = variants.measured(tmp_path / "params.yaml")
    assert names == ["bf16", "ngram", "eagle3", "gptq", "awq", "gguf"]
    for name in names:
        served = shipped(name)
        variants.check(served, f"bench.{name}")
        assert str(models / served.model) in command(served, models, served.model)
        assert max(served.load.concurrency) > served.sequences, "no queue is seen"


def test_vllm_gets_its_limit_and_a_draft_where_there_is_one(models: Path) -> None:
    plain, drafted = (command(shipped(name), models, "dpo") for name in ("bf16", "ngram"))
    assert "--max-num-seqs 32" in plain
    assert "speculative" not in plain
    assert "--speculative-config.method ngram" in drafted
    assert "--speculative-config.prompt_lookup_max 4" in drafted


def test_an_eagle_head_drafts_for_the_release(models: Path) -> None:
    served = shipped("eagle3")
    line = command(served, models, served.model)
    assert "--speculative-config.num_speculative_tokens 3" in line
    assert f"--model {models}/dpo" in line
    assert f"--speculative-config.model {models}/draft" in line
    assert "lookup" not in line
    assert variants.weights(served, Path("models/draft"), Path("models/dpo")).name == "dpo"


def test_llama_cpp_is_measured_without_the_gateway_as_vllm_is(models: Path) -> None:
    line = command(shipped("gguf"), models, "gguf")
    assert line.startswith("/serve/python -m temper.llama_app --bare")
    assert "--worker /quantize/python" in line


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"engine": "tgi"}, "engine 'tgi'"),
        ({"engine": "llama.cpp"}, "one request at a time"),
        ({"speculation": Speculation("medusa", 3, None, None, 4, 4, 24, 0.1)}, "speculation.method is 'medusa'"),
    ],
)
def test_what_makes_no_server_is_refused_in_one_line(changed: dict[str, Any], said: str) -> None:
    served = shipped("bf16")
    for key, value in changed.items():
        setattr(served, key, value)
    with pytest.raises(SystemExit, match=r"^bench\.bf16: .*conf/bench$") as error:
        variants.check(served, "bench.bf16")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["bf16", "gguf"])
def test_a_missing_model_is_said_with_what_writes_it(name: str, tmp_path: Path, models: Path) -> None:
    with pytest.raises(SystemExit, match=r"no model: run `make"):
        variants.endpoint(shipped(name), tmp_path / "none", tmp_path / "none", 17, RUNTIME)


MEASURE = """
import json, sys
from pathlib import Path
from omegaconf import OmegaConf
from scripts.bench import Bench
from temper import levels, load, lossless, params, variants
settings = OmegaConf.create(json.loads(sys.argv[1]))
folder, place = Path(sys.argv[2]), "bench." + sys.argv[3]
served = params.fitted(settings, place, Bench, "settings")
texts = [f"call number {number}, call number {number}, call" for number in range(9)]
rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "null"}]} for text in texts]
runtime = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True, "serve_port": None}
with variants.endpoint(served, folder, folder, 1, runtime) as server:
    found = levels.measured(server.url, folder.name, rows, served.load, 1, place)
    if served.speculation:
        chats = load.prompts(rows, 6, 1)
        sets = {"domain": chats, "generic": [[{"role": "user", "content": "a b c d e f g"}]]}
        found |= lossless.held(server.url, folder.name, sets, 24, served.speculation.tie)
    found["peak_memory_gb"] = server.peak_memory_gb()
print(json.dumps(found))
"""


def measured_of(name: str, folder: Path, **changed: Any) -> dict[str, float]:
    """A shipped variant on a tiny model, under little load."""
    settings: Any = OmegaConf.to_container(OmegaConf.create(composed([])))
    section = settings["bench"][name] | changed
    section["load"] |= {"concurrency": [1, 4], "requests": [2, 8], "arrivals": 3, "max_tokens": 12, "repeats": 2}
    line = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", MEASURE]
    given = [json.dumps({"bench": {name: section}}), str(folder), name]
    done = subprocess.run([*line, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.engine
def test_ngrams_draft_in_vllm_and_change_no_answer(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", MODEL]
    subprocess.run([*line, str(tmp_path / "model")], check=True)
    found = measured_of("ngram", tmp_path / "model", dtype="float32", sequences=2)
    assert (found["c1_requests"], found["c4_requests"], found["open70_requests"]) == (4, 16, 6)
    # Four callers of a server that takes two: some wait.
    assert found["c4_queue_mean_ms"] > found["c1_queue_mean_ms"] >= 0
    for text in ("domain", "generic"):
        assert 0 <= found[f"{text}_acceptance"] <= 1 <= found[f"{text}_tokens_per_step"] <= 4
    assert found["lossless"] == 1
    assert 0 < found["lossless_tokens"] <= 7 * 24
    assert 0.1 < found["peak_memory_gb"] < 20


@pytest.mark.engine
def test_llama_cpp_is_measured_by_the_same_client(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    line = [sys.executable, "-m", "temper.envs", "run", "quantize", "-c", GGUF]
    subprocess.run([*line, str(tmp_path / "gguf/model.gguf")], check=True)
    found = measured_of("gguf", tmp_path / "gguf")
    assert (found["c1_requests"], found["c4_requests"]) == (4, 16)
    assert found["c4_tokens_per_second"] > 0
    # One answer at a time: three of four callers wait.
    assert found["c4_queue_mean_ms"] > found["c1_queue_mean_ms"]
    assert found["c4_queue_p99_below_ms"] >= 10
