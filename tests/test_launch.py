"""Jobs on one node or several: what is written for each scheduler, and two nodes that train together over the loopback."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import launch
from commands.compose import composed
from tests.test_trl import HEAD

ROOT = Path(__file__).resolve().parent.parent
TWO = ["hardware=gpu8", "hardware.runtime.nodes=2", "model=llama3.1-8b"]
COMPOSE = "python -m commands.compose hardware=gpu8 hardware.runtime.nodes=2 model=llama3.1-8b"

TRAIN = (
    HEAD
    + """
from scripts.dpo import Dpo
from temper import launcher

if not Path("models").exists():
    save("sft")
    records.write("data/preferences.jsonl", map(pair, range(20)))
processes = launcher.processes()
config = preference_trainers.render_dpo(params.load("dpo", Dpo), Path("models/sft"), processes)
scratch = Path(sys.argv[2]).absolute()
scratch.mkdir()
log = trl.train(config, scratch, None, [], processes)
print("FOUND", json.dumps([entry["loss"] for entry in log if "loss" in entry]))
"""
)


def options(text: str) -> dict[str, str]:
    """What the #SBATCH lines of a job ask for."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))


def documents(*overrides: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(launch.job("kubernetes", list(overrides))))


@pytest.mark.parametrize("kind", ["slurm", "torchrun"])
@pytest.mark.parametrize("overrides", [[], ["hardware=gpu8"], TWO])
def test_scripts_parse(tmp_path: Path, kind: str, overrides: list[str]) -> None:
    (tmp_path / "job.sh").write_text(launch.job(kind, overrides))
    checked = subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_slurm_is_asked_for_what_the_hardware_has() -> None:
    text = launch.job("slurm", TWO)
    assert text.startswith("#!/bin/bash\n")
    asked = options(text)
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"], asked["mem"]) == ("2", "8", "1", "256G")
    # sbatch stops reading options at the first command.
    assert text.index("set -euo") > text.rindex("#SBATCH")
    assert "PET_RDZV_ENDPOINT=$(scontrol show hostnames" in text
    assert "gpus-per-node" not in options(launch.job("slurm", []))


@pytest.mark.parametrize("kind", launch.KINDS)
def test_the_first_node_runs_the_graph_and_the_others_join(kind: str) -> None:
    several, one = launch.job(kind, TWO), launch.job(kind, ["hardware=gpu8"])
    for text in (several, one):
        assert re.search(r"^\s*make repro$", text, re.MULTILINE)
    assert COMPOSE in several
    assert several.index("temper.launcher\n") < several.index(COMPOSE), "the others never get to the graph"
    assert "PET_RDZV_ID" in several
    assert "launcher" not in one
    assert "PET_" not in one


def test_overrides_reach_the_shell_as_they_are() -> None:
    text = launch.job("torchrun", ["sft.lora.targets=[q_proj, v_proj]"])
    assert "commands.compose 'sft.lora.targets=[q_proj, v_proj]'\n" in text


def test_kubernetes_starts_as_many_pods_as_nodes_and_names_the_first() -> None:
    service, job = documents(*TWO)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["PET_RDZV_ENDPOINT"] == "temper-0.temper:29400"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (alone,) = documents("hardware=gpu1")
    assert alone["spec"]["completions"] == 1


@pytest.mark.parametrize("overrides", [[], ["hardware=gpu1"], TWO])
def test_kubernetes_accepts_it(overrides: list[str]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for document in documents(*overrides):
        validator.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("overrides", [[], ["hardware=gpu1"], TWO])
def test_skypilot_accepts_it(overrides: list[str]) -> None:
    task = yaml.safe_load(launch.job("skypilot", overrides))
    gpus = task["resources"].get("accelerators")
    nodes = task["num_nodes"]
    assert (nodes, gpus) == {0: (1, None), 1: (1, "L4:1"), 3: (2, "H100:8")}[len(overrides)]
    # What is synchronized to each node is no folder that they share.
    assert ("workdir" in task) == (nodes == 1)
    assert ("volumes" in task) == (nodes > 1)
    sky = pytest.importorskip("sky", reason="pip install skypilot")
    assert sky.Task.from_yaml_config(task).num_nodes == nodes


def test_an_unknown_scheduler_is_one_line_with_those_that_are_known() -> None:
    for arguments in ([], ["pbs"]):
        with pytest.raises(SystemExit, match=r"slurm, skypilot, kubernetes, torchrun") as error:
            launch.main(arguments)
        assert "\n" not in str(error.value)


def test_several_nodes_without_a_job_say_how_to_start_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed(["hardware.runtime.nodes=2"]))
    result = at_node(tmp_path, ["-c", "from temper import launcher; launcher.run(['-m', 'json'], 'sft')"], {})
    said = result.communicate()[1]
    assert result.returncode == 1
    assert re.search(r"^PET_RDZV_ENDPOINT is not set, .*commands\.launch.*$", said)


@pytest.mark.engine
def test_two_nodes_train_as_one_process_does(tmp_path: Path) -> None:
    steps = ["dpo.global_batch=4", "dpo.micro_batch=1", "dpo.max_steps=3", "dpo.epochs=1", "dpo.max_length=200"]
    losses = {}
    for nodes in (1, 2):
        (tmp_path / "params.yaml").write_text(composed([*steps, f"hardware.runtime.nodes={nodes}"]))
        job = {"PET_RDZV_ENDPOINT": f"127.0.0.1:{free_port()}", "PET_RDZV_ID": f"job-{nodes}"}
        others = [at_node(tmp_path, ["-m", "temper.launcher"], job) for _ in range(nodes - 1)]
        first = at_node(tmp_path, ["-c", TRAIN, str(tmp_path), f"scratch-{nodes}"], job)
        said, complained = first.communicate(timeout=300)
        assert first.returncode == 0, complained[-3000:]
        losses[nodes] = json.loads(said[said.index("FOUND") + len("FOUND") :])
        assert at_node(tmp_path, ["-m", "temper.launcher", "done"], job).wait(timeout=60) == 0
        assert [other.wait(timeout=60) for other in others] == [0] * len(others)
    assert len(losses[2]) == 3
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)


def at_node(folder: Path, arguments: list[str], job: dict[str, str]) -> "subprocess.Popen[str]":
    """What one node of a job runs, in the training environment where it is built."""
    from temper import envs

    python = envs.python("train") if job else Path(sys.executable)
    environment = os.environ | job | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(python), *arguments], cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
