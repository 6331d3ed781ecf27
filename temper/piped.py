"""A module of another environment as a process for the time of a block: a line of JSON in, a line of JSON out."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from temper import envs, stage
from temper.records import Row

LAST_LINES = 3


class Piped:
    """`python -m module arguments…` in the environment `env`, which answers by `serve`; `greeting` is what it says of itself."""

    def __init__(self, env: str, module: str, *arguments: str) -> None:
        self._command = [str(envs.python(env)), "-m", module, *arguments]
        self._greeting: Row | None = None

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __deepcopy__(self, known: dict[int, Any]) -> Self:
        """Itself: lm_eval copies a task's settings with the function that scores it, and there is one process."""
        return self

    @property
    def greeting(self) -> Row:
        """Waited for when it is first asked for, so that what starts the process may load meanwhile too."""
        return self._greet()

    def ask(self, asked: Row) -> Row:
        """The answer; exits with the last words of a process that has ended."""
        self._greet()
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # The empty answer says so.
        return self._read()

    def _greet(self) -> Row:
        if self._greeting is None:
            self._greeting = self._read()
        return self._greeting

    def _read(self) -> Row:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            status = self._process.wait()
            self._said.seek(0)
            last = " / ".join(self._said.read().strip().splitlines()[-LAST_LINES:])
            raise SystemExit(f"{self._command[2]} ended (status {status}{killed(status)}): {last}")
        found: Row = json.loads(line)
        return found


def killed(status: int) -> str:
    return ", by the system where memory ran out" if status == -signal.SIGKILL else ""


def serve(begin: Callable[[], tuple[Row, Callable[[Row], Row]]]) -> None:
    """Be the other end: `begin` makes the greeting and what answers. What libraries print goes to stderr and is no answer."""
    stage.die_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    greeting, answer = begin()
    print(json.dumps(greeting), file=out)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out)
