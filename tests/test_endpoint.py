"""A server is there for its block only, whatever it is: waited for, measured, ended, and its last words shown."""

import sys
import time

import psutil
import pytest

from temper import endpoint, server
from temper.endpoint import Endpoint

# Answers GET /health, and has a child as engines have.
SERVE = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
held = b"x" * 50_000_000
child = subprocess.Popen([sys.executable, "-c", "import time; held = b'x' * 30_000_000; time.sleep(600)"])
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy)
import signal
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit()))
server.serve_forever()
"""


def of(code: str, stop_seconds: float = server.STOP_SECONDS) -> Endpoint:
    port = server.chosen_port(None)
    return Endpoint([sys.executable, "-c", code, str(port)], port, stop_seconds=stop_seconds)


def test_a_server_is_waited_for_measured_and_ended_with_its_child() -> None:
    with of(SERVE) as one:
        assert server.answers(f"{one.url}/health")
        assert 0 < one.start_seconds <= time.monotonic() - one.started
        family = [psutil.Process(pid) for pid in one.family()]
        assert len(family) == 2
        deadline = time.monotonic() + 20
        while one.memory_gb() < 0.08 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 0.08 < one.memory_gb() <= one.peak_memory_gb() < 1
        assert one.status() is None
    assert one.status() is not None
    assert (one.family(), one.memory_gb()) == ([], 0)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_one_that_cannot_start_shows_its_last_words() -> None:
    with (
        pytest.raises(SystemExit, match=r"ended with status 3 before it was ready[\s\S]*no such model"),
        of("import sys; print('no such model'); sys.exit(3)"),
    ):
        pass


def test_one_that_does_not_end_is_killed() -> None:
    deaf = SERVE.replace("lambda *_: (child.kill(), sys.exit())", "signal.SIG_IGN")
    with of(deaf, stop_seconds=0.5) as one:
        child = psutil.Process(one.family()[1])
    assert one.status() == -9
    child.kill()


def test_memory_of_a_process_that_is_gone_is_none() -> None:
    assert endpoint.resident(2**22 + 1) == 0
