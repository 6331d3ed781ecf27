"""conf/draft becomes the package's own configuration and commands: with stand-ins on a CPU, as documented on a GPU."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.compose import composed
from scripts.draft import Draft
from temper import params, speculators

DRAFTS = sorted(file.stem for file in Path("conf/draft").glob("*.yaml"))
HARDWARE = sorted(file.stem for file in Path("conf/hardware").glob("*.yaml"))

ACCEPT = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
from speculators.train.config import TrainConfig
from speculators.train.config.schema import CONFIG_DESTS
import yaml
for file in sys.argv[1:]:
    groups = yaml.safe_load(open(file))["train"]
    leaves = {leaf for key, of in groups.items() for leaf in (of if isinstance(of, dict) else [key])}
    assert leaves <= CONFIG_DESTS, leaves - CONFIG_DESTS
    made = TrainConfig.resolve(["--config", file, "--data-path", "d", "--hidden-states-path", "h", "--save-path", "s"])
    assert made.flatten()["lr"] == groups["optimizer"]["lr"]
print(len(sys.argv) - 1)
"""


def settings(tmp_path: Path, *overrides: str) -> Draft:
    (tmp_path / "params.yaml").write_text(composed(list(overrides)))
    return params.load("draft", Draft, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(30, [2, 15, 27]), (32, [2, 16, 29]), (8, [2, 4, 5]), (6, [3, 4, 5]), (4, [1, 2, 3]), (2, [1]), (1, [0])],
)
def test_the_head_reads_three_layers_or_what_there_is(depth: int, expected: list[int]) -> None:
    assert speculators.layers(depth) == expected


def test_a_cpu_gets_what_needs_no_triton_and_a_gpu_what_the_package_has(tmp_path: Path) -> None:
    on_cpu, on_gpu = (
        speculators.render(settings(tmp_path, *overrides), Path("models/dpo"), 30)["train"]
        for overrides in (("hardware=cpu",), ("hardware=gpu1", "draft=eagle3-8b"))
    )
    assert (on_cpu["draft"]["draft_attn_impl"], on_cpu["loss"]["loss_implementation"]) == ("eager", "eager")
    assert on_cpu["data"]["num_workers"] == 0
    assert "draft_attn_impl" not in on_gpu["draft"]
    assert "loss_implementation" not in on_gpu["loss"]
    assert (on_gpu["draft"]["draft_vocab_size"], on_gpu["data"]["hidden_states_dtype"]) == (32000, "bfloat16")


def test_all_tokens_are_drafted_where_no_vocabulary_is_set(tmp_path: Path) -> None:
    made = speculators.render(settings(tmp_path, "draft.vocabulary=null"), Path("models/dpo"), 30)
    assert "draft_vocab_size" not in made["train"]["draft"]


def value(flags: list[str], name: str) -> Any:
    return json.loads(flags[flags.index(name) + 1])


def test_hidden_states_are_those_that_the_head_reads_and_the_last() -> None:
    for on_cpu in (True, False):
        flags = speculators.extraction(30, Path("staged"), on_cpu)
        read = value(flags, "--speculative-config")["draft_model_config"]["hf_config"]
        assert read == {"eagle_aux_hidden_state_layer_ids": [2, 15, 27, 30]}
        transfer = value(flags, "--kv-transfer-config")
        assert transfer["kv_connector_extra_config"] == {"shared_storage_path": "staged"}
        assert ("kv_connector_module_path" in transfer) == on_cpu
        assert "--no-enable-prefix-caching" in flags


def test_commands_go_on_with_what_an_earlier_try_left(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    flags = speculators.regenerate("http://127.0.0.1:1", Path("models/dpo"), Path("p.jsonl"), Path("a.jsonl"), cfg)
    assert flags[1:4] == ["-m", "speculators", "regenerate-responses"]
    assert "--resume" in flags
    assert value(flags, "--sampling-params") == {"seed": cfg.seed, "temperature": 0.0}
    assert "--no-skip-token-freq" in speculators.prepare(Path("models/dpo"), Path("a.jsonl"), Path("out"), cfg)
    assert "--fail-on-error" in speculators.generate("http://127.0.0.1:1", Path("out"), Path("hidden"), 1)


def test_vllm_is_told_how_many_hidden_states_a_head_reads_unless_it_assumes_so(tmp_path: Path) -> None:
    for read, expected in (([2, 15, 27], {}), ([1], {"num_aux_hidden_states": 1})):
        config = {"eagle_aux_hidden_state_layer_ids": read, "transformer_layer_config": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert speculators.finished(tmp_path)["transformer_layer_config"] == expected


@pytest.mark.engine
def test_every_preset_on_every_hardware_is_accepted_by_speculators(tmp_path: Path) -> None:
    files = []
    for draft, hardware in product(DRAFTS, HARDWARE):
        cfg = settings(tmp_path, f"draft={draft}", f"hardware={hardware}")
        files.append(tmp_path / f"{draft}-{hardware}.yaml")
        speculators.write(speculators.render(cfg, Path("models/dpo"), 30), files[-1])
        assert yaml.safe_load(files[-1].read_text())["train"]["optimizer"]["lr"] == cfg.learning_rate
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", ACCEPT, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(len(files))
