"""Run a command that ends, with every process it starts, as soon as its starter ends, even by SIGKILL.

    python -m temper.supervisor COMMAND …

The supervisor leads a process group of its own and reads standard input, whose other end only the starter holds: the
kernel closes that end however the starter dies. A death signal on the command alone would miss its children.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def start(command: list[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start `command` under a supervisor, its output in `log`; the process that is returned is the supervisor."""
    supervised = [sys.executable, "-m", "temper.supervisor", *command]
    with log.open("wb") as output:
        return subprocess.Popen(
            supervised,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the command and wait until its whole group is gone."""
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2 * GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(command: list[str]) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_starter, args=(child,), daemon=True).start()
    child.wait()
    # Whatever the command left behind, and this process itself.
    os.killpg(0, signal.SIGKILL)


def _end_with_starter(child: "subprocess.Popen[bytes]") -> None:
    # os.read and not sys.stdin: a thread that holds a buffered reader's lock would hinder the interpreter's exit.
    while os.read(0, 4096):
        pass
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
