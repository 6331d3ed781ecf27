"""Write what serves the released model: values of deploy/chart, settings of deploy/compose.yaml and deploy/temper.service.

    python -m commands.deploy [overrides of conf/]

It goes to deploy/release/, which git ignores: a commit cannot hold its own hash. The model is the one that dvc.lock of that commit
has; its memory is what `make plan` counts.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from omegaconf import DictConfig

from commands.compose import composed
from commands.plan import ERROR, GB, TOO_MUCH, word
from temper import envs, gate, memory, params, plan, retention, server, speculation
from temper.plan import Estimate, Run

TARGET = Path("deploy/release")
TRACKED = ("dvc.lock", "params.yaml", ".dvc/config")  # that a cluster reads of the commit
MODELS = Path("/var/lib/temper/models")  # in the chart's containers, in compose's, and on a host under systemd
DRAIN_SECONDS = 120  # that answers begun may take when the server is asked to end
QUANTS = ("bf16", "gptq", "awq")  # that vLLM serves; llama.cpp serves GGUF
STORED = memory.WIDTHS["bf16"]  # bytes a weight as trained


@dataclass
class Deploy:
    name: str
    """By which callers ask for the model."""
    repository: str | None
    """Git address that a cluster clones; null takes that of the remote `origin`."""
    quant: str
    draft: str | None
    """The folder under models/ of an EAGLE-3 head."""
    draft_tokens: int
    devices: int
    """GPUs of a replica."""
    sequences: int
    """Requests that a replica answers at a time."""
    queued: int
    """Requests that wait there at most."""
    shared_memory_gb: int
    images: dict[str, str]


@dataclass(frozen=True)
class Out:
    path: str
    md5: str
    """DVC's, of a folder."""
    size: int
    folder: str
    """Where it is served from, named by its hash: two releases share a volume."""

    def entry(self) -> dict[str, str]:
        return {"path": self.path, "md5": self.md5, "folder": self.folder}


def main(overrides: list[str]) -> None:
    run = plan.prepared(composed(overrides))
    cfg = params.fitted(run.settings, "deploy", Deploy, "conf/")
    revision = committed()
    gate.require("make deploy")
    written = values(run, cfg, revision)
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "values.yaml").write_text(yaml.safe_dump(written, sort_keys=False, width=1000), encoding="utf-8")
    (TARGET / "temper.env").write_text(environment(written), encoding="utf-8")
    say(written)


def values(run: Run, cfg: Deploy, revision: str) -> dict[str, Any]:
    """What deploy/chart/values.yaml leaves to the release."""
    model, draft = outs(cfg, str(run.settings.recipe.release))
    every = [model, *([draft] if draft else [])]
    return {
        "model": {
            "repository": repository(cfg),
            "revision": revision,
            "release": str(run.settings.recipe.release),
            "quant": cfg.quant,
            **model.entry(),
        },
        "draft": draft.entry() if draft else None,
        "engine": {
            "image": tagged(cfg.images["gpu" if run.has_gpus else "cpu"]),
            "arguments": arguments(run.settings, cfg, model, draft),
            "sequences": cfg.sequences,
            "startupSeconds": int(server.START_SECONDS),
            "drainSeconds": DRAIN_SECONDS,
            "environment": {} if run.has_gpus else on_cpu(run.threads),
        },
        "fetch": {"image": cfg.images["fetch"]},
        "resources": resources(run, cfg, every),
    }


def outs(cfg: Deploy, release: str) -> tuple[Out, Out | None]:
    """The model and its draft, as dvc.lock has them."""
    if cfg.quant not in QUANTS:
        raise SystemExit(f"deploy.quant: '{cfg.quant}': the chart serves with vLLM: choose one of {', '.join(QUANTS)}")
    model = locked(release if cfg.quant == "bf16" else cfg.quant, cfg.name)
    if cfg.quant != "bf16":
        retention.require_released(cfg.quant)
    return model, locked(cfg.draft, "draft") if cfg.draft else None


