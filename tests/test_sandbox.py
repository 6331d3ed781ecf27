"""Programs that nobody has read: what they ask for is there, and what they must not do fails, ends, and leaves nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from temper import sandbox
from temper.sandbox import Limits

LIMITS = Limits(seconds=2, memory_mb=512, disk_mb=4, namespaces=True)
BARE = Limits(seconds=2, memory_mb=512, disk_mb=4, namespaces=False)


def permitted() -> bool:
    try:
        sandbox.require(LIMITS)
    except SystemExit:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not permitted(), reason="this machine permits no namespaces")


@needs_namespaces
@pytest.mark.parametrize(
    "program",
    [
        "assert sum(range(4)) == 6",
        "import collections, decimal, functools, hashlib, heapq, itertools, json, math, random, re, typing",
        "import os; open('a', 'w').write('x'); assert os.listdir('.') == ['a']",
        "import tempfile; tempfile.TemporaryFile().write(b'x')",
    ],
)
def test_what_a_solution_needs_is_there(program: str) -> None:
    assert sandbox.run(program, LIMITS) == sandbox.Outcome(True, "passed")


@needs_namespaces
@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "raise KeyboardInterrupt",
        "def f(: pass",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.write(3, b'0' * 32); os.write(1, b'0' * 32); os._exit(0)",
    ],
)
def test_only_the_end_of_the_program_passes(program: str) -> None:
    assert not sandbox.run(program, LIMITS).passed


@needs_namespaces
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import os\nwhile True: os.fork()",
        "import threading; threading.Thread(target=print).start()",
        "import subprocess; subprocess.run(['/usr/bin/true'], check=True)",
        "x = bytearray(2**30)",
        "open('a', 'wb').write(bytes(2**23))",
        "for n in range(8): open(str(n), 'wb').write(bytes(2**20))",
        "for n in range(100): open(str(n), 'wb')\nkeep = [open(str(n)) for n in range(100)]",
        "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "open('/etc/passwd')",
        "import os; os.listdir('/proc/1')",
        f"open({str(Path(__file__))!r})",
        f"import os; os.unlink({str(Path(__file__))!r})",
        "import shutil; shutil.rmtree('/usr')",
        "import sys; open(sys.base_prefix + '/x', 'w')",
        "import os; os.setuid(0)",
        "import os; os.kill(os.getppid() or -1, 9)",
    ],
)
def test_what_a_program_must_not_do_fails(program: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = program.replace("{port}", str(server.getsockname()[1]))
        assert not sandbox.run(asked, LIMITS).passed
    assert Path(__file__).is_file()


@needs_namespaces
def test_output_without_end_is_kept_nowhere() -> None:
    before = psutil.Process().memory_info().rss
    sandbox.run("while True: print('x' * 10**6)", LIMITS)
    assert psutil.Process().memory_info().rss - before < 2**26


@needs_namespaces
def test_a_sleeper_ends_with_the_clock_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STARTED", 0.5)
    # Of earlier tests: multiprocessing's resource tracker lives as long as pytest.
    before = psutil.Process().children(recursive=True)
    started = time.monotonic()
    assert sandbox.run("import time; time.sleep(60)", LIMITS) == sandbox.Outcome(False, "timeout")
    assert time.monotonic() - started < 10
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert psutil.wait_procs(left, timeout=5)[1] == []


@needs_namespaces
def test_nothing_outlives_a_killed_stage(tmp_path: Path) -> None:
    code = f"from temper import sandbox; print('on', flush=True); sandbox.run('import time; time.sleep(60)', sandbox.{LIMITS})"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    stage = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert stage.stdout is not None
        assert stage.stdout.readline().strip() == "on"
        deadline = time.monotonic() + 10
        while len(family := psutil.Process(stage.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(family) == 2
    finally:
        stage.kill()
        stage.wait()
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_without_namespaces_limits_still_hold() -> None:
    assert sandbox.run("import json", BARE).passed
    assert not sandbox.run("while True: pass", BARE).passed
    assert not sandbox.run("x = bytearray(2**30)", BARE).passed
    assert not sandbox.run("import sys; sys.exit(0)", BARE).passed


def test_a_machine_that_permits_none_is_one_line_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real first process, on a machine without the system call.
    source = Path(sandbox.__file__).read_text().replace('call("unshare", ', 'call("no_such_call", ')
    script = source.replace(
        "getattr(libc, name)(*arguments)", "name == 'no_such_call' or getattr(libc, name)(*arguments)"
    )
    (tmp_path / "sandbox.py").write_text(script)
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    with pytest.raises(SystemExit, match=r"^sandbox: this machine .*no_such_call.*sandbox\.namespaces") as error:
        sandbox.require(LIMITS)
    assert "\n" not in str(error.value)
