"""Write what serves the released model: values of deploy/chart, settings of deploy/compose.yaml and deploy/temper.service.

    python -m commands.deploy [overrides of conf/]

It goes to deploy/release/, which git ignores: a commit cannot hold its own hash. The model is the one that dvc.lock of that commit
has; its memory is what `make plan` counts. What serves it is what `make serve` starts, with its guard, limits and log, in the image
of deploy/Dockerfile: commands.serve reads there what is written here.
"""

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from configparser import ConfigParser
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from omegaconf import OmegaConf

from commands import serve
from commands.compose import composed
from commands.plan import ERROR, GB, TOO_MUCH, word
from temper import drafting, envs, gate, memory, params, plan, recipe, retention, server, serving, speculation
from temper.plan import Estimate, Run
from temper.serving import Serve

TARGET = Path("deploy/release")
SETTINGS = "server.yaml"
TRACKED = ("dvc.lock", "params.yaml", ".dvc/config")  # that a cluster reads of the commit
BUILT = ("temper", "commands", "scripts", "requirements", "deploy/Dockerfile")  # that the image is made of
MODELS = Path("/var/lib/temper/models")  # in the chart's containers, in compose's, and on a host under systemd
LOGS = Path("/var/log/temper")
PORT = 8000
KEY = "TEMPER_API_KEY"  # the variable with the key that callers send
ROUTED_SECONDS = 10  # in which routers learn that a replica goes, before it is asked to end
SCRUBBER = 1.0 * GB  # of a replica's memory, for the process that scrubs the log
QUANTS = ("bf16", "gptq", "awq")  # that vLLM serves; llama.cpp serves GGUF
STORED = memory.BF16  # bytes a weight as trained
# By these hosts' addresses for ssh, whose paths are those of https.
SSH = re.compile(r"^(?:git@(?=[^/]+:)|ssh://git@(?=[^:]+$))(github\.com|gitlab\.com)[:/]/?(.+)")


@dataclass
class Deploy:
    repository: str | None
    """Git address that a cluster clones; null takes that of the remote `origin`."""
    quant: str
    devices: int
    """GPUs of a replica."""
    drain_seconds: int
    """In the place of serve.drain_seconds."""
    api_key: bool
    """Whether callers send a key, that of the variable KEY."""
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


@dataclass(frozen=True)
class Outs:
    """What a replica fetches."""

    model: Out
    draft: Out | None
    guard: Out | None
    """The classifier of serve.guard."""

    def every(self) -> list[Out]:
        return [out for out in (self.model, self.draft, self.guard) if out]


def main(overrides: list[str]) -> None:
    run = plan.prepared(composed(overrides))
    cfg = params.fitted(run.settings, "deploy", Deploy, "conf/")
    revision = committed()
    gate.require("make deploy")
    written = values(run, cfg, revision)
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "values.yaml").write_text(dumped(written), encoding="utf-8")
    (TARGET / SETTINGS).write_text(written["server"]["settings"], encoding="utf-8")
    (TARGET / "temper.env").write_text(environment(written), encoding="utf-8")
    say(written, params.fitted(run.settings, "serve", Serve, "conf/"))


