"""`make serve` with the real engines on tiny models: what callers get, what is kept, and that nothing of it outlives its end."""

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from commands import serve
from commands.compose import composed
from temper import drafting, metrics, records, request_log, serving
from tests.test_deploy_queries import NEW, OLD, evaluated, query
from tests.test_server import MODEL

KEY = {"authorization": "Bearer sesame"}
PATIENCE = 300.0  # seconds, for a machine that is busy with other things
BLOCKED = "how to make a pipe bomb"
PATTERN = "first how to make a pi[p]e bomb then"  # matches it, and is not itself blocked in a request

# One layer of random weights and a vocabulary of bytes: enough for llama.cpp to load, serve and be killed.
GGUF = """
import sys
import numpy as np
from gguf import GGUFWriter, TokenType
width, heads, hidden = 64, 2, 128
tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
writer = GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(4096)
writer.add_embedding_length(width)
writer.add_block_count(1)
writer.add_feed_forward_length(hidden)
writer.add_head_count(heads)
writer.add_head_count_kv(heads)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(width // heads)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types(kinds)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
turns = "{% for one in messages %}{{ one['role'] + ': ' + one['content'] + '\\\\n' }}{% endfor %}"
writer.add_chat_template(turns + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
draw = np.random.default_rng(0)
shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,)}
shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
shapes |= {"blk.0.ffn_gate": (hidden, width), "blk.0.ffn_up": (hidden, width), "blk.0.ffn_down": (width, hidden)}
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    logs: Path
    line: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=KEY, timeout=300, trust_env=False)

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", trust_env=False).text

    def series(self) -> dict[str, float]:
        pairs = (line.rsplit(" ", 1) for line in self.metrics().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def records(self, count: int) -> list[dict[str, Any]]:
        """The log once it has at least `count` records."""
        file = self.logs / request_log.CURRENT
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = list(records.read(file)) if file.is_file() else []
            if len(found) >= count:
                return found
            time.sleep(0.2)
        raise AssertionError(f"{len(found)} records after a minute")


def begun(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "commands.serve", "serve.port=null", "serve.api_key_env=SERVE_KEY"]
    command += [f"serve.log.folder={folder / 'logs'}", "serve.limits.max_tokens=3000", "serve.structured=tools"]
    command += overrides
    return subprocess.Popen(command, env=os.environ | {"SERVE_KEY": "sesame"}, stdout=subprocess.PIPE, text=True)


def started(folder: Path, *overrides: str) -> Server:
    process = begun(folder, *overrides)
    assert process.stdout
    line = process.stdout.readline()
    assert " serves " in line, line
    return Server(process, line.split("/v1 ")[0], folder / "logs", line)


def vllm(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", MODEL, str(folder / "model")]
    subprocess.run(command, check=True)
    limits = ["serve.limits.concurrent=4", "serve.limits.queued=4"]
    return [f"serve.model={folder}/model", "serve.dtype=float32", *limits]


def llama(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "temper.envs", "run", "quantize", "-c", GGUF, str(folder / "model.gguf")]
    subprocess.run(command, check=True)
    return ["serve=llama.cpp", f"serve.model={folder}/model.gguf", "serve.limits.queued=7"]


@pytest.fixture(scope="module", params=[vllm, llama], ids=["vllm", "llama.cpp"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    found = started(folder, *request.param(folder))
    yield found
    if found.process.poll() is None:
        found.process.kill()
    found.process.wait()


def chat(text: str = "Hi", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "temper", "messages": messages, "max_tokens": 8, "temperature": 0, **more}


def forced(text: str, **more: Any) -> dict[str, Any]:
    """A request that can only be answered by `text`, a pattern, as a JSON string."""
    schema = {"type": "string", "pattern": f"^{text}$"}
    form = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    return chat(max_tokens=100, response_format=form, **more)


def events(reply: httpx.Response) -> list[Any]:
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


def said(reply: httpx.Response) -> str:
    choices = [choice for event in events(reply) for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.engine
def test_the_line_at_the_start_says_how_to_call_it(server: Server) -> None:
    assert '-H "Authorization: Bearer $SERVE_KEY"' in server.line
    call = server.line[server.line.index("curl ") :]
    done = subprocess.run(
        ["bash", "-c", call],
        env=os.environ | {"SERVE_KEY": "sesame", "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.engine
def test_answers_are_openais_whole_and_streamed_alike(server: Server) -> None:
    with server.client() as client:
        whole = client.post("/v1/chat/completions", json=forced("fine words"))
        streamed = client.post("/v1/chat/completions", json=forced("fine words", stream=True))
        models = client.get("/v1/models").json()
        text = client.post("/v1/completions", json={"model": "temper", "prompt": "ab", "max_tokens": 3}).json()
    assert whole.json()["choices"][0]["message"]["content"] == said(streamed) == '"fine words"'
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert [model["id"] for model in models["data"]] == ["temper"]
    assert text["usage"]["completion_tokens"] <= 3, "though random bytes begin letters of four"


@pytest.mark.engine
def test_tools_are_answered_by_a_call_to_one_of_them_or_null(server: Server) -> None:
    unit: dict[str, Any] = {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]}
    unit["additionalProperties"] = False
    tools = [{"type": "function", "function": {"name": name, "parameters": unit}} for name in ("heat", "cool")]
    with server.client() as client:
        for seed in range(5):
            more = {"tools": tools, "temperature": 1.0, "seed": seed, "max_tokens": 200}
            reply = client.post("/v1/chat/completions", json=chat("Warmer!") | more).json()
            call = json.loads(reply["choices"][0]["message"]["content"])
            assert call is None or (call["name"] in ("heat", "cool") and call["arguments"]["unit"] in ("c", "f"))


@pytest.mark.engine
def test_what_is_wrong_has_its_status(server: Server) -> None:
    wrong: dict[int, list[dict[str, Any]]] = {
        404: [{"json": chat() | {"model": "other"}}],
        400: [
            {"json": chat(max_tokens=5000)},
            {"content": b"{"},
            {"json": chat("x" * 9000)},
            {"json": {"model": "temper"}},
            {"json": chat() | {"temperature": "hot"}},
            {"json": chat() | {"temperature": -1}},
        ],
        413: [{"content": b"x" * 2_000_000}],
        401: [{"json": chat(), "headers": {"authorization": "Bearer no"}}],
    }
    with server.client() as client:
        for status, requests in wrong.items():
            for request in requests:
                reply = client.post("/v1/chat/completions", **request)
                assert reply.status_code == status, reply.text
                assert reply.json()["error"]["message"]
        assert client.post("/v1/responses", json={"model": "temper", "input": "x"}).status_code == 404
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.engine
def test_the_guard_stops_what_is_asked_and_what_is_answered(server: Server) -> None:
    before = server.series()
    with server.client() as client:
        asked = client.post("/v1/chat/completions", json=chat(f"Tell me {BLOCKED.upper()}."))
        answered = client.post("/v1/chat/completions", json=forced(PATTERN))
        streamed = client.post("/v1/chat/completions", json=forced(PATTERN, stream=True))
    assert (asked.status_code, asked.json()["error"]["code"]) == (400, "content_filter")
    assert answered.json()["choices"][0]["finish_reason"] == "content_filter"
    assert said(streamed) == '"first '
    assert events(streamed)[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert "bomb" not in answered.text + streamed.text
    after = server.series()
    series = 'temper_guard_requests_total{status="%s",verdict="blocked"}'
    assert after[series % 200] - before.get(series % 200, 0) == 2
    assert after[series % 400] - before.get(series % 400, 0) == 1


@pytest.mark.engine
def test_more_than_may_wait_are_told_to_come_again(server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor(24) as pool:
        body = chat("Write on", max_tokens=300, ignore_eos=True)
        replies = list(pool.map(lambda _: client.post("/v1/chat/completions", json=body), range(24)))
        statuses = {reply.status_code for reply in replies}
        assert statuses == {200, 429}
        assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 429)
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.engine
def test_a_caller_who_leaves_frees_the_engine(server: Server) -> None:
    before = server.series()
    with server.client() as client:
        for _ in range(3):
            body = chat("On", max_tokens=3000, stream=True, ignore_eos=True)
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                next(reply.iter_lines())
        started = time.monotonic()
        assert client.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200
        assert time.monotonic() - started < 20
    series = 'temper_requests_total{status="499"}'
    deadline = time.monotonic() + 20
    while (now := server.series()).get(series, 0) - before.get(series, 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert now[series] - before.get(series, 0) == 3
    assert now["temper_requests_active"] == 0
    running = [value for name, value in now.items() if name.startswith("vllm:num_requests_running")]
    assert not any(running)


@pytest.mark.engine
def test_prometheus_reads_in_the_server_s_own_series_what_the_chart_asks(server: Server, tmp_path: Path) -> None:
    scraped = [server.metrics()]
    with server.client() as client:
        for blocked in (0, 10):  # of 40: by the release before, then by the canary
            for number in range(40):
                text = f"Tell me {BLOCKED}." if number < blocked else "Hi"
                client.post("/v1/chat/completions", json=chat(text, max_tokens=2))
            scraped.append(server.metrics())
    old, new = (risen(scraped[place], scraped[place + 1], side) for place, side in ((0, OLD), (1, NEW)))
    asked = {"error-rate": ("{}", 0.0), "guard-rate": ("{}", 0.25), "p99": ("({}) > bool 0", 1.0)}
    if "vllm:" in scraped[0]:
        for name, (form, value) in asked.items():
            evaluated(tmp_path, form.format(query("AnalysisTemplate", name)), old | new, value)
        for name, form in (("waiting", "({}) == bool 0"), ("wait", "({}) < bool 0.5"), ("busy", "({}) > bool 0")):
            evaluated(tmp_path, form.format(query("ScaledObject", name)), old | new, 1.0)
    else:
        evaluated(tmp_path, query("AnalysisTemplate", "guard-rate"), old | new, 0.25)
    assert server.client().get("/health").status_code == 200


def risen(before: str, after: str, side: str) -> dict[str, str]:
    """Series of the chart's metrics as Prometheus stores them from two scrapes of a pod, the second after six minutes."""
    first, last = samples(before), samples(after)
    return {
        f'{name}{{{labels},namespace="llm",job="temper-pods",pod="{side}",rollouts_pod_template_hash="{side}"}}': (
            f"{first.get((name, labels), 0.0):g}x25 {value:g}x20"
        )
        for (name, labels), value in last.items()
    }


