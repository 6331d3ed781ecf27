"""A server for the time of a block, whatever engine it is: started, waited for, measured, and ended with the block.

Stages that only ask a model use temper/server.py, which knows vLLM alone.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from temper import server, stage

POLL_SECONDS = 0.1


class Endpoint:
    """`command` as a process that answers GET /health on `port` of the loopback interface once the block is entered."""

    def __init__(
        self,
        command: list[str],
        port: int,
        environment: dict[str, str] | None = None,
        stop_seconds: float = server.STOP_SECONDS,
    ) -> None:
        self.port = port
        self.url = f"http://{server.HOST}:{port}"
        self.started = 0.0
        """By time.monotonic()."""
        self.start_seconds = 0.0
        self._stop_seconds = stop_seconds
        self._command, self._environment = command, os.environ | (environment or {})

    def __enter__(self) -> "Endpoint":
        self._folder = tempfile.TemporaryDirectory(prefix="temper-endpoint-")
        self._log = Path(self._folder.name) / "server.log"
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            # No thread runs yet in a process that starts a server, so a function between fork and exec is safe.
            self._process = subprocess.Popen(
                self._command,
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
        return sum(server.peak(pid) for pid in self.family()) / 1e9

    def memory_gb(self) -> float:
        """Sum over the server's processes of the memory that each has resident now, in GB."""
        return sum(resident(pid) for pid in self.family()) / 1e9

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
        lines = self._log.read_text(errors="replace").splitlines()[-server.LAST_LINES :]
        return "\n".join(["its last lines:", *lines])

    def _wait(self) -> None:
        # Another process may have taken the port since it was chosen: its answer is not ours.
        while not (server.answers(f"{self.url}/health") and server.listens(self.pid, self.port)):
            if (status := self.status()) is not None:
                raise SystemExit(f"the server ended with status {status} before it was ready: {self.last_lines()}")
            if time.monotonic() > self.started + server.START_SECONDS:
                raise SystemExit(f"the server was not ready after {server.START_SECONDS:.0f} s: {self.last_lines()}")
            time.sleep(POLL_SECONDS)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            # Its workers end with it: they are bound to its life.
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def resident(pid: int) -> int:
    """Bytes that a process has resident (VmRSS of Linux); 0 where that is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
