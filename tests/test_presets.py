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

VALIDATE = """
import json, sys
from pathlib import Path
from scripts.dpo import Dpo
from scripts.sft import Sft
from temper import axolotl, params, training, trl

training.prepare()
accepted = 0
for file in map(Path, sys.argv[1:]):
    processes = params.runtime(file)["processes"]
    sft, dpo = params.load("sft", Sft, file), params.load("dpo", Dpo, file)
    axolotl.check(axolotl.render(sft, processes), sft.hardware)
    trl.check(trl.render(dpo, processes))
    accepted += 1
print(json.dumps({"accepted": accepted}))
"""


def test_there_are_presets_from_laptop_to_cluster() -> None:
    assert MODELS == ["gemma3-12b", "llama3.1-8b", "qwen3-14b", "qwen3-8b", "smollm2-135m", "tiny"]
    assert HARDWARE == ["cpu", "gpu1", "gpu8"]


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
def test_every_model_on_every_hardware_is_accepted_by_axolotl_and_trl(tmp_path: Path) -> None:
    files = []
    for model, hardware in product(MODELS, HARDWARE):
        file = tmp_path / f"{model}-{hardware}.yaml"
        file.write_text(composed([f"model={model}", f"hardware={hardware}"]))
        files.append(str(file))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", VALIDATE, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == {"accepted": len(MODELS) * len(HARDWARE)}
