"""params.yaml is the composition of conf/, exactly, and a wrong value is named with its place."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands.compose import composed
from temper import params


@dataclass
class Example:
    beta: float
    steps: int


@pytest.mark.parametrize("section", ["beta: 5e-7\n  steps: 2", "beta: 1\n  steps: 2"])
def test_a_section_becomes_its_dataclass(tmp_path: Path, section: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"dpo:\n  {section}\n")
    loaded = params.load("dpo", Example, file)
    assert isinstance(loaded.beta, float)
    assert loaded.steps == 2


@pytest.mark.parametrize(
    ("section", "named"),
    [("beta: 1", "steps"), ("beta: x\n  steps: 2", "x"), ("beta: 1\n  steps: 2\n  betta: 3", "betta")],
    ids=["missing", "mistyped", "unknown"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, section: str, named: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"dpo:\n  {section}\n")
    with pytest.raises(SystemExit) as error:
        params.load("dpo", Example, file)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in (str(file), "'dpo'", named, "make params"))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("tracking: mlflow\n")
    with pytest.raises(SystemExit, match="none, wandb or wandb-offline"):
        params.tracking(file)


def test_params_yaml_is_what_conf_composes_to() -> None:
    assert Path("params.yaml").read_text() == composed([])


def test_dvc_dumps_the_same_bytes(tmp_path: Path) -> None:
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(
        tmp_path / "params.yaml", str(Path("conf").resolve()), None, "config", str(tmp_path), ["dpo.beta=0.2"]
    )
    assert (tmp_path / "params.yaml").read_text() == composed(["dpo.beta=0.2"])


def test_every_option_of_every_group_composes() -> None:
    groups = [folder for folder in sorted(Path("conf").iterdir()) if folder.is_dir()]
    options = [(group.name, option.stem) for group in groups for option in sorted(group.glob("*.yaml"))]
    assert len(options) >= 18
    for group, option in options:
        composed([f"{group}={option}"])


def test_a_mistyped_override_is_one_line() -> None:
    command = [sys.executable, "-m", "commands.compose", "--check", "dpo.betta=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "betta" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_no_preset_reads_the_environment() -> None:
    for file in Path("conf").rglob("*.yaml"):
        text = file.read_text()
        assert not any(word in text for word in ("oc.env", "${now", "${hydra", "???", "_target_")), file


def test_every_experiment_says_how_to_run_it() -> None:
    for file in Path("conf/experiment").glob("*.yaml"):
        head = file.read_text().splitlines()[:2]
        assert head[0] == "# @package _global_"
        assert f"-S experiment={file.stem}" in head[1]
