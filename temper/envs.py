"""The environments: exact locks, built once per lock into a per-user cache and shared by clones, queued runs and CI.

Standard library only: it runs on a bare Python before any environment exists.

    python -m temper.envs build [ENV …]     build what is missing (all of them by default)
    python -m temper.envs lock [ENV …]      resolve requirements/<env>.in into requirements/<env>.txt again
    python -m temper.envs run ENV -m MODULE run a module inside an environment, as dvc.yaml does
    python -m temper.envs path ENV          where an environment lives
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UV = "uv==0.13.9"
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
# Which locks make up each environment. The linters ride in `main` from a lock of their own: a new linter reruns no stage.
LOCKS = {
    "main": ["main", "dev"],
    "train": ["train"],
    "quantize": ["quantize"],
    "serve": ["serve"],
    "deploy": ["deploy"],
}
# Every package of a lock but torch carries its hashes. A torch version has one file per backend, each with its own hash.
LOCAL_TORCH = re.compile(r"^torch==([\d.]+)\+\w+ \\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)


def cache() -> Path:
    """The per-user folder that environments and downloads share: TEMPER_CACHE, or temper/ under XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TEMPER_CACHE") or Path(home) / "temper").expanduser().absolute()


def path(env: str) -> Path:
    """Where `env` lives, named after the content of its locks: an edited lock is another environment."""
    if env not in LOCKS:
        raise SystemExit(f"no environment named '{env}': choose one of {', '.join(LOCKS)}")
    missing = [str(lock) for lock in _locks(env) if not lock.is_file()]
    if missing:
        raise SystemExit(f"{missing[0]} is missing: restore it with git, or resolve it with `make lock`")
    content = b"".join(lock.read_bytes() for lock in _locks(env)) + _excludes().read_bytes()
    return cache() / "envs" / f"{env}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_built(env: str) -> bool:
    """Whether `env` is complete and its interpreter still there (a system Python may have been removed since)."""
    return (path(env) / ".complete").is_file() and (path(env) / "bin/python").exists()


def python(env: str) -> Path:
    """The interpreter of `env`; exits with the `make` target that builds it when it is missing."""
    if not is_built(env):
        raise SystemExit(f"environment '{env}' is not built: run `make env-{env}` (or `make setup` for all of them)")
    return path(env) / "bin/python"


def build(env: str) -> None:
    """Build `env` unless it is there. Builders of the same lock wait for each other; a half-built one is started over."""
    target = path(env)
    if is_built(env):
        return
    with _only_builder(env):
        if is_built(env):
            return
        shutil.rmtree(target, ignore_errors=True)
        print(f"building environment '{env}' in {target}", flush=True)
        started = time.monotonic()
        _uv("venv", "--quiet", "--python", "3.11", str(target))
        requirements = [flag for lock in _locks(env) for flag in ("-r", str(lock))]
        _uv(
            "pip",
            "install",
            "--compile-bytecode",
            "--python",
            str(target),
            "--excludes",
            str(_excludes()),
            *requirements,
        )
        (target / ".complete").write_text(f"built in {time.monotonic() - started:.0f} s\n")


def lock(name: str) -> None:
    """Resolve requirements/<name>.in into requirements/<name>.txt, to the newest versions that it admits."""
    target = REQUIREMENTS / f"{name}.txt"
    flags = [
        "--python-version",
        "3.11",
        "--excludes",
        str(_excludes()),
        "--generate-hashes",
        "--no-header",
        "--upgrade",
    ]
    _uv(
        "pip",
        "compile",
        "--quiet",
        str(REQUIREMENTS / f"{name}.in"),
        "--annotation-style",
        "line",
        *flags,
        "-o",
        str(target),
    )
    target.write_text(LOCAL_TORCH.sub(r"torch==\1\n", target.read_text()))
    print(f"{target.name}: {len(re.findall('^[a-z]', target.read_text(), re.MULTILINE))} packages")


def run(env: str, arguments: list[str]) -> None:
    """Replace this process by the interpreter of `env`: same process id, so a signal reaches the stage itself."""
    interpreter = python(env)
    # LD_* and PYTHON* of the caller stay; its own bin folder goes first, for tools that start their siblings by name.
    environment = os.environ | {"PATH": f"{interpreter.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    os.execve(interpreter, [str(interpreter), *arguments], environment)


def _locks(env: str) -> list[Path]:
    return [REQUIREMENTS / f"{name}.txt" for name in LOCKS[env]]


def _excludes() -> Path:
    return REQUIREMENTS / "excludes.txt"


@contextmanager
def _only_builder(name: str) -> Iterator[None]:
    """Hold the lock of `name`; the kernel releases it however this process ends."""
    guard = cache() / "envs" / f"{name}.lock"
    guard.parent.mkdir(parents=True, exist_ok=True)
    with guard.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build of '{name}'", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _uv(*arguments: str) -> None:
    """Run uv with the package index that pip is configured for, which uv does not read by itself."""
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"} | _pip_settings()
    result = subprocess.run([_uv_executable(), *arguments], env=environment, check=False)
    if result.returncode:
        remedies = {"venv": "install Python 3.11 and put it on PATH", "pip": "check the network and free disk space"}
        raise SystemExit(f"uv {arguments[0]} failed (above): {remedies[arguments[0]]}, then run it again")


def _pip_settings() -> dict[str, str]:
    """pip's index, wheel folders and certificate, in uv's variables. What is set for uv itself wins."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    pairs = re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    names = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}
    return {names[key]: value for key, value in pairs if key in names and names[key] not in os.environ}


def _uv_executable() -> str:
    home = cache() / "envs" / UV.replace("==", "-")
    if not (home / ".complete").is_file():
        with _only_builder("uv"):
            if not (home / ".complete").is_file():
                _first([sys.executable, "-m", "venv", "--clear", str(home)], "install Python's venv and ensurepip")
                _first([str(home / "bin/pip"), "install", "--quiet", UV], "check the network and pip's index")
                (home / ".complete").touch()
    return str(home / "bin/uv")


def _first(command: list[str], remedy: str) -> None:
    """Run a step before there is uv; exits with the last line that it printed."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        said = [line for line in result.stdout.splitlines() if line.strip() and not line.startswith("[notice]")]
        raise SystemExit(
            f"{UV} was not installed ({said[-1].strip() if said else command[0]}): {remedy}, then run it again"
        )


def main(arguments: list[str]) -> None:
    command, *rest = arguments or ["help"]
    if command == "build":
        for env in rest or LOCKS:
            build(env)
    elif command == "lock":
        for name in rest or [name for names in LOCKS.values() for name in names]:
            lock(name)
    elif command == "path" and len(rest) == 1:
        print(path(rest[0]))
    elif command == "run" and len(rest) > 1:
        run(rest[0], rest[1:])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
