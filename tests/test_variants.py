"""Each variant of conf/bench starts the server that it names; one that makes no server is refused."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from scripts.bench import Bench
from temper import envs, params, variants
from temper.variants import Speculation

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
    return " ".join(endpoint._command)


def test_every_variant_is_a_section_that_makes_a_server(models: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed([]))
    names = variants.measured(tmp_path / "params.yaml")
    assert names == ["bf16", "ngram", "gptq", "awq", "gguf"]
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
    served = shipped("ngram")
    served.speculation = Speculation("eagle3", 3, None, None, checked=4, tie=0.25)
    line = command(served, models, "draft")
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
        ({"speculation": Speculation("medusa", 3, None, None, 4, 0.1)}, "speculation 'medusa'"),
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
