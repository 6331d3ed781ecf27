"""How a stage runs: its time and memory on record, its errors in one line, and no process left behind."""

import ctypes
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

from temper import hardware, metrics

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_measured: dict[str, float | str] = {}


def run(main: Callable[[], None], name: str) -> None:
    """Run a stage's `main` and write reports/timing/<name>.json: wall seconds, peak memory and on what machine.

    A user's mistake (SystemExit with a message) and a failing disk end in one line on stderr and status 1.
    """
    die_with_parent()
    started = time.monotonic()
    try:
        main()
    except OSError as error:
        # A full disk or a path that may not be written is the user's to mend; anything else is a defect, with its traceback.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise SystemExit(
            f"{error.filename or 'output'}: {error.strerror}: free space or permissions, then repeat"
        ) from None
    _measured.update(
        seconds=round(time.monotonic() - started, 1), peak_memory_gb=_peak(), hardware=str(hardware.found())
    )
    metrics.write(f"reports/timing/{name}.json", _measured)


def measured(**values: float) -> None:
    """Add figures that depend on the machine (tokens/s) to the timing file of the running stage."""
    _measured.update(values)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, even by SIGKILL (Linux; elsewhere a no-op)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended between the two calls, so the signal will never come.
        os.kill(os.getpid(), signal.SIGKILL)


def _peak() -> float:
    """Peak resident memory of this process and of its largest child, in GB (ru_maxrss is in KiB on Linux)."""
    kib = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kib * 1024 / 1e9, 2)
