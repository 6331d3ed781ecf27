"""`make serve`, and the bare engine with the same flags, OpenMP and no gateway, on free loopback ports."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from commands import serve
from commands.compose import composed
from commands.serve import Served
from temper import api_server, server
from temper.server import Endpoint

DRAINED = 150.0  # seconds in which answers, and then the log, must have come to their end
MAKE = ("make", "--no-print-directory", "serve")


@contextmanager
def prepared(overrides: list[str]) -> Iterator[Served]:
    """What `make serve` would serve with these overrides of conf/."""
    with TemporaryDirectory(prefix="temper-bench-") as name:
        file = Path(name) / "params.yaml"
        file.write_text(composed([*overrides, "serve.port=null"]), encoding="utf-8")
        yield serve.prepared(file)


def ours(overrides: list[str], by_make: bool = False) -> Endpoint:
    """`make serve`, or the command that it runs."""
    port = server.chosen_port(None)
    given = [*overrides, f"serve.port={port}"]
    command = [*MAKE, f"ARGS={' '.join(given)}"] if by_make else [sys.executable, "-m", "commands.serve", *given]
    return Endpoint(command, port, stop_seconds=DRAINED)


def bare(served: Served, more: list[str] | None = None, environment: dict[str, str] | None = None) -> Endpoint:
    """The engine with the flags of `make serve` and without its gateway."""
    port = server.chosen_port(None)
    command = serve.command(replace(served, port=port))
    if served.cfg.engine == "llama.cpp":
        command.append("--bare")
    else:
        place = command.index("--middleware")
        del command[place : place + 2]
    return Endpoint([*command, *(more or [])], port, server.environment(served.runtime) | (environment or {}))


def by_default(served: Served, more: list[str], environment: dict[str, str]) -> Endpoint:
    """vLLM as it starts when it is told no more than the model, and where to answer; and to take a little less than 0.92 of the
    memory, its own choice, with which it does not start where as much is not free."""
    port = server.chosen_port(None)
    command = serve.command(served)[:3]
    command += ["--model", str(served.model), "--served-model-name", served.cfg.name]
    command += ["--gpu-memory-utilization", "0.8"]
    quiet = {name: server.environment(served.runtime)[name] for name in ("VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE")}
    # GNU's OpenMP, which vLLM preloads by itself: temper/api_server.py would take Intel's.
    prefix = Path(command[0]).parent.parent
    quiet |= {api_server.PRELOADED: str(next(prefix.glob("lib/python3*/site-packages/torch/lib/libgomp*.so*")))}
    return Endpoint([*command, "--host", server.HOST, "--port", str(port), *more], port, quiet | environment)
