"""A server for the time of a block, whatever engine it is: started, waited for, measured, and ended with it, however it ends."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from temper import api_server, stage

HOST = "127.0.0.1"
START_SECONDS = 900.0  # compiling for a GPU takes minutes
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1
LAST_LINES = 15


class Endpoint:
    """`command` as a process that answers GET /health on `port` of the loopback interface once the block is entered."""

    def __init__(
        self,
        command: list[str],
        port: int,
        environment: dict[str, str] | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.command = command
        self.started = 0.0
        """By time.monotonic()."""
        self.start_seconds = 0.0
        self._environment = os.environ | (environment or {})
        self._stop_seconds = stop_seconds

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="temper-server-")
        self._log = Path(self._folder.name) / "server.log"
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            # No thread runs yet in a process that starts a server, so a function between fork and exec is safe.
            self._process = subprocess.Popen(
                self.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=stage.die_with_parent,  # noqa: PLW1509
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - self.started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """Of the process once it has ended."""
        return self._process.poll()

    def peak_memory_gb(self) -> float:
        """Sum over the server's processes of the most memory each has had resident, in GB."""
        return sum(kept(pid, "VmHWM") for pid in self.family()) / 1e9

    def memory_gb(self) -> float:
        """Sum over the server's processes of the memory that each has resident now, in GB."""
        return sum(kept(pid, "VmRSS") for pid in self.family()) / 1e9

    def family(self) -> list[int]:
        """Ids of the server's processes, those that it started after itself; none once it has ended."""
        import psutil

        try:
            parent = psutil.Process(self.pid)
            return [process.pid for process in [parent, *parent.children(recursive=True)]]
        except psutil.NoSuchProcess:
            return []

    def last_lines(self) -> str:
        """The end of the server's log, on lines of its own."""
        return "\n".join(["its last lines:", *self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]])

    def _wait(self) -> None:
        # Another process may have taken the port since it was chosen: its answer is not ours.
        while not (answers(f"{self.url}/health") and listens(self.pid, self.port)):
            if (status := self.status()) is not None:
                raise SystemExit(f"the server ended with status {status} before it was ready: {self.last_lines()}")
            if time.monotonic() > self.started + START_SECONDS:
                raise SystemExit(f"the server was not ready after {START_SECONDS:.0f} s: {self.last_lines()}")
            time.sleep(POLL_SECONDS)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            # Its workers end with it: they are bound to its life (temper/api_server.py).
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class Server(Endpoint):
    """The model in a folder behind vLLM's OpenAI API, by the name of the folder; `more` are arguments of vLLM's."""

    def __init__(self, model: Path, dtype: str, seed: int, runtime: dict[str, Any], *more: str) -> None:
        if not (model / "config.json").is_file():
            raise SystemExit(f"{model}: no model: run `make {model.name}`, which writes it")
        self.name = model.name
        port = chosen_port(runtime["serve_port"])
        command = [sys.executable, "-m", api_server.__name__, "--host", HOST, "--port", str(port)]
        super().__init__([*command, *arguments(model, dtype, seed, runtime), *more], port, environment(runtime))


def arguments(model: Path, dtype: str, seed: int, runtime: dict[str, Any]) -> list[str]:
    """The server's command line: `serve_memory_gb` is for the KV cache alone."""
    values = {
        "--model": str(model),
        "--served-model-name": model.name,
        "--dtype": dtype,
        "--seed": str(seed),
        "--kv-cache-memory-bytes": str(int(runtime["serve_memory_gb"] * 2**30)),
    }
    eager = ["--enforce-eager"] if runtime["serve_eager"] else []
    return [part for pair in values.items() for part in pair] + ["--disable-uvicorn-access-log", *eager]


def environment(runtime: dict[str, Any]) -> dict[str, str]:
    """No telemetry, no model hub, and OpenMP on `threads` cores (vLLM's own choice leaves one of two idle)."""
    cores = sorted(os.sched_getaffinity(0))[: runtime["threads"]]
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }


def chosen_port(wanted: int | None) -> int:
    """`wanted`, or a free port of the loopback interface for None; exits when `wanted` is taken or no port."""
    if wanted is not None and wanted not in range(1, 2**16):
        raise SystemExit(
            f"hardware.runtime.serve_port: {wanted}, expected 1 to 65535, or null for any free one: correct it in conf/hardware"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            remedy = "end what uses it, or set it to null for any free one (conf/hardware)"
            raise SystemExit(f"hardware.runtime.serve_port: {wanted} on {HOST}: {error.strerror}: {remedy}") from None
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET succeeds, never through a proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it started, is the one that listens on `port`."""
    import psutil

    try:
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        opened = [connection for process in family for connection in process.net_connections()]
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in opened)


def kept(pid: int, name: str) -> int:
    """Bytes that a process has resident (VmRSS of Linux), or has had at most (VmHWM); 0 where that is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
