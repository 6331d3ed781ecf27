"""Every model on every hardware: composed here, and held against the real trainers' own schemas, GPU or not."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from commands.compose import composed
from scripts.base import Base
from temper import params

MODELS = sorted(file.stem for file in Path("conf/model").glob("*.yaml"))
HARDWARE = sorted(file.stem for file in Path("conf/hardware").glob("*.yaml"))
METHODS = sorted(file.stem for file in Path("conf/sft").glob("*.yaml"))
GPUS = [name for name in HARDWARE if name.startswith("gpu")]
# What wants a machine of its own.
MACHINES = {"qlora": GPUS, "unsloth": ["gpu1"], "full-fp8": ["gpu8-fsdp2"]}

VALIDATE = """
import json, sys
from pathlib import Path
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
accepted = 0
for file in map(Path, sys.argv[1:]):
    processes = params.runtime(file)["processes"]
    sft, start = params.load("sft", Sft, file), Path("models/sft")
    axolotl.check(axolotl.render(sft, processes), sft.hardware)
    trl.check(preference_trainers.render_dpo(params.load("dpo", Dpo, file), start, processes))
    answers = [{"label": True}, {"label": False}]
    trl.check(preference_trainers.render_kto(params.load("kto", Kto, file), start, processes, answers))
    trl.check(preference_trainers.render_orpo(params.load("orpo", Orpo, file), start, processes))
    trl.check(reward_model.render(params.load("reward", Reward, file), start, processes))
    trl.check(ppo.render(params.load("ppo", Ppo, file), start))
    accepted += 1
print(json.dumps({"accepted": accepted}))
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


@pytest.mark.engine
def test_every_model_and_method_on_every_hardware_is_accepted_by_axolotl_and_trl(tmp_path: Path) -> None:
    chosen = [("model", *pair) for pair in product(MODELS, HARDWARE)]
    chosen += [("sft", method, name) for method in METHODS for name in MACHINES.get(method, HARDWARE)]
    files = []
    for group, option, hardware in chosen:
        file = tmp_path / f"{group}-{option}-{hardware}.yaml"
        file.write_text(composed([f"{group}={option}", f"hardware={hardware}"]))
        files.append(str(file))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", VALIDATE, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == {"accepted": len(files)}
