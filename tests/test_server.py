"""A server is there for its block only: waited for, measured, ended; it says why it could not start, and nothing of it stays."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from temper import api_server, server
from temper.server import Endpoint, Server

RUNTIME: dict[str, Any] = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True, "serve_port": None}

# One layer of random weights and a tokenizer of single bytes: enough for vLLM to load, serve and be killed.
MODEL = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
set_seed(17)
vocabulary = {letter: number for number, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
wrapped.save_pretrained(sys.argv[1])
sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
config = LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=4096, eos_token_id=0, bos_token_id=None, **sizes)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""
HOLD = f"""
import sys, time
from pathlib import Path
from temper.server import Server
with Server(Path(sys.argv[1]), "float32", 0, {RUNTIME!r}):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_port_in_use_is_named_with_the_remedy(folder: Path) -> None:
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as error:
            Server(folder, "float32", 0, RUNTIME | {"serve_port": port})
    assert f"serve_port: {port}" in str(error.value)
    assert "null" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", [99999, 0, -1, "http"])
def test_what_is_no_port_is_named_with_the_remedy(folder: Path, port: int | str) -> None:
    with pytest.raises(
        SystemExit, match=rf"^hardware\.runtime\.serve_port: {port}, expected 1 to 65535, or null"
    ) as error:
        Server(folder, "float32", 0, RUNTIME | {"serve_port": port})
    assert "\n" not in str(error.value)


def test_another_server_on_the_port_is_not_taken_for_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer((server.HOST, 0), Healthy) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setattr(server, "chosen_port", lambda wanted: other.server_port)
        ours = Server(folder, "float32", 0, RUNTIME)
        assert server.answers(f"{ours.url}/health")
        assert server.listens(os.getpid(), ours.port)
        with pytest.raises(SystemExit, match="ended with status 1 before it was ready"), ours:
            pass
        other.shutdown()


class Healthy(BaseHTTPRequestHandler):
    """A server that says it is well, whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_free_port_is_taken_when_none_is_given(folder: Path) -> None:
    assert Server(folder, "float32", 0, RUNTIME).port > 0


def test_a_missing_model_names_the_target_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make dpo"):
        Server(tmp_path / "dpo", "float32", 0, RUNTIME)


def test_a_server_that_dies_shows_its_last_words(folder: Path) -> None:
    # vLLM is not in the environment that runs this, so the server ends at its import.
    with (
        pytest.raises(SystemExit, match=r"ended with status 1 [\s\S]*No module named 'vllm'"),
        Server(folder, "float32", 0, RUNTIME),
    ):
        pass


def test_memory_and_compilation_come_from_the_machine() -> None:
    flags = server.arguments(Path("models/dpo"), "bfloat16", 1, RUNTIME | {"serve_memory_gb": 16, "serve_eager": False})
    assert flags[flags.index("--kv-cache-memory-bytes") + 1] == str(16 * 2**30)
    assert "--enforce-eager" not in flags


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
    assert server.kept(2**22 + 1, "VmRSS") == 0


@pytest.mark.engine
def test_no_process_of_the_server_outlives_a_killed_stage(tmp_path: Path) -> None:
    in_serve = [sys.executable, "-m", "temper.envs", "run", "serve", "-c"]
    subprocess.run([*in_serve, MODEL, str(tmp_path)], check=True)
    stage = subprocess.Popen([*in_serve, HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert stage.stdout is not None
        assert stage.stdout.readline().strip() == "ready"
        # By parentage: vLLM's workers rename themselves, which hides their command line and environment.
        family = psutil.Process(stage.pid).children(recursive=True)
        assert len(family) >= 2
    finally:
        stage.kill()
        stage.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_a_worker_whose_starter_was_gone_before_it_began_ends() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    worker = "import runpy; runpy.run_module('temper.api_server', run_name='__mp_main__')"
    for starter, status in {os.getpid(): 0, gone.pid: -signal.SIGKILL}.items():
        environment = os.environ | {api_server.STARTER: str(starter)}
        done = subprocess.run([sys.executable, "-c", worker], env=environment, check=False)
        assert done.returncode == status


def test_intel_s_openmp_is_taken_where_it_is_and_no_other_is_preloaded(tmp_path: Path) -> None:
    assert api_server.intel_openmp(tmp_path, {}) == {}
    library = tmp_path / "lib/libiomp5.so"
    library.parent.mkdir()
    library.touch()
    assert api_server.intel_openmp(tmp_path, {}) == {"LD_PRELOAD": str(library)}
    others = {"LD_PRELOAD": "/lib/libjemalloc.so"}
    assert api_server.intel_openmp(tmp_path, others) == {"LD_PRELOAD": f"{library}:/lib/libjemalloc.so"}
    assert api_server.intel_openmp(tmp_path, {"LD_PRELOAD": "/torch/lib/libgomp.so.1"}) == {}
