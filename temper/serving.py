"""What `make serve` is told: the section `serve` of a composed file, which the server's own process reads too."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import params, speculation
from temper.guard import Guard

SETTINGS = "TEMPER_SERVE"
"""The variable that names the composed file."""
MODEL, REVISION, LOG = "TEMPER_SERVE_MODEL", "TEMPER_SERVE_REVISION", "TEMPER_SERVE_LOG"
"""What is served, of what revision, and the number of the open pipe to the log."""
ENGINES = ("vllm", "llama.cpp", "sglang")
STRUCTURES = ("tools", "task")


@dataclass
class Limits:
    body_bytes: int
    max_tokens: int
    """Of an answer; also what a request gets that names none."""
    choices: int
    """Answers to one request."""
    concurrent: int
    """Requests that the engine answers at a time."""
    queued: int
    """That wait there; one more is refused with status 429."""
    retry_after: int
    """Seconds, as such a caller is told."""
    body_seconds: float
    """In which a request must have arrived."""
    first_token_seconds: float
    """In which a streamed answer must have begun, its time in the queue included."""
    total_seconds: float
    """In which an answer must have ended."""
    write_seconds: float
    """For which a reader may take nothing."""


@dataclass
class Log:
    folder: str | None
    """Null keeps no log."""
    max_bytes: int
    """Of a file, before the next one is begun."""
    max_files: int
    """The oldest of more is deleted."""
    pending: int
    """Records that wait to be scrubbed; of more the newest are dropped, and counted."""
    pii: dict[str, Any]
    """A section like `pii`: what is replaced before a record reaches the disk or Langfuse."""


@dataclass
class Langfuse:
    host: str | None
    """Null sends no traces."""
    public_key_env: str
    secret_key_env: str
    """Names of variables."""
    batch: int
    """Records sent together at most."""
    seconds: float
    """That a record waits for others at most."""


@dataclass
class Serve:
    engine: str
    model: str | None
    """A folder, or for llama.cpp a GGUF file; null takes the release."""
    revision: str | None
    """Of the model, in hexadecimal digits; null takes DVC's hash, or that of its content."""
    name: str
    """By which callers ask for the model."""
    dtype: str
    seed: int
    host: str
    port: int | None
    """Null takes a free one."""
    context: int | None
    """Tokens of a prompt and its answer together; null takes the model's own."""
    draft: str | None
    """Of speculation.METHODS, that `bench` measured; null speculates with none."""
    arguments: list[str]
    """More of the engine's own, as on its command line."""
    api_key_env: str | None
    """Name of the variable with the key that callers send; null asks for none."""
    drain_seconds: int
    """That answers begun may take once the server is asked to end."""
    structured: str | None
    engine_log: str | None
    """A file with what the engine says; null is where the server says its own."""
    guard: Guard
    limits: Limits
    log: Log
    langfuse: Langfuse


def load(path: Path) -> Serve:
    """The section, if it makes sense and this process has its secrets; exits naming what does not."""
    cfg = params.load("serve", Serve, path)
    check(cfg)
    for place, name in secrets(cfg).items():
        if not os.environ.get(name):
            raise SystemExit(f"serve.{place}: the variable {name} is not set: export it, or set the option to null")
    cfg.guard.check()
    return cfg


def check(cfg: Serve) -> None:
    """Exit naming what makes no sense on any machine."""
    if cfg.engine not in ENGINES:
        raise SystemExit(f"serve.engine: '{cfg.engine}': choose one of {', '.join(ENGINES)}")
    if cfg.structured is not None and cfg.structured not in STRUCTURES:
        raise SystemExit(f"serve.structured: '{cfg.structured}': choose null or one of {', '.join(STRUCTURES)}")
    if cfg.revision is not None and not re.fullmatch(r"[0-9a-f]{1,40}", cfg.revision):
        # It is a part of the ids of answers, which come back with feedback.
        raise SystemExit(f"serve.revision: '{cfg.revision}': expected 1 to 40 hexadecimal digits, or null")
    if cfg.draft is not None:
        check_draft(cfg)


def check_draft(cfg: Serve) -> None:
    """Exit where no draft can be served."""
    if cfg.draft not in speculation.METHODS:
        raise SystemExit(f"serve.draft: '{cfg.draft}': choose null or one of {', '.join(speculation.METHODS)}")
    if cfg.engine != "vllm":
        raise SystemExit(
            f"serve.draft: '{cfg.draft}': {cfg.engine} is told of none here: take serve=vllm, or set it to null"
        )
    if cfg.model:
        raise SystemExit(
            f"serve.draft: '{cfg.draft}' was measured with the release, not with {cfg.model}: set one of them to null"
        )


def secrets(cfg: Serve) -> dict[str, str]:
    """The variables that must hold a secret, by the option that names them."""
    named = {"api_key_env": cfg.api_key_env}
    if cfg.langfuse.host:
        named |= {"langfuse.public_key_env": cfg.langfuse.public_key_env}
        named |= {"langfuse.secret_key_env": cfg.langfuse.secret_key_env}
    return {place: name for place, name in named.items() if name}
