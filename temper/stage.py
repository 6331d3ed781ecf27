"""How a stage runs: its time and memory on record, its errors in one line, and no process left behind."""

import ctypes
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from temper import hardware, metrics

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OF_WORKERS = Path("tmp/measured.json")  # figures that a worker of torchrun leaves to the stage that started it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Loaded before any fork: a child must not wait for the loader's lock.
_libc = ctypes.CDLL(None)
_forker: list[int] = []
_measured: dict[str, float | str] = {}


def run(main: Callable[[], None], name: str) -> None:
    """Run a stage's `main` and write reports/timing/<name>.json: wall seconds, peak memory and on what machine.

    A user's mistake (SystemExit with a message) and a failing disk end in one line on stderr and status 1.
    """
    bind_to_parent()
    started = time.monotonic()
    with _disk_in_one_line():
        main()
        _measured.update(
            seconds=round(time.monotonic() - started, 1), peak_memory_gb=_peak(), hardware=str(hardware.found())
        )
        metrics.write(f"reports/timing/{name}.json", _measured)


def measured(**values: float) -> None:
    """Add figures that depend on the machine (tokens/s) to the timing file of the running stage."""
    _measured.update(values)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        metrics.write(OF_WORKERS, _measured)


def bind_to_parent(parent: int | None = None) -> None:
    """End with the parent, and with this process whatever it forks: datasets' and Datatrove's workers would go on without it."""
    die_with_parent(parent)
    os.register_at_fork(before=_remember_forker, after_in_child=lambda: die_with_parent(_forker[0]))


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends, even by SIGKILL (Linux; elsewhere a no-op)."""
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the call, so the signal will never come.
        os.kill(os.getpid(), signal.SIGKILL)


def _remember_forker() -> None:
    _forker[:] = [os.getpid()]


def unwritten(text: str) -> str | None:
    """Why the disk took no more, if that is what a message of a library or of another process says."""
    for code in FULL:
        if f"[Errno {code}]" in text or f"(os error {code})" in text:
            return os.strerror(code)
    if (full := os.strerror(errno.ENOSPC)) in text:
        return full
    # C++ streams, by which torch.save and llama.cpp write, keep no reason.
    return "could not be written" if "iostream error" in text else None


@contextmanager
def _disk_in_one_line() -> Iterator[None]:
    """A full disk or a path that may not be written is the user's to mend; anything else is a defect, with its traceback."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if found := _refusal(error):
            raise SystemExit(f"{found}: free space or permissions, then repeat") from None
        raise


def _refusal(error: BaseException) -> str | None:
    """What could not be written and why. Libraries wrap a full disk in errors of their own, so all that led to `error` counts."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return f"{error.filename or 'output'}: {error.strerror}"
    cause: BaseException | None = error
    if isinstance(error, SystemExit):
        # Its own line says what it has to; whether that is the right remedy depends on what it was raised for.
        cause = error.__cause__ or error.__context__
    while cause:
        if reason := unwritten(str(cause)):
            return f"{getattr(cause, 'filename', None) or 'output'}: {reason}"
        cause = cause.__cause__ or cause.__context__
    return None


def _peak() -> float:
    """Peak resident memory of the largest process, this one or one that it started, in GB (ru_maxrss is in KiB on Linux).

    Not of both together: Linux counts what a process was before its exec, so that the smallest child is as large as its parent.
    """
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kib * 1024 / 1e9, 2)