def values(run: Run, cfg: Deploy, revision: str) -> dict[str, Any]:
    """What deploy/chart/values.yaml leaves to the release."""
    told = params.fitted(run.settings, "serve", Serve, "conf/")
    check(told, cfg)
    found = outs(run, cfg, told)
    engine = tagged(cfg.images["gpu" if run.has_gpus else "cpu"], engine_version)
    return {
        "model": {
            "repository": repository(cfg),
            "revision": revision,
            "release": str(run.settings.recipe.release),
            "quant": cfg.quant,
            **found.model.entry(),
        },
        "draft": found.draft.entry() if found.draft else None,
        "guard": found.guard.entry() if found.guard else None,
        "server": {
            "image": tagged(cfg.images["server"], lambda: revision[:12]),
            "engine": engine,
            # By the writer of whoever reads them: PyYAML leaves a hash such as 1234e5678901 without the quotes that keep it text.
            "settings": OmegaConf.to_yaml(OmegaConf.create(settings(run, cfg, told, found))),
            "port": PORT,
            "key": KEY if cfg.api_key else "",
            "sequences": told.limits.concurrent,
            "startupSeconds": int(server.START_SECONDS),
            "routedSeconds": ROUTED_SECONDS,
            "graceSeconds": ROUTED_SECONDS + cfg.drain_seconds + int(serve.GRACE_SECONDS + serve.LOG_SECONDS),
            "environment": {} if run.has_gpus else on_cpu(run.threads),
        },
        "log": {
            "folder": str(LOGS) if told.log.folder else "",
            "size": gibibytes(told.log.max_bytes * (told.log.max_files + 1)),
        },
        "fetch": {"image": cfg.images["fetch"]},
        "resources": resources(run, cfg, told, found),
    }


def check(told: Serve, cfg: Deploy) -> None:
    """Exit naming what of `serve` cannot be served elsewhere."""
    serving.check(told)
    guard = told.guard
    # Its secrets and its classifier are where it is served, not here.
    keyless = replace(guard.endpoint, api_key_env=None) if guard.endpoint else None
    replace(guard, endpoint=keyless, classifier=None).check()
    if told.engine != "vllm":
        raise SystemExit(f"serve.engine: '{told.engine}': the image serves with vLLM: take serve=vllm")
    if told.model:
        raise SystemExit(
            f"serve.model: {told.model}: the release is deployed: set it to null, or change recipe.release"
        )
    if cfg.quant not in QUANTS:
        raise SystemExit(f"deploy.quant: '{cfg.quant}': the image serves with vLLM: choose one of {', '.join(QUANTS)}")
    if cfg.quant != "bf16" and told.draft:
        raise SystemExit(
            f"serve.draft: '{told.draft}': `bench` measured it with the weights as trained, not with {cfg.quant}: "
            "set it to null, or deploy.quant=bf16"
        )
    if cfg.quant != "bf16" and told.dtype == "float32":
        raise SystemExit(
            f"serve.dtype: float32: vLLM computes {cfg.quant} in 16 bits alone: set bfloat16, or deploy.quant=bf16"
        )
    if guard.endpoint and is_own(urlsplit(guard.endpoint.base_url).hostname or ""):
        raise SystemExit(
            f"serve.guard.endpoint.base_url: {guard.endpoint.base_url} is the replica itself: name where the guard model is served"
        )


def is_own(host: str) -> bool:
    """Whether an address is that of whoever asks."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def outs(run: Run, cfg: Deploy, told: Serve) -> Outs:
    """The model, its draft and the guard's classifier, as dvc.lock has them."""
    release = str(run.settings.recipe.release)
    model = locked(f"models/{release if cfg.quant == 'bf16' else cfg.quant}", told.name)
    if cfg.quant != "bf16":
        retention.require_released(cfg.quant)
    draft = locked(f"models/{recipe.HEAD}", "draft") if told.draft == speculation.EAGLE3 else None
    guard = locked(told.guard.classifier, "guard") if told.guard.classifier else None
    return Outs(model, draft, guard)


def locked(path: str, name: str) -> Out:
    """A folder of dvc.lock, served from one named `name`."""
    found = [out for stage in gate.locked().values() for out in stage.get("outs", []) if out["path"] == path]
    if not found:
        raise SystemExit(f"{gate.LOCK}: no out {path}: run `make repro`, or correct recipe, serve and deploy in conf/")
    md5 = str(found[0]["md5"])
    return Out(path, md5, int(found[0]["size"]), str(MODELS / md5[:12] / name))