def locked(name: str, served: str) -> Out:
    """models/<name> of dvc.lock, served from a folder named `served`."""
    path = f"models/{name}"
    found = [out for stage in gate.locked().values() for out in stage.get("outs", []) if out["path"] == path]
    if not found:
        raise SystemExit(f"{gate.LOCK}: no out {path}: run `make repro`, or correct recipe and deploy in conf/")
    md5 = str(found[0]["md5"])
    return Out(path, md5, int(found[0]["size"]), str(MODELS / md5[:12] / served))


def committed() -> str:
    """HEAD, which must have the lock that the release is read from."""
    if edited := git("status", "--porcelain", "--", *TRACKED).split("\n")[0]:
        raise SystemExit(
            f"{edited[3:]}: not as HEAD has it, which is what a cluster fetches: commit it, then `make deploy`"
        )
    return git("rev-parse", "HEAD").strip()


def repository(cfg: Deploy) -> str:
    """The address to clone, without the name and the token that a remote's may carry."""
    address = cfg.repository or git("config", "--default", "", "remote.origin.url").strip()
    if not address:
        raise SystemExit(
            "deploy.repository: null, and git has no remote `origin`: name the address that your cluster clones"
        )
    return without_login(address)


def without_login(address: str) -> str:
    """An address of git without the name and the token that it may carry."""
    parts = urlsplit(address)
    return (
        urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        if parts.scheme.startswith("http")
        else address
    )


def remote() -> str:
    """DVC's default remote, as the commit has it; empty where it has none. Git's own reader takes no `['remote "name"']`."""
    config = ConfigParser(interpolation=None)
    config.read(".dvc/config", encoding="utf-8")
    return config.get("core", "remote", fallback="")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"git {arguments[0]}: {' '.join(done.stderr.split())}: run `make deploy` in a clone with a commit"
        )
    return done.stdout


def tagged(image: str) -> str:
    """`image` with the version of vLLM that evaluated the model, unless it names one itself."""
    if ":" in image.rpartition("/")[2] or "@" in image:
        return image
    lock = envs.REQUIREMENTS / "serve.txt"
    found = re.search(r"^vllm(?:-cpu)?==([\d.]+)", lock.read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"requirements/{lock.name}: locks no vLLM: give the images of conf/deploy a tag")
    return f"{image}:v{found[1]}"


def arguments(settings: DictConfig, cfg: Deploy, model: Out, draft: Out | None) -> list[str]:
    """vLLM's: those that `bench` measured it with, then its limits and the draft."""
    runtime, measured = settings.hardware.runtime, settings.bench.bf16
    limits = {"--max-num-seqs": cfg.sequences, "--max-num-queued-reqs": cfg.sequences + cfg.queued}
    if cfg.devices > 1:
        limits["--tensor-parallel-size"] = cfg.devices
    found = server.arguments(Path(model.folder), measured.dtype, measured.seed, runtime)
    found += [part for name, value in limits.items() for part in (name, str(value))]
    return found + (drafting(draft, cfg, str(settings.hardware.name)) if draft else [])


def drafting(draft: Out, cfg: Deploy, preset: str) -> list[str]:
    """Speculation, off at batch sizes where `bench` saw it serve slower on this preset; exits where that is all of them.

    In vLLM's dotted form of its JSON: neither compose nor systemd has to carry quotes.
    """
    fields = speculation.eagle3(Path(draft.folder), cfg.draft_tokens)
    found = speculation.measured(speculation.EAGLE3) if preset == params.value("hardware.name") else []
    if found and not any(verdict.pays for verdict in found):
        raise SystemExit(
            f"deploy.draft: slower than no draft at every concurrency measured ({speculation.told(found)}): set it to null"
        )
    if not all(verdict.pays for verdict in found):
        ranges = speculation.schedule(found, cfg.draft_tokens, cfg.sequences)
        fields["num_speculative_tokens_per_batch_size"] = json.dumps(ranges, separators=(",", ":"))
    return speculation.dotted(fields)


