"""Write a job that runs the graph on one node or several, from the same conf/ as every other run.

    python -m commands.launch slurm|skypilot|kubernetes|torchrun [overrides] > job

With hardware.runtime.nodes=2 or more, the first node runs `make repro` and the others join its training (temper/launcher.py).
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from temper import params

TEMPLATES = Path(__file__).parent.parent / "temper/templates/launch"
KINDS = ("slurm", "skypilot", "kubernetes", "torchrun")


@dataclass
class Launch:
    name: str
    hours: int
    """After which Slurm ends the job."""
    port: int
    """Of the first node, where the others meet it."""
    folder: str
    """The repository, on a file system that all nodes share."""
    image: str
    """Of a container with Python 3.11, git, make and a C++ compiler."""
    partition: str
    """Slurm's."""
    accelerators: dict[str, str]
    """SkyPilot's names, by hardware.name."""
    volume: str
    """SkyPilot's."""
    claim: str
    """Kubernetes' PersistentVolumeClaim."""


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in KINDS:
        raise SystemExit(f"commands.launch: say for whom the job is, {', '.join(KINDS)}, then overrides of conf/")
    print(job(arguments[0], arguments[1:]), end="")


def job(kind: str, overrides: list[str]) -> str:
    """The job's text."""
    settings = OmegaConf.create(composed(overrides))
    assert isinstance(settings, DictConfig)
    cfg, machine = params.fitted(settings, "launch", Launch, "conf/"), settings.hardware
    runtime = params.fitted(settings, "hardware.runtime", params.Runtime, "conf/")
    on_cpu = machine.name == "cpu"
    if kind == "skypilot" and not on_cpu and machine.name not in cfg.accelerators:
        raise SystemExit(
            f"launch.accelerators: none for hardware.name '{machine.name}': add SkyPilot's name for its GPU"
        )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(f"{kind}.j2").render(
        vars(cfg),
        nodes=runtime.nodes,
        gpus=0 if on_cpu else runtime.processes,
        cpus=runtime.processes * runtime.threads,
        memory=runtime.min_memory_gb,
        disk=runtime.min_disk_gb,
        accelerator=cfg.accelerators.get(machine.name),
        mount=str(Path(cfg.folder).parent),
        overrides="".join(f" {shlex.quote(override)}" for override in overrides),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
