"""Every model on every hardware: composed here, and held against the real trainers' own schemas, GPU or not."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts.base import Base
from temper import params, training

MODELS = sorted(file.stem for file in Path("conf/model").glob("*.yaml"))
HARDWARE = sorted(file.stem for file in Path("conf/hardware").glob("*.yaml"))
METHODS = sorted(file.stem for file in Path("conf/sft").glob("*.yaml"))
GPUS = [name for name in HARDWARE if name.startswith("gpu")]
# What wants a machine of its own.
MACHINES = {"qlora": GPUS, "unsloth": ["gpu1"], "full-fp8": ["gpu8-fsdp2"]}
ATTENTIONS = {attention: HARDWARE if attention in training.ON_CPU else GPUS for attention in training.ATTENTIONS}
SPOILT: dict[str, tuple[str, str, Any]] = {
    "key": ("", "lerning_rate", 1e-3),
    "key of FSDP's": ("fsdp_config", "reshard_after_foward", True),
    "key of a data set's": ("test_datasets", "roles_to_trian", ["assistant"]),
    "optimizer": ("", "optimizer", "adamw_tourch"),
    "value": ("", "sequence_len", "long"),
}
"""By what is wrong in a configuration: the section that holds it, none at the top, its key and its value."""
REFUSALS = {
    "key": "axolotl: it has no lerning_rate: correct temper/axolotl.py for the locked version",
    "key of FSDP's": "axolotl: it has no reshard_after_foward: correct temper/axolotl.py for the locked version",
    "key of a data set's": "axolotl: it has no roles_to_trian: correct temper/axolotl.py for the locked version",
    "optimizer": "sft.optimizer is 'adamw_tourch', expected adamw_torch, ",
    "value": "axolotl refuses the configuration of sft: ",
}

VALIDATE = """
import json, sys
from pathlib import Path
import tests.settings_once
from scripts.dpo import Dpo
from scripts.kto import Kto
from scripts.orpo import Orpo
from scripts.ppo import Ppo
from scripts.reward import Reward
from scripts.sft import Sft
from temper import axolotl, params, ppo, preference_trainers, reward_model, sharding, training, trl

training.prepare()
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

for name in sharding.ZERO:
    DeepSpeedZeroConfig(**sharding.zero(name)["zero_optimization"])  # refuses keys that it does not know
spoilt, *files = sys.argv[1:]
accepted, refused = 0, {}
for file in map(Path, files):
    processes = params.runtime(file)["processes"]
    sft, start = params.load("sft", Sft, file), Path("models/sft")
    config = axolotl.render(sft, processes)
    axolotl.check(config, sft.hardware)
    if "fsdp_config" in config:
        sharded = config, sft.hardware
    trl.check(preference_trainers.render_dpo(params.load("dpo", Dpo, file), start, processes))
    answers = [{"label": True}, {"label": False}]
    trl.check(preference_trainers.render_kto(params.load("kto", Kto, file), start, processes, answers))
    trl.check(preference_trainers.render_orpo(params.load("orpo", Orpo, file), start, processes))
    trl.check(reward_model.render(params.load("reward", Reward, file), start, processes))
    trl.check(ppo.render(params.load("ppo", Ppo, file), start))
    accepted += 1

config, machine = sharded
for name, (section, key, value) in json.loads(spoilt).items():
    change = {key: value}
    if section:
        held = config[section]
        change = {section: [part | change for part in held] if isinstance(held, list) else held | change}
    try:
        axolotl.check(config | change, machine)
    except SystemExit as error:
        refused[name] = str(error)
print(json.dumps({"accepted": accepted, "refused": refused}))
"""


def test_there_are_presets_from_laptop_to_cluster() -> None:
    assert MODELS == ["gemma3-12b", "llama3.1-8b", "qwen3-14b", "qwen3-8b", "smollm2-135m", "tiny"]
    assert HARDWARE == ["cpu", "cpu-bf16", "gpu1", "gpu8", "gpu8-fsdp2", "gpu8-offload"]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_pinned(tmp_path: Path, model: str) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"model={model}"]))
    base = params.load("base", Base, tmp_path / "params.yaml")
    if base.source.kind == "hub":
        assert base.source.revision is not None
        assert len(base.source.revision) == 40, "a commit; a branch moves"
        assert int(base.source.revision, 16)
    else:
        assert base.source.sha256 is not None
        assert len(base.source.sha256) == 64


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How many configurations there are, how many of them were accepted, and what was said of SPOILT, in one process."""
    folder = tmp_path_factory.mktemp("presets")
    chosen = [("model", *pair) for pair in product(MODELS, HARDWARE)]
    chosen += [("sft", method, name) for method in METHODS for name in MACHINES.get(method, HARDWARE)]
    chosen += [("hardware.attention", kind, name) for kind, names in ATTENTIONS.items() for name in names]
    files = []
    for group, option, hardware in chosen:
        file = folder / f"{group}-{option}-{hardware}.yaml"
        file.write_text(composed([f"{group}={option}", f"hardware={hardware}"]))
        files.append(str(file))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", VALIDATE, json.dumps(SPOILT), *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"asked": len(files)}


@pytest.mark.engine
def test_every_model_method_and_attention_on_every_hardware_is_accepted_by_axolotl_and_trl(
    validated: dict[str, Any],
) -> None:
    assert validated["accepted"] == validated["asked"]


@pytest.mark.engine
@pytest.mark.parametrize("wrong", SPOILT)
def test_what_axolotl_does_not_know_is_one_line(validated: dict[str, Any], wrong: str) -> None:
    said = validated["refused"].get(wrong, "accepted")
    assert said.startswith(REFUSALS[wrong])
    assert "\n" not in said