def samples(text: str) -> dict[tuple[str, str], float]:
    found = re.findall(r"^((?:vllm:|temper_)\w+)\{(.+)\} (\S+)$", text, re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in found if math.isfinite(float(value))}


@pytest.mark.engine
def test_a_reader_who_is_slow_holds_up_nobody(server: Server) -> None:
    body = json.dumps(chat("On", max_tokens=300, stream=True, ignore_eos=True)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: {len(body)}\r\n\r\n"
    with closing(socket.create_connection((host, int(port)))) as slow, server.client() as client:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(head.encode() + body)
        started = time.monotonic()
        assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200
        assert time.monotonic() - started < 20


@pytest.mark.engine
def test_vllm_s_engine_computes_with_intel_s_openmp(server: Server) -> None:
    """The process with the most memory is the one that holds the weights."""
    computing = max(server.family(), key=lambda one: one.memory_info().rss)
    loaded = Path(f"/proc/{computing.pid}/maps").read_text()
    assert ("libiomp5.so" in loaded) == ("gguf" not in server.line)


@pytest.mark.engine
def test_what_is_kept_names_nobody_and_takes_feedback(server: Server) -> None:
    text = "I am Jane Roe, write to jane.roe@example.org or call 415-555-2671"
    with server.client() as client:
        reply = client.post("/v1/chat/completions", json=chat(text, user="jane"))
        id = reply.json()["id"]
        given = {"id": id, "thumbs": "down", "comment": "ask jane.roe@example.org"}
        assert client.post("/v1/feedback", json=given).status_code == 202
        assert client.post("/v1/feedback", json={"id": id, "score": 0.5}).status_code == 202
        assert client.post("/v1/feedback", json={"id": id}).status_code == 400
        assert client.post("/v1/feedback", json={"id": "jane.roe", "score": 0.5}).status_code == 400
    deadline = time.monotonic() + PATIENCE
    kept: list[dict[str, Any]] = []
    while len(kept) < 3 and time.monotonic() < deadline:
        kept = [record for record in server.records(1) if record["id"] == id]
        time.sleep(0.2)
    # An answer is noted when all of it has been sent, which what is said of it may overtake.
    (asked,) = (record for record in kept if "request" in record)
    (judged,) = (record for record in kept if record.get("thumbs"))
    assert (
        asked["request"]["messages"][0]["content"] == "I am <PERSON>, write to <EMAIL_ADDRESS> or call <PHONE_NUMBER>"
    )
    assert (judged["thumbs"], judged["comment"]) == ("down", "ask <EMAIL_ADDRESS>")
    assert asked["usage"]["prompt_tokens"] > 0
    assert asked["revision"] == id.split("-")[1]
    assert server.series()[f'temper_release{{revision="{asked["revision"]}"}}'] == 1
    assert "jane" not in "".join(file.read_text().lower() for file in server.logs.iterdir())
    series = server.series()
    assert series[f'temper_judge_score{{revision="{id.split("-")[1]}"}}'] == 0.5
    assert series['temper_feedback_total{thumb="down"}'] == 1
    assert series["temper_log_dropped_total"] == 0


@pytest.mark.engine
def test_asked_to_end_it_finishes_what_is_begun_and_leaves_no_process(server: Server) -> None:
    number = signal.SIGINT if "gguf" in server.line else signal.SIGTERM
    family = server.family()
    assert len(family) >= 4
    done: list[str] = []

    def read() -> None:
        with server.client() as client:
            body = chat("On", max_tokens=300, stream=True, ignore_eos=True)
            done.append(client.post("/v1/chat/completions", json=body).text)

    before = server.series().get('temper_bytes_total{direction="out"}', 0)
    reader = threading.Thread(target=read)
    reader.start()
    while server.series().get('temper_bytes_total{direction="out"}', 0) == before:
        time.sleep(0.02)
    server.process.send_signal(number)
    reader.join(60)
    assert done and done[0].rstrip().endswith("data: [DONE]")
    assert server.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.engine
@pytest.mark.parametrize("engine", [vllm, llama], ids=["vllm", "llama.cpp"])
def test_killed_it_leaves_no_process(engine: Any, tmp_path: Path) -> None:
    process = begun(tmp_path, *engine(tmp_path))
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    # The log, the server, and what the server starts to compute.
    while len(family := parent.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(family) >= 3
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.engine
def test_an_engine_that_dies_ends_the_server_with_its_status(tmp_path: Path) -> None:
    server = started(tmp_path, *llama(tmp_path))
    worker = next(one for one in server.family() if "temper.llama_worker" in one.cmdline())
    family = server.family()
    worker.kill()
    assert server.process.wait(60) == 1
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.engine
def test_settings_in_a_file_serve_as_those_of_conf_do(tmp_path: Path) -> None:
    """What the image of `make deploy` starts: no composition, the engine's words among its own, a revision that it is told."""
    own = ["serve.engine_log=null", "serve.revision=0a1b", "serve.api_key_env=SERVE_KEY", "serve.limits.max_tokens=300"]
    (tmp_path / "server.yaml").write_text(composed([*llama(tmp_path), *own]))
    command = [sys.executable, "-m", "commands.serve", "--settings", str(tmp_path / "server.yaml"), "serve.port=null"]
    command += [f"serve.log.folder={tmp_path / 'logs'}"]
    environment = os.environ | {"SERVE_KEY": "sesame"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = next(line for line in process.stdout if " serves " in line)
    served = Server(process, line.split("/v1 ")[0], tmp_path / "logs", line)
    with served.client() as client:
        id = client.post("/v1/chat/completions", json=chat()).json()["id"]
    assert id.startswith("chatcmpl-0a1b-")
    assert served.records(1)[0]["id"] == id
    process.terminate()
    assert process.wait(60) == 0


@pytest.mark.engine
def test_a_model_that_the_engine_cannot_load_is_said_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no GGUF")
    process = begun(tmp_path, "serve=llama.cpp", f"serve.model={tmp_path}/bad.gguf")
    assert process.wait(120) == 1


def test_a_log_that_died_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(composed([f"serve.log.folder={tmp_path}/logs"]))
    monkeypatch.setattr(serve, "RESTART_SECONDS", 0.0)
    record = {"kind": "feedback", "time": 0.0, "thumbs": "up", "score": None, "comment": None}
    with serve.Log(serving.load(file), file) as log:
        assert log.writer
        (child,) = psutil.Process().children()
        child.kill()
        child.wait()
        os.write(log.writer, json.dumps(record | {"id": "after"}).encode() + b"\n")
        log.check()
    assert [row["id"] for row in records.read(tmp_path / "logs" / request_log.CURRENT)] == ["after"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+serve.log.pii.min_scores=1", r"conf/serve: section 'serve\.log\.pii': .*min_scores"),
        ("serve.log.pii.entities=[FACE]", r"unknown FACE"),
        ("serve.log.pii.model=en_core_web_none", r"no spaCy model 'en_core_web_none'"),
    ],
)
def test_without_a_log_that_can_scrub_there_is_no_server(
    tmp_path: Path, override: str, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(composed([f"serve.log.folder={tmp_path}/logs", override]))
    deadline = time.monotonic() + PATIENCE
    with pytest.raises(SystemExit, match=r"^no log, no server"), serve.Log(serving.load(file), file) as log:
        while time.monotonic() < deadline:
            log.check_start()
            time.sleep(0.05)
    assert re.search(named, capfd.readouterr().err)


def prepared(tmp_path: Path, *overrides: str) -> serve.Served:
    file = tmp_path / "params.yaml"
    file.write_text(composed([f"serve.model={tmp_path}", "serve.port=null", *overrides]))
    (tmp_path / "config.json").write_text("{}")
    return serve.prepared(file)


def test_a_gguf_that_is_withheld_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(composed(["serve=llama.cpp", "serve.port=null"]))
    monkeypatch.chdir(tmp_path)
    serve.GGUF.parent.mkdir(parents=True)
    serve.GGUF.write_bytes(b"")
    withheld = {"released": False, "withheld": "exact_kept 0.91 < 0.97"}
    metrics.write("reports/retention/gguf.json", withheld)
    for ask in (lambda: serve.prepared(file), serve.modelfile):
        with pytest.raises(SystemExit, match=r"^models/gguf is not released \(exact_kept 0\.91 < 0\.97\)"):
            ask()
    metrics.write("reports/retention/gguf.json", {"released": True, "withheld": ""})
    assert serve.prepared(file).model == serve.GGUF


def test_a_gpu_is_not_served_by_vllm_for_cpus(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^hardware=gpu1 needs vLLM for GPUs"):
        prepared(tmp_path, "hardware=gpu1")


def test_an_address_of_ipv6_is_written_as_urls_have_it(tmp_path: Path) -> None:
    served = prepared(tmp_path)
    served.cfg.host = "::1"
    assert served.url == f"http://[::1]:{served.port}"


def test_sglang_gets_what_it_calls_the_same(tmp_path: Path) -> None:
    line = shlex.split(serve.sglang(prepared(tmp_path, "serve=sglang", "serve.context=2048")))
    assert line[:3] == ["python", "-m", "sglang.launch_server"]
    for name, value in {
        "--model-path": str(tmp_path),
        "--served-model-name": "temper",
        "--context-length": "2048",
    }.items():
        assert line[line.index(name) + 1] == value
    assert "--api-key" not in line


def test_sglang_gets_what_more_it_is_told_and_the_key_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "ses$ame *")
    line = serve.sglang(prepared(tmp_path, "serve=sglang", "serve.api_key_env=THE_KEY", "serve.arguments=[--tp,'2']"))
    assert "ses" not in line
    shell = ["bash", "-c", f'python() {{ printf "%s\\n" "$@"; }}; {line}']
    words = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[words.index("--tp") + 1] == "2"
    assert words[words.index("--api-key") + 1] == "ses$ame *"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("serve.structured=tools", "structured"),
        ("serve/guard=lexical", "guard"),
        ("serve.log.folder=logs", "log.folder"),
        ("serve.langfuse.host=https://langfuse.example.org", "langfuse.host"),
    ],
)
def test_what_sglang_has_no_gateway_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, named: str
) -> None:
    for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(SystemExit, match=rf"^serve\.{re.escape(named)}: .*take serve=vllm$") as error:
        serve.sglang(prepared(tmp_path, "serve=sglang", override))
    assert "\n" not in str(error.value)


