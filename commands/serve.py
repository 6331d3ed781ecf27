"""Serve the released model behind an OpenAI-compatible API, with limits, a guard, metrics and a log (conf/serve).

    python -m commands.serve [overrides of conf/]                      until it is asked to end: serve=llama.cpp serves the GGUF
    python -m commands.serve serve=sglang                              print SGLang's command line
    python -m commands.serve --modelfile                               write deploy/release/Modelfile, for Ollama
    python -m commands.serve --settings FILE [serve.port=8080 …]       what `make deploy` wrote, and what differs here

The gateway (temper/gateway.py) is middleware in the engine's own process. Records of requests go through a pipe to
commands.serve_log, in the environment that has Presidio, which scrubs them before they reach the disk.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from temper import envs, gateway, hub, params, recipe, retention, server, serving, speculation, stage, vllm, wheels
from temper.serving import Serve

LOCK = Path("dvc.lock")
GGUF = Path("models/gguf/model.gguf")
HEAD = Path("models", recipe.HEAD)
MODELFILE = Path("deploy/release/Modelfile")
ENGINE_PYTHON = "TEMPER_ENGINE_PYTHON"
"""The variable by which an image that has an engine of its own names the interpreter of that (deploy/Dockerfile)."""
CPUS = "VLLM_CPU_OMP_THREADS_BIND"
MIDDLEWARE = f"{gateway.__name__}.{gateway.Gateway.__name__}"
# xgrammar then writes JSON as training did, and a model cannot go on with white space for ever.
FORM = {"backend": "xgrammar", "disable_any_whitespace": True}
LOG_SECONDS = 60.0  # that the log may take to scrub what is left
RESTART_SECONDS = 30.0  # between two starts of a log that died
GRACE_SECONDS = 15.0  # beyond drain_seconds, in which the engine must have ended


@dataclass(frozen=True)
class Served:
    """What is served, where, and how callers see it."""

    cfg: Serve
    model: Path
    revision: str
    port: int
    runtime: dict[str, Any]
    draft: tuple[str, ...] = ()
    """The engine's arguments for the draft that it speculates with."""

    @property
    def url(self) -> str:
        host = server.HOST if self.cfg.host in ("0.0.0.0", "::", "") else self.cfg.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def main(arguments: list[str]) -> None:
    if arguments == ["--modelfile"]:
        modelfile()
        return
    with tempfile.TemporaryDirectory(prefix="temper-serve-") as folder:
        file = Path(folder) / "params.yaml"
        is_given = arguments[:1] == ["--settings"] and len(arguments) > 1
        text = given(Path(arguments[1]), arguments[2:]) if is_given else composed(arguments)
        file.write_text(text, encoding="utf-8")
        served = prepared(file)
        if served.cfg.engine == "sglang":
            print(sglang(served))
            return
        run(served, file)


def given(file: Path, overrides: list[str]) -> str:
    """The settings in a file with `overrides` of them, in OmegaConf's dotted form."""
    if not file.is_file():
        raise SystemExit(f"{file}: no settings: `make deploy` writes them")
    return OmegaConf.to_yaml(OmegaConf.merge(params.tree(file), OmegaConf.from_dotlist(overrides)))


def prepared(file: Path) -> Served:
    """What the composed file asks for; exits in one line where it cannot be had."""
    cfg = serving.load(file)
    settings = params.tree(file)
    release = str(OmegaConf.select(settings, "recipe.release"))
    model = Path(cfg.model) if cfg.model else GGUF if cfg.engine == "llama.cpp" else Path("models", release)
    present = model.is_file() if cfg.engine == "llama.cpp" else (model / "config.json").is_file()
    if not present:
        raise SystemExit(f"{model}: no model: run `make repro`, which makes it, or name another in serve.model")
    if cfg.engine == "vllm" and not os.environ.get(ENGINE_PYTHON):
        vllm.require_build(preset=str(OmegaConf.select(settings, "hardware.name")))
    if cfg.engine == "llama.cpp" and not cfg.model:
        retention.require_released("gguf")
    draft = drafted(cfg.draft, settings) if cfg.draft else ()
    known = cfg.revision or revision(model)
    return Served(cfg, model, known, chosen_port(cfg), params.runtime(file), draft)


def drafted(method: str, settings: DictConfig) -> tuple[str, ...]:
    """The engine's arguments for a draft; exits where it was not measured, does not pay, or is not there."""
    from temper import drafting  # with the gate, which a server that speculates with nothing need not load

    found = drafting.arguments(method, settings, HEAD)
    if method == speculation.EAGLE3 and not (HEAD / "config.json").is_file():
        raise SystemExit(f"serve.draft: {HEAD}: no head: run `make draft`, which trains it, or set it to null")
    return tuple(found)


