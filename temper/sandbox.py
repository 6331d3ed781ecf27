"""Run a program that nobody has read: no network, no file but a scratch folder, and bounds on time, memory, disk and processes.

Linux namespaces (unshare(2)) hide the machine and resource limits (setrlimit(2)) bound what is left. As a script this file is the
first process of a sandbox, which is why it needs the standard library alone.
"""

import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STARTED = 5.0  # seconds for two interpreters and the mounts, on a busy machine
OPEN_FILES = 64
NOBODY = 65534
REFUSED = b"refused: "
# Shown inside, read-only, with the interpreter. /lib and /bin are links into /usr on most systems.
SHOWN = ("/usr", "/lib", "/lib64", "/bin")
# linux/sched.h, sys/mount.h, linux/mount.h, linux/prctl.h
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY_NOSUID = 442, -100, 0x8000, 3
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# The nonce, which no import of the program finds, tells an end that was reached from an early exit(0).
RUNNER = """
import json, os
def run():
    with os.fdopen(os.dup(0)) as file:
        file.seek(0)
        job = json.load(file)
    nonce, verdict = job.pop("nonce").encode(), os.dup(1)
    os.dup2(2, 1)
    os.dup2(2, 0)
    exec(compile(job["program"], "<answer>", "exec"), {"__name__": "__main__"})
    os.write(verdict, nonce)
try:
    run()
except BaseException:
    os._exit(1)
os._exit(0)
"""


@dataclass
class Limits:
    """The `sandbox` part of a section."""

    seconds: int
    """Of CPU, and about as many of the clock."""
    memory_mb: int
    disk_mb: int
    """Of the scratch folder and of each file."""
    namespaces: bool
    """Whether to hide network, files and other processes; without, limits alone hold a program back."""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    """Whether the program came to its end without an exception."""
    reason: str
    """passed, failed (an exception, an early exit, a limit) or timeout."""


def run(program: str, limits: Limits) -> Outcome:
    """What a Python program does, under `limits`; exits in one line where the machine does not permit its namespaces."""
    nonce = secrets.token_hex(16)
    job = {"program": program, "nonce": nonce, **asdict(limits)}
    with (
        tempfile.TemporaryDirectory(prefix="temper-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as asked,
        tempfile.TemporaryFile() as verdict,
    ):
        json.dump(job, asked)
        asked.seek(0)
        finished = _ended(folder, asked, verdict, limits.seconds + STARTED)
        verdict.seek(0)
        said = verdict.read(200)
    if said.startswith(REFUSED):
        raise SystemExit(_refusal(said.removeprefix(REFUSED).decode()))
    if said == nonce.encode():
        return Outcome(True, "passed")
    return Outcome(False, "failed" if finished else "timeout")


def require(limits: Limits) -> None:
    """Exit, before a run depends on it, where a sandbox cannot be made or does not run the simplest program."""
    if not run("", limits).passed:
        raise SystemExit(
            "sandbox: an empty program does not come to its end in it: raise sandbox.memory_mb or sandbox.seconds in conf/"
        )


def _ended(folder: str, asked: Any, verdict: Any, seconds: float) -> bool:
    """Whether the sandbox came to its end by itself; afterwards nothing of it runs."""
    # The base interpreter: a virtual environment lies where the sandbox shows nothing.
    command = [str(Path(sys.executable).resolve()), "-I", "-S", __file__]
    streams: dict[str, Any] = {"stdin": asked, "stdout": verdict, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env={}, start_new_session=True, **streams)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        # Its session, for what was left behind without namespaces; with them, all ends with the first process.
        _kill(process)
    return True


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _refusal(reason: str) -> str:
    return (
        f"sandbox: this machine does not permit it ({reason}): allow user namespaces (sysctl user.max_user_namespaces, in a "
        "container its seccomp profile), drop the reward `code`, or set sandbox.namespaces to false in conf/ to trust to limits"
    )


def _main() -> None:
    """The first process inside: isolate, limit, then become the interpreter that runs the program."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    job = json.load(sys.stdin)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if job["namespaces"]:
            _isolate(call, job)
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _limit(job)
    except OSError as error:
        os.write(1, REFUSED + (error.strerror or str(error)).encode())
        os._exit(1)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", RUNNER], {"HOME": "/tmp", "PATH": "/usr/bin:/bin"})


def _isolate(call: Any, job: dict[str, Any]) -> None:
    """Leave this process alone on a machine without network, with a read-only view of the interpreter and a scratch folder."""
    user, group, is_root = os.getuid(), os.getgid(), os.getuid() == 0
    spaces = NEWNS | NEWIPC | NEWPID | NEWNET
    call("unshare", spaces if is_root else spaces | NEWUSER)
    if not is_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _hide(call, job["disk_mb"])
    if child := os.fork():
        # The child is the namespace's first process: when it ends, the kernel ends all others there.
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # A change of user clears it.
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def _hide(call: Any, disk_mb: int) -> None:
    """Make the working folder, as a file system of its own, the root: what runs Python, read-only, and an empty /tmp."""
    root = Path.cwd()
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", bytes(root), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    for shown in (*map(Path, SHOWN), Path(sys.base_prefix).resolve()):
        place = root / shown.relative_to("/")
        if shown.is_symlink():
            place.symlink_to(shown.readlink())
        elif shown.is_dir() and not place.exists():
            place.mkdir(parents=True)
            call("mount", bytes(shown), bytes(place), None, MS_BIND | MS_REC, None)
    scratch = root / "tmp"
    scratch.mkdir()
    attributes = b"".join(value.to_bytes(8, "little") for value in (READ_ONLY_NOSUID, 0, 0, 0))
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, bytes(root), AT_RECURSIVE, attributes, len(attributes))
    options = f"size={disk_mb}m,mode=777".encode()
    call("mount", b"tmpfs", bytes(scratch), b"tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chroot(root)
    os.chdir("/tmp")


def _limit(job: dict[str, Any]) -> None:
    """Bounds that the program cannot raise. With one process to its user's name, none can be added."""
    megabyte = 2**20
    bounds = {
        resource.RLIMIT_CPU: job["seconds"],
        resource.RLIMIT_AS: job["memory_mb"] * megabyte,
        resource.RLIMIT_FSIZE: job["disk_mb"] * megabyte,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    _main()