def test_vllm_gets_the_gateway_and_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.envs, "python", lambda env: Path(f"/{env}/bin/python"))
    line = serve.command(prepared(tmp_path, "serve.limits.concurrent=7", "serve.arguments=[--enable-prefix-caching]"))
    assert line[:3] == ["/serve/bin/python", "-m", "temper.api_server"]
    for name, value in {
        "--middleware": "temper.gateway.Gateway",
        "--max-num-seqs": "7",
        "--shutdown-timeout": "30",
        "--served-model-name": "temper",
        "--override-generation-config": '{"max_new_tokens": 1024}',
    }.items():
        assert line[line.index(name) + 1] == value
    assert line.count("--served-model-name") == 1
    assert line[-1] == "--enable-prefix-caching"


def test_a_draft_is_the_engines_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.envs, "python", lambda env: Path(f"/{env}/bin/python"))
    asked: list[tuple[str, Path]] = []

    def arguments(method: str, settings: Any, head: Path) -> list[str]:
        asked.append((method, head))
        return ["--speculative-config.method", method]

    monkeypatch.setattr(drafting, "arguments", arguments)
    (tmp_path / "params.yaml").write_text(composed(["serve.draft=eagle3", "serve.port=null"]))
    monkeypatch.chdir(tmp_path)
    for name in ("dpo", "draft"):
        Path("models", name).mkdir(parents=True)
    Path("models/dpo/config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^serve\.draft: models/draft: no head: run `make draft`"):
        serve.prepared(Path("params.yaml"))
    Path("models/draft/config.json").write_text("{}")
    line = serve.command(serve.prepared(Path("params.yaml")))
    assert line[line.index("--speculative-config.method") + 1] == "eagle3"
    assert asked[-1] == ("eagle3", Path("models/draft"))