def revision(model: Path) -> str:
    """DVC's hash of the model, or of one that DVC does not know a hash of its content; 12 digits tell two apart."""
    tree: dict[str, Any] = yaml.load(LOCK.read_text(), Loader=yaml.CSafeLoader) if LOCK.is_file() else {}
    outs = {out["path"]: out["md5"] for one in tree.get("stages", {}).values() for out in one.get("outs", [])}
    known = outs.get(str(model)) or outs.get(str(model.parent) if model.is_file() else "")
    return str(known or (wheels.digest(model) if model.is_file() else hub.digest(model)))[:12]


def chosen_port(cfg: Serve) -> int:
    """serve.port, or a free one; exits when it is taken or none."""
    if cfg.port is not None and cfg.port not in range(1, 2**16):
        raise SystemExit(
            f"serve.port: {cfg.port}, expected 1 to 65535, or null for any free one: correct it in conf/serve"
        )
    with socket.socket(socket.AF_INET6 if ":" in cfg.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((cfg.host, cfg.port or 0))
        except OSError as error:
            remedy = "end what uses it, or choose another, null for any free one"
            raise SystemExit(f"serve.port: {cfg.port} on {cfg.host}: {error.strerror}: {remedy}") from None
        return int(probe.getsockname()[1])


def command(served: Served) -> list[str]:
    """The engine's command line."""
    cfg = served.cfg
    place = ["--host", cfg.host, "--port", str(served.port)]
    python = os.environ.get(ENGINE_PYTHON) or str(envs.python("serve"))
    if cfg.engine == "llama.cpp":
        limits = {"--context": cfg.context or 0, "--max-tokens": cfg.limits.max_tokens, "--drain": cfg.drain_seconds}
        found = {"--model": served.model, "--worker": envs.python("quantize"), "--threads": served.runtime["threads"]}
        options = [str(part) for pair in (found | limits).items() for part in pair]
        return [python, "-m", "temper.llama_app", *place, "--served-model-name", cfg.name, *options, *cfg.arguments]
    options = server.arguments(served.model, cfg.dtype, cfg.seed, served.runtime)
    options[options.index("--served-model-name") + 1] = cfg.name
    options += ["--max-num-seqs", str(cfg.limits.concurrent), "--shutdown-timeout", str(cfg.drain_seconds)]
    # With the model's own generation config, vLLM takes this as the most that any request gets.
    options += ["--override-generation-config", json.dumps({"max_new_tokens": cfg.limits.max_tokens})]
    options += ["--max-model-len", str(cfg.context)] if cfg.context else []
    options += ["--structured-outputs-config", json.dumps(FORM)] if cfg.structured else []
    options += ["--middleware", MIDDLEWARE, *served.draft, *cfg.arguments]
    return [python, "-m", "temper.api_server", *place, *options]


def sglang(served: Served) -> str:
    """SGLang's command line for a shell, by its documentation of server arguments; exits naming what only a gateway does."""
    cfg = served.cfg
    ours = {"guard": cfg.guard.input or cfg.guard.output, "structured": cfg.structured}
    ours |= {"log.folder": cfg.log.folder, "langfuse.host": cfg.langfuse.host}
    for name, value in ours.items():
        if value:
            raise SystemExit(
                f"serve.{name}: SGLang takes no gateway, which does this: leave it out, or take serve=vllm"
            )
    values = {"--model-path": served.model, "--served-model-name": cfg.name, "--host": cfg.host, "--port": served.port}
    values |= {"--dtype": cfg.dtype, "--random-seed": cfg.seed, "--max-running-requests": cfg.limits.concurrent}
    values |= {"--context-length": cfg.context} if cfg.context else {}
    options = [*(str(part) for pair in values.items() for part in pair), "--enable-metrics", *cfg.arguments]
    # The shell of whoever runs it fills the key in: here it would be on a screen.
    key = f' --api-key "${cfg.api_key_env}"' if cfg.api_key_env else ""
    return shlex.join(["python", "-m", "sglang.launch_server", *options]) + key


def run(served: Served, file: Path) -> None:
    """Serve until the engine ends or is asked to."""
    with Log(served.cfg, file) as log, engine(served, file, log.writer) as process:
        asked = Ending(process, served.cfg.drain_seconds)
        log.close_writer()
        started = time.monotonic()
        while process.poll() is None and not is_ready(process, served):
            log.check_start()
            asked.check()
            time.sleep(0.25)
        if process.poll() is None:
            print(ready(served, time.monotonic() - started), flush=True)
        while process.poll() is None:
            log.check()
            asked.check()
            time.sleep(0.25)
    if not asked.at:
        raise SystemExit(f"the engine ended with status {process.returncode}: {last_lines(served.cfg.engine_log)}")
    print("ended", flush=True)


def is_ready(process: subprocess.Popen[bytes], served: Served) -> bool:
    """Another server may have taken the port since it was chosen: its answer is not ours."""
    return server.answers(f"{served.url}/health") and server.listens(process.pid, served.port)


@contextmanager
def engine(served: Served, file: Path, log: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """The engine's process, for the time of the block."""
    environment = os.environ | server.environment(served.runtime) | {"VLLM_LOGGING_LEVEL": "WARNING"}
    # In a container OpenMP has other CPUs than a machine's first ones: its environment says which.
    environment |= {CPUS: os.environ[CPUS]} if CPUS in os.environ else {}
    environment |= {serving.SETTINGS: str(file), serving.MODEL: str(served.model), serving.REVISION: served.revision}
    if log is not None:
        environment[serving.LOG] = str(log)
    with said(served.cfg.engine_log) as out:
        # A session of its own: Ctrl-C is for this process, which asks the engine to end.
        process = subprocess.Popen(
            command(served),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[log] if log is not None else [],
            start_new_session=True,
            preexec_fn=stage.die_with_parent,  # noqa: PLW1509
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def said(file: str | None) -> Iterator[IO[bytes] | None]:
    """Where the engine's words go: a file, or where this process writes its own."""
    if file is None:
        yield None
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("wb") as out:
        yield out


class Log:
    """The process that scrubs and keeps records, started again where it dies. It ends once the engine has."""

    def __init__(self, cfg: Serve, file: Path) -> None:
        self._command = [sys.executable, "-m", "commands.serve_log", str(file)]
        self._is_kept = bool(cfg.log.folder or cfg.langfuse.host)
        self.writer: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def __enter__(self) -> "Log":
        if self._is_kept:
            self._reader, self.writer = os.pipe()
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_writer()
        if self._process is None:
            return
        try:
            self._process.wait(LOG_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            print(f"the log was not done after {LOG_SECONDS:.0f} s: its last records are lost", file=sys.stderr)
        os.close(self._reader)

    def close_writer(self) -> None:
        """The engine has its own end by now, and the log ends with the last one."""
        if self.writer is not None:
            os.close(self.writer)
            self.writer = None

    def check_start(self) -> None:
        """Exit where the log cannot begin: it has said why."""
        if self._process and self._process.poll():
            raise SystemExit("no log, no server: mend what is said above, or set serve.log.folder to null")

    def check(self) -> None:
        """Start a log that died again; what it had read and not written is lost."""
        process = self._process
        if process and process.poll() is not None and time.monotonic() - self._started > RESTART_SECONDS:
            print(f"the log ended with status {process.returncode}: started again", file=sys.stderr, flush=True)
            self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=self._reader, start_new_session=True)


class Ending:
    """Ask the engine to end at the first SIGINT or SIGTERM; at the second, or when it takes too long, end it."""

    def __init__(self, process: subprocess.Popen[bytes], drain_seconds: float) -> None:
        self.at = 0.0
        self._process, self._most = process, drain_seconds + GRACE_SECONDS
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def check(self) -> None:
        if self.at and time.monotonic() - self.at > self._most:
            self._process.kill()

    def _ask(self, *_: object) -> None:
        if self.at:
            self._process.kill()
            return
        self.at = time.monotonic()
        self._process.terminate()


def ready(served: Served, seconds: float) -> str:
    """One line: where, what, and how to call it."""
    key = f'-H "Authorization: Bearer ${served.cfg.api_key_env}" ' if served.cfg.api_key_env else ""
    body = json.dumps({"model": served.cfg.name, "messages": [{"role": "user", "content": "Hello"}]})
    call = f"curl {served.url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{body}'"
    return (
        f"{served.url}/v1 serves {served.model} ({served.revision}) as {served.cfg.name} after {seconds:.0f} s: {call}"
    )


def last_lines(file: str | None) -> str:
    if file is None:
        return "it has said why above"
    lines = Path(file).read_text(errors="replace").splitlines()[-server.LAST_LINES :]
    return "\n".join([f"the last lines of {file}:", *lines])


def modelfile() -> None:
    """Render Ollama's file of the released GGUF, in the environment that reads GGUF."""
    if not GGUF.is_file():
        raise SystemExit(f"{GGUF}: no released model yet: run `make repro`, which makes it")
    retention.require_released("gguf")
    MODELFILE.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([str(envs.python("quantize")), "-m", "temper.ollama", str(GGUF), str(MODELFILE)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"{MODELFILE}: ollama create temper --file {MODELFILE}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("ended before the engine was there") from None