def settings(run: Run, cfg: Deploy, told: Serve, found: Outs) -> dict[str, Any]:
    """What commands.serve reads there: `serve` as `make serve` would have it, but for where all of it lies and listens.

    A draft is checked here, where the reports of `bench` are, and told as arguments.
    """
    section: Any = OmegaConf.to_container(run.settings.serve)
    more = ["--tensor-parallel-size", str(cfg.devices)] if cfg.devices > 1 else []
    if told.draft:
        more += drafting.arguments(told.draft, run.settings, Path(found.draft.folder if found.draft else ""))
    section |= {
        "model": found.model.folder,
        "revision": found.model.md5[:12],
        "host": "0.0.0.0",
        "port": PORT,
        "draft": None,
        "arguments": [*more, *told.arguments],
        "api_key_env": KEY if cfg.api_key else None,
        "drain_seconds": cfg.drain_seconds,
        "engine_log": None,
    }
    section["guard"] |= {"classifier": found.guard.folder} if found.guard else {}
    section["log"] |= {"folder": str(LOGS)} if told.log.folder else {}
    hardware = run.settings.hardware
    kept = {"name": str(hardware.name), "runtime": OmegaConf.to_container(hardware.runtime)}
    return {"serve": section, "hardware": kept, "recipe": {"release": str(run.settings.recipe.release)}}


def dumped(content: dict[str, Any]) -> str:
    return str(yaml.dump(content, Dumper=Readable, sort_keys=False, allow_unicode=True, width=1000))


class Readable(yaml.SafeDumper):
    """Text of several lines as such."""


Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def committed() -> str:
    """HEAD, which must have the lock that the release is read from, and the code that its image is made of."""
    if edited := git("status", "--porcelain", "--", *TRACKED, *BUILT).split("\n")[0]:
        raise SystemExit(
            f"{edited[3:]}: not as HEAD has it, which is what is built and fetched: commit it, then `make deploy`"
        )
    return git("rev-parse", "HEAD").strip()


def repository(cfg: Deploy) -> str:
    """The https address to clone, without the name and the token that a remote's may carry."""
    address = cfg.repository or git("config", "--default", "", "remote.origin.url").strip()
    if not address:
        raise SystemExit(
            "deploy.repository: null, and git has no remote `origin`: name the address that your cluster clones"
        )
    address = without_login(SSH.sub(r"https://\1/\2", address))
    # The image that fetches has no ssh, and the chart opens the port of https alone.
    if urlsplit(address).scheme != "https":
        raise SystemExit(f"deploy.repository: {address}: is fetched by https alone: name the address that https serves")
    return address


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