def on_cpu(threads: int) -> dict[str, str]:
    """OpenMP on the CPUs that the container has: vLLM's own choice pins threads to a machine's first ones."""
    return {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def resources(run: Run, cfg: Deploy, every: list[Out]) -> dict[str, Any]:
    """Of a replica; exits when it is too much for its devices."""
    if cfg.devices < 1 or (cfg.devices > 1 and not run.has_gpus):
        raise SystemExit(
            f"deploy.devices: {cfg.devices}: GPUs of a replica, or 1 for hardware=cpu: correct conf/deploy"
        )
    counted = serving(run, every, cfg.devices)
    if word(run, counted) == TOO_MUCH:
        raise SystemExit(
            f"deploy: a replica takes {counted.peak / GB:.1f} GB of each {run.device.name}, which has {run.capacity / GB:.0f}: "
            "raise deploy.devices, take a quant, or lower hardware.runtime.serve_memory_gb"
        )
    return {
        "gpus": cfg.devices if run.has_gpus else 0,
        "cpus": run.threads,
        "memory": gibibytes(host(run, counted, cfg.devices) + cfg.shared_memory_gb * plan.GIB),
        "disk": gibibytes(size(every)),
        "sharedMemory": f"{cfg.shared_memory_gb}Gi",
    }


def serving(run: Run, every: list[Out], devices: int) -> Estimate:
    """What `make plan` counts for vLLM, with the weights as they lie on disk, each device with its share."""
    counted = plan.evaluate(run, run.settings.recipe.release)
    wider = memory.WIDTHS[plan.DTYPES[run.settings.bench.bf16.dtype]] / STORED
    return replace(counted, memory=counted.memory | {"weights": size(every) * wider / devices})


def host(run: Run, counted: Estimate, devices: int) -> float:
    """Bytes of a replica's memory outside of its GPUs, through which the weights pass; without GPUs all that it takes."""
    if not run.has_gpus:
        return counted.peak
    processes = run.settings.plan.devices.cpu.serve_gb * GB
    return float(counted.memory["weights"] * devices + processes)


def size(every: Iterable[Out]) -> int:
    return sum(out.size for out in every)


def gibibytes(held: float) -> str:
    """With the margin that `make plan` has."""
    return f"{math.ceil(held * (1 + ERROR) / plan.GIB)}Gi"


def environment(written: dict[str, Any]) -> str:
    """temper.env: what compose fills in and systemd reads, so no value holds a quote."""
    model, engine, held = (written[key] for key in ("model", "engine", "resources"))
    fetched = [model, *([written["draft"]] if written["draft"] else [])]
    lines = {
        "TEMPER_REPOSITORY": model["repository"],
        "TEMPER_REVISION": model["revision"],
        "TEMPER_FETCH": " ".join(out[key] for out in fetched for key in ("path", "md5", "folder")),
        "TEMPER_FETCH_IMAGE": written["fetch"]["image"],
        "TEMPER_ENGINE_IMAGE": engine["image"],
        "TEMPER_ARGUMENTS": " ".join(engine["arguments"]),
        "TEMPER_STARTUP_SECONDS": engine["startupSeconds"],
        "TEMPER_DRAIN_SECONDS": engine["drainSeconds"],
        "TEMPER_MEMORY": held["memory"].replace("Gi", "g"),
        "TEMPER_SHARED_MEMORY": held["sharedMemory"].replace("Gi", "g"),
        "TEMPER_GPUS": held["gpus"],
    } | engine["environment"]
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def say(written: dict[str, Any]) -> None:
    """What was written, what is missing before it can be fetched, and the commands that take it."""
    model, held = written["model"], written["resources"]
    what = f"{model['path']} ({model['quant']}, {model['md5'][:12]}) of {model['revision'][:12]}"
    print(f"{TARGET}: {what}; a replica takes {held['memory']} and {held['gpus'] or 'no'} GPU")
    if not remote():
        print("  .dvc/config names no remote to fetch from: `dvc remote add --default`, commit it, `dvc push`")
    files = ["compose.yaml", *(["compose.gpu.yaml"] if held["gpus"] else [])]
    chosen = " ".join(f"--file deploy/{name}" for name in files)
    print(f"  helm upgrade --install {Path(model['folder']).name} deploy/chart --values {TARGET}/values.yaml")
    print(f"  docker compose --env-file {TARGET}/temper.env {chosen} up --build --detach")


if __name__ == "__main__":
    main(sys.argv[1:])