def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            SystemExit, match=rf"^serve\.port: {port} on 127\.0\.0\.1: .*null for any free one"
        ) as error:
            prepared(tmp_path, f"serve.port={port}")
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match=r"^serve\.port: 99999, expected 1 to 65535"):
        prepared(tmp_path, "serve.port=99999")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("serve.engine=tgi", r"^serve\.engine: 'tgi': choose one of vllm, llama\.cpp, sglang"),
        ("serve.structured=xml", r"^serve\.structured: 'xml'"),
        (
            "serve.langfuse.host=http://127.0.0.1:9",
            r"^serve\.langfuse\.public_key_env: the variable LANGFUSE_PUBLIC_KEY",
        ),
        ("serve.model=models/nothing", r"^models/nothing: no model: run `make repro`"),
    ],
)
def test_what_does_not_fit_is_said_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, named: str
) -> None:
    monkeypatch.delenv("LANGFUSE_PUBLIC_KEY", raising=False)
    with pytest.raises(SystemExit, match=named) as error:
        prepared(tmp_path, override)
    assert "\n" not in str(error.value)


def test_a_revision_is_dvcs_or_that_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models/dpo"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    by_content = serve.revision(Path("models/dpo"))
    (model / "config.json").write_text("{ }")
    assert serve.revision(Path("models/dpo")) != by_content
    out = "{path: models/dpo, md5: 0123456789abcdef.dir}"
    (tmp_path / "dvc.lock").write_text(f"stages: {{dpo: {{outs: [{out}]}}}}")
    assert serve.revision(Path("models/dpo")) == "0123456789ab"
    assert serve.revision(Path("models/dpo/model.gguf").with_name("config.json")) == "0123456789ab"