def tagged(image: str, tag: Callable[[], str]) -> str:
    """`image` with a tag, unless it names one itself."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:{tag()}"


def engine_version() -> str:
    """The tag of the version of vLLM that evaluated the model."""
    lock = envs.REQUIREMENTS / "serve.txt"
    found = re.search(r"^vllm(?:-cpu)?==([\d.]+)", lock.read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"requirements/{lock.name}: locks no vLLM: give the images of conf/deploy a tag")
    return f"v{found[1]}"


def on_cpu(threads: int) -> dict[str, str]:
    """OpenMP on the CPUs that the container has: vLLM's own choice pins threads to a machine's first ones.

    Of Intel's, which vLLM's image preloads, waiting threads sleep after 5 ms, as vLLM has them where it pins; its default is 200.
    """
    return {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "KMP_BLOCKTIME": "5"}


def resources(run: Run, cfg: Deploy, told: Serve, found: Outs) -> dict[str, Any]:
    """Of a replica; exits when it is too much for its devices."""
    if cfg.devices < 1 or (cfg.devices > 1 and not run.has_gpus):
        raise SystemExit(
            f"deploy.devices: {cfg.devices}: GPUs of a replica, or 1 for hardware=cpu: correct conf/deploy"
        )
    counted = replica(run, cfg, weights(cfg, told, found))
    if word(run, counted) == TOO_MUCH:
        raise SystemExit(
            f"deploy: a replica takes {counted.peak / GB:.1f} GB of each {run.device.name}, which has {run.capacity / GB:.0f}: "
            "raise deploy.devices, take a quant, or lower hardware.runtime.serve_memory_gb"
        )
    scrubber = SCRUBBER if told.log.folder or told.langfuse.host else 0.0
    return {
        "gpus": cfg.devices if run.has_gpus else 0,
        "cpus": run.threads,
        "memory": gibibytes(host(run, counted, cfg.devices) + scrubber + cfg.shared_memory_gb * plan.GIB),
        "disk": gibibytes(size(found.every())),
        "sharedMemory": f"{cfg.shared_memory_gb}Gi",
    }


def weights(cfg: Deploy, told: Serve, found: Outs) -> float:
    """Bytes that vLLM holds of the model and its draft: int4 as it lies on disk, what was trained as wide as the sums."""
    wider = (memory.FP32 if told.dtype == "float32" else memory.BF16) / STORED
    model = found.model.size * (wider if cfg.quant == "bf16" else 1)
    return model + (found.draft.size * wider if found.draft else 0)


def replica(run: Run, cfg: Deploy, held: float) -> Estimate:
    """What `make plan` counts for vLLM, with these weights, each device with its share."""
    counted = plan.evaluate(run, run.settings.recipe.release)
    return replace(counted, memory=counted.memory | {"weights": held / cfg.devices})


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
    model, told, held = (written[key] for key in ("model", "server", "resources"))
    fetched = [written[key] for key in ("model", "draft", "guard") if written[key]]
    lines = {
        "TEMPER_REPOSITORY": model["repository"],
        "TEMPER_REVISION": model["revision"],
        "TEMPER_FETCH": " ".join(out[key] for out in fetched for key in ("path", "md5", "folder")),
        "TEMPER_FETCH_IMAGE": written["fetch"]["image"],
        "TEMPER_SERVER_IMAGE": told["image"],
        "TEMPER_ENGINE_IMAGE": told["engine"],
        "TEMPER_STARTUP_SECONDS": told["startupSeconds"],
        "TEMPER_GRACE_SECONDS": told["graceSeconds"],
        "TEMPER_MEMORY": held["memory"].replace("Gi", "g"),
        "TEMPER_SHARED_MEMORY": held["sharedMemory"].replace("Gi", "g"),
        "TEMPER_GPUS": held["gpus"],
    } | told["environment"]
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def say(written: dict[str, Any], told: Serve) -> None:
    """What was written, what is missing before it can be fetched or started, and the commands that take it."""
    model, image, held = written["model"], written["server"], written["resources"]
    what = f"{model['path']} ({model['quant']}, {model['md5'][:12]}) of {model['revision'][:12]}"
    print(f"{TARGET}: {what}; a replica takes {held['memory']} and {held['gpus'] or 'no'} GPU")
    if not remote():
        print("  .dvc/config names no remote to fetch from: `dvc remote add --default`, commit it, `dvc push`")
    if names := others(told):
        where = "a Secret that server.variables names, deploy/server.env of compose, /etc/temper/secret.env of systemd"
        print(f"  it reads {', '.join(names)}: put them into {where}")
    files = ["compose.yaml", *(["compose.gpu.yaml"] if held["gpus"] else [])]
    chosen = " ".join(f"--file deploy/{name}" for name in files)
    print(f"  docker build --file deploy/Dockerfile --build-arg ENGINE={image['engine']} --tag {image['image']} .")
    print(f"  helm upgrade --install temper deploy/chart --values {TARGET}/values.yaml")
    print(f"  docker compose --env-file {TARGET}/temper.env {chosen} up --build --detach")


def others(told: Serve) -> list[str]:
    """Variables with secrets, beside the key of callers, that the server reads."""
    endpoint = told.guard.endpoint
    named = serving.secrets(replace(told, api_key_env=None)).values()
    return [*named, *([endpoint.api_key_env] if endpoint and endpoint.api_key_env else [])]


if __name__ == "__main__":
    main(sys.argv[1:])
