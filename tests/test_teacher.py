"""A teacher is asked until it answers, paid once for each answer, and its troubles are one line with a remedy."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from temper import teacher
from temper.teacher import Client, Reply, Request, Teacher

Body = dict[str, Any]
Fault = tuple[int, dict[str, str], bytes]
"""Status, headers and text of a reply that is none; status 0 drops the connection, a negative one is slow to come."""
BUSY: Fault = (429, {}, b'{"error": {"message": "too many requests"}}')
BROKEN: Fault = (500, {}, b"<html>oops</html>")
DOWN: Fault = (503, {}, b"")
DROPPED: Fault = (0, {}, b"")
SLOW: Fault = (-1, {}, b"")
SLOW_SECONDS = 1.0


class Endpoint:
    """An OpenAI-compatible endpoint on an ephemeral loopback port. `answer` makes the text; `fault` may answer instead."""

    def __init__(self, answer: Callable[[Body], str]) -> None:
        self.answer = answer
        self.fault: Callable[[Body, int], Fault | None] = lambda body, attempt: None
        """Given the body and how often it came before."""
        self.finish: Callable[[Body], str] = lambda body: "stop"
        self.models: list[str] | None = ["tutor"]
        self.key: str | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.times: dict[str, list[float]] = {}
        self.answered: list[Body] = []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def asked(self) -> int:
        return sum(map(len, self.times.values()))


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._is_allowed():
                return
            if endpoint.models is None:
                self._reply(404, {}, b"")
            else:
                self._reply(200, {}, json.dumps({"data": [{"id": name} for name in endpoint.models]}).encode())

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            # Who asks may be killed in the middle of it.
            if len(sent) < int(self.headers["Content-Length"]) or not self._is_allowed():
                return
            body = json.loads(sent)
            if endpoint.models is not None and body["model"] not in endpoint.models:
                self._reply(404, {}, b'{"error": {"message": "The model does not exist"}}')
                return
            name = json.dumps(body, sort_keys=True)
            with endpoint.lock:
                times = endpoint.times.setdefault(name, [])
                times.append(time.monotonic())
                endpoint.active += 1
                endpoint.most_active = max(endpoint.most_active, endpoint.active)
            endpoint.hold.wait()
            fault = endpoint.fault(body, len(times) - 1)
            # Who asked may have been killed meanwhile.
            with suppress(ConnectionError):
                self._answer(body) if fault is None else self._fail(fault)

        def _answer(self, body: Body) -> None:
            message = {"role": "assistant", "content": endpoint.answer(body)}
            reply = {
                "choices": [{"message": message, "finish_reason": endpoint.finish(body)}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 3},
            }
            with endpoint.lock:
                endpoint.answered.append(body)
                endpoint.active -= 1  # before the reply, upon which the next question comes
            self._reply(200, {}, json.dumps(reply).encode())

        def _fail(self, fault: Fault) -> None:
            status, headers, text = fault
            with endpoint.lock:
                endpoint.active -= 1
            if status < 0:
                time.sleep(SLOW_SECONDS)
            if status <= 0:
                self.close_connection = True
                return
            self._reply(status, headers, text)

        def _is_allowed(self) -> bool:
            sent = self.headers.get("Authorization", "")
            if endpoint.key is None or sent == f"Bearer {endpoint.key}":
                return True
            self._reply(401, {}, json.dumps({"error": {"message": f"Incorrect key: {sent}"}}).encode())
            return False

        def _reply(self, status: int, headers: dict[str, str], text: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint(said)
    yield served
    served.close()


def said(body: Body) -> str:
    return f"re: {body['messages'][-1]['content']}"


def settings(base_url: str, **changes: Any) -> Teacher:
    values: dict[str, Any] = {
        "start_server": False,
        "base_url": base_url,
        "model": "tutor",
        "dtype": "float32",
        "licence": "apache-2.0",
        "api_key_env": None,
        "concurrency": 4,
        "timeout": 30.0,
        "retries": 2,
        "backoff": 0.01,
        "patience": 60.0,
        "usd_per_million_prompt_tokens": 1.0,
        "usd_per_million_completion_tokens": 10.0,
        "max_usd": None,
        "extra": {},
    }
    return Teacher(**values | changes)


def request(text: str, **changes: Any) -> Request:
    values = {"temperature": 0.5, "top_p": 1.0, "max_tokens": 50, "seed": 1} | changes
    return Request([{"role": "user", "content": text}], **values)


def ask(url: str, folder: Path, texts: list[str], **changes: Any) -> list[Reply]:
    with Client(settings(url, **changes), folder / "journal.jsonl") as client:
        return list(client.in_order(client.ask(request(text)) for text in texts))


def refusal(url: str, folder: Path, **changes: Any) -> str:
    """The one line that ends a run."""
    with pytest.raises(SystemExit) as error:
        ask(url, folder, ["a", "b"], **changes)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_answers_come_in_the_order_of_the_questions_and_no_more_at_once_than_allowed(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    def late_first(body: Body) -> str:
        time.sleep(0.2 if body["messages"][0]["content"] == "0" else 0.01)
        return said(body)

    endpoint.answer = late_first
    replies = ask(endpoint.url, tmp_path, [str(n) for n in range(40)], concurrency=3)
    assert [reply.text for reply in replies] == [f"re: {n}" for n in range(40)]
    assert 1 < endpoint.most_active <= 3


@pytest.mark.parametrize("fault", [BUSY, BROKEN, DOWN, DROPPED, (200, {}, b"{"), (200, {}, b'{"choices": []}')])
def test_what_passes_is_asked_again(endpoint: Endpoint, tmp_path: Path, fault: Fault) -> None:
    endpoint.fault = lambda body, attempt: fault if attempt < 2 else None
    replies = ask(endpoint.url, tmp_path, ["a", "b", "c"])
    assert [reply.text for reply in replies] == ["re: a", "re: b", "re: c"]
    assert endpoint.asked == 9


def test_a_slow_answer_is_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: SLOW if attempt == 0 else None
    assert ask(endpoint.url, tmp_path, ["a"], timeout=0.3)[0].text == "re: a"


def test_retry_after_is_honoured(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: (429, {"Retry-After": "0.4"}, b"") if attempt == 0 else None
    ask(endpoint.url, tmp_path, ["a"])
    (times,) = endpoint.times.values()
    assert times[1] - times[0] >= 0.4


def test_a_wait_beyond_patience_ends_the_run_in_one_line(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: (429, {"Retry-After": "3600"}, b'{"message": "quota"}')
    assert "wait 3600 s" in refusal(endpoint.url, tmp_path)
    assert endpoint.asked <= 2


def test_retry_after_is_seconds_or_a_date() -> None:
    assert teacher.retry_after("7", 0) == 7
    assert teacher.retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40) == 60
    assert teacher.retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 400) == 0
    assert teacher.retry_after("soon", 0) == teacher.retry_after(None, 0) == teacher.retry_after("nan", 0) == 0


def test_one_poisonous_request_costs_no_other(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: BROKEN if body["messages"][0]["content"] == "b" else None
    replies = ask(endpoint.url, tmp_path, ["a", "b", "c"])
    assert [reply.failure for reply in replies] == [None, "teacher_failed", None]
    assert "500" in replies[1].detail


@pytest.mark.parametrize("fault", [BROKEN, DOWN, BUSY, DROPPED, (200, {}, b"[]")])
def test_what_got_no_answer_is_counted_and_asked_again_by_the_next_run(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    endpoint.fault = lambda body, attempt: fault if body["messages"][0]["content"] == "b" else None
    first, failed = ask(endpoint.url, tmp_path, ["a", "b"])
    assert failed.failure
    assert (
        capsys.readouterr().out
        == f"{endpoint.url}: 1 of 2 requests got no answer: run it again (a stage by `dvc repro -f -s`) to ask them again\n"
    )
    endpoint.fault = lambda body, attempt: None
    asked = endpoint.asked
    assert ask(endpoint.url, tmp_path, ["a", "b"]) == [first, replace(first, text="re: b")]
    assert endpoint.asked == asked + 1
    assert capsys.readouterr().out == ""


def test_a_failure_in_a_journal_is_asked_again(endpoint: Endpoint, tmp_path: Path) -> None:
    """Journals of earlier versions hold them."""
    ask(endpoint.url, tmp_path, ["a"])
    journal = tmp_path / "journal.jsonl"
    entry = json.loads(journal.read_text())
    entry["reply"] |= {"text": "", "failure": "teacher_failed", "detail": "500"}
    journal.write_text(json.dumps(entry) + "\n")
    for _ in range(2):
        assert ask(endpoint.url, tmp_path, ["a"])[0].text == "re: a"
    assert endpoint.asked == 2


def test_a_request_that_is_refused_is_not_repeated(endpoint: Endpoint, tmp_path: Path) -> None:
    too_long: Fault = (400, {}, b'{"error": {"message": "maximum context\\n length is 512"}}')
    endpoint.fault = lambda body, attempt: too_long if body["messages"][0]["content"] == "b" else None
    replies = ask(endpoint.url, tmp_path, ["a", "b"])
    assert replies[1] == Reply("", failure="refused_request", detail=replies[1].detail)
    assert "maximum context length" in replies[1].detail
    assert ask(endpoint.url, tmp_path, ["a", "b"]) == replies
    assert endpoint.asked == 2


def test_replies_that_stay_malformed_are_told_from_a_teacher_that_is_down(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: (200, {}, b"[]") if body["messages"][0]["content"] == "b" else None
    assert [reply.failure for reply in ask(endpoint.url, tmp_path, ["a", "b"])] == [None, "malformed_reply"]


def test_an_endpoint_that_goes_down_ends_the_run_and_keeps_what_it_said(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, attempt: None if body["messages"][0]["content"] == "a" else DOWN
    ask(endpoint.url, tmp_path, ["a"])
    message = refusal(endpoint.url, tmp_path)
    assert "503" in message
    assert "goes on from here" in message
    endpoint.fault = lambda body, attempt: None
    ask(endpoint.url, tmp_path, ["a", "b"])
    answered = [body["messages"][0]["content"] for body in endpoint.answered]
    assert answered.count("a") == 1


def test_the_loopback_interface_is_reached_without_the_proxy(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(endpoint.url, tmp_path, ["a"])[0].text == "re: a"


def test_nothing_there_names_the_setting(tmp_path: Path) -> None:
    message = refusal("http://127.0.0.1:9/v1", tmp_path)
    assert "127.0.0.1:9" in message
    assert "base_url" in message


def test_a_wrong_key_names_its_variable_and_never_the_key(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.key = "right"
    monkeypatch.setenv("TUTOR_KEY", "s3cret-of-mine")
    message = refusal(endpoint.url, tmp_path, api_key_env="TUTOR_KEY")
    assert "$TUTOR_KEY" in message
    assert "s3cret-of-mine" not in message
    assert "api_key_env" in refusal(endpoint.url, tmp_path)
    assert not (tmp_path / "journal.jsonl").read_bytes()


def test_a_key_that_the_cut_of_a_long_error_would_halve_is_not_shown(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.key = "s3cret-of-mine"
    monkeypatch.setenv("TUTOR_KEY", endpoint.key)
    said = json.dumps({"error": {"message": "x" * 190 + " s3cret-of-mine " + "y" * 300}}).encode()
    endpoint.fault = lambda body, attempt: (400, {}, said)
    [reply] = ask(endpoint.url, tmp_path, ["a"], api_key_env="TUTOR_KEY")
    assert reply.detail.endswith(f"{'x' * 190} … yyyyyyy")
    assert b"s3cret" not in (tmp_path / "journal.jsonl").read_bytes()


def test_a_key_is_sent_and_written_nowhere(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.key = "s3cret-of-mine"
    monkeypatch.setenv("TUTOR_KEY", endpoint.key)
    assert ask(endpoint.url, tmp_path, ["a"], api_key_env="TUTOR_KEY")[0].text == "re: a"
    assert b"s3cret" not in (tmp_path / "journal.jsonl").read_bytes()
    monkeypatch.delenv("TUTOR_KEY")
    with pytest.raises(SystemExit, match=r"\$TUTOR_KEY is not set"):
        Client(settings(endpoint.url, api_key_env="TUTOR_KEY"), tmp_path / "journal.jsonl")


def test_an_unknown_model_is_answered_with_the_known_ones(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.models = ["tutor-8b", "other"]
    message = refusal(endpoint.url, tmp_path)
    assert "no model 'tutor'" in message
    assert "tutor-8b" in message


def test_an_endpoint_that_lists_no_models_is_asked_all_the_same(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.models = None
    assert ask(endpoint.url, tmp_path, ["a"])[0].text == "re: a"


def test_what_was_answered_is_never_asked_again_even_with_the_endpoint_gone(tmp_path: Path) -> None:
    served = Endpoint(said)
    first = ask(served.url, tmp_path, ["a", "b"])
    served.close()
    assert ask(served.url, tmp_path, ["b", "a"]) == first[::-1]


@pytest.mark.parametrize("change", [{"temperature": 0.6}, {"seed": 2}, {"max_tokens": 51}])
def test_another_request_is_another_answer(endpoint: Endpoint, tmp_path: Path, change: dict[str, Any]) -> None:
    ask(endpoint.url, tmp_path, ["a"])
    with Client(settings(endpoint.url), tmp_path / "journal.jsonl") as client:
        list(client.in_order([client.ask(request("a", **change))]))
    assert endpoint.asked == 2


def test_another_model_of_the_same_name_is_asked_anew(endpoint: Endpoint, tmp_path: Path) -> None:
    for revision in ("one", "two"):
        with Client(settings(endpoint.url), tmp_path / "journal.jsonl", revision) as client:
            list(client.in_order([client.ask(request("a"))]))
    assert endpoint.asked == 2


def test_a_torn_line_is_asked_again_and_a_spoilt_one_is_named(endpoint: Endpoint, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    ask(endpoint.url, tmp_path, ["a", "b"], concurrency=1)
    journal.write_bytes(journal.read_bytes()[:-20])
    for _ in range(2):
        assert [reply.text for reply in ask(endpoint.url, tmp_path, ["a", "b", "c"])] == ["re: a", "re: b", "re: c"]
        assert endpoint.asked == 4
    assert len(journal.read_bytes().splitlines()) == 3
    journal.write_bytes(b"{}\n" + journal.read_bytes())
    with pytest.raises(SystemExit, match=r"journal.jsonl:1: .*delete the line"):
        ask(endpoint.url, tmp_path, ["a"])


def test_two_runs_do_not_share_a_journal(endpoint: Endpoint, tmp_path: Path) -> None:
    with Client(settings(endpoint.url), tmp_path / "journal.jsonl"), pytest.raises(SystemExit, match="another run"):
        ask(endpoint.url, tmp_path, ["a"])


def test_usage_counts_what_a_run_rests_on_and_the_budget_ends_it(endpoint: Endpoint, tmp_path: Path) -> None:
    texts = [str(n) for n in range(10)]
    each = (10 * 1 + 3 * 10) / 1e6
    assert "max_usd" in _spend(endpoint, tmp_path, texts, 3.5 * each)
    assert endpoint.asked == 4
    assert _spend(endpoint, tmp_path, texts, None) == ""
    assert endpoint.asked == 10


def _spend(endpoint: Endpoint, folder: Path, texts: list[str], limit: float | None) -> str:
    teacher = settings(endpoint.url, concurrency=1, max_usd=limit)
    with Client(teacher, folder / "journal.jsonl") as client:
        try:
            list(client.in_order(client.ask(request(text)) for text in texts))
        except SystemExit as error:
            return str(error)
        assert client.usage.prompt_tokens == 100
        assert client.usage.completion_tokens == 30
        assert client.usage.usd(teacher) == pytest.approx(400 / 1e6)
    return ""


def test_extra_keys_reach_the_endpoint_and_null_takes_one_away(endpoint: Endpoint, tmp_path: Path) -> None:
    ask(endpoint.url, tmp_path, ["a"], extra={"seed": None, "max_tokens": None, "max_completion_tokens": 9})
    (body,) = endpoint.answered
    assert "seed" not in body
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 9


def test_thoughts_are_no_answer_and_lone_surrogates_no_text(endpoint: Endpoint, tmp_path: Path) -> None:
    texts = {"a": "<think>\nhm </think>\n\nsix", "b": "broken \ud800 pair"}
    endpoint.answer = lambda body: texts[body["messages"][0]["content"]]
    assert [reply.text for reply in ask(endpoint.url, tmp_path, ["a", "b"])] == ["six", "broken ? pair"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"licence": " "}, "licence"),
        ({"base_url": "tutor:8000"}, "base_url"),
        ({"base_url": "http://me:word@tutor/v1"}, "api_key_env"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_a_setting_without_sense_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        Client(settings(**{"base_url": "http://127.0.0.1/v1"} | changes), tmp_path / "journal")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:80/v1", "local"),
        ("http://localhost/v1", "local"),
        ("http://[::1]:8000/v1", "local"),
        ("http://192.168.1.20:8000/v1", "local"),
        ("http://10.1.2.3/v1", "local"),
        ("http://[fd00::1]/v1", "local"),
        ("http://8.8.8.8/v1", "8.8.8.8"),
        ("https://api.example.org/v1", "api.example.org"),
    ],
)
def test_an_endpoint_of_a_private_network_is_local(url: str, place: str) -> None:
    assert settings(url).place == place


def test_two_machines_of_a_network_do_not_answer_for_each_other(tmp_path: Path) -> None:
    """Journals are keyed by who was asked: both are `local`, and may serve other models under one name."""
    first, other = (
        Client(settings(f"http://192.168.1.{number}/v1"), tmp_path / "journal.jsonl")._identity for number in (20, 21)
    )
    assert first != other


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"api_key": "abc"}, "api_key"),
        ({"extra_headers": {"Authorization": "abc"}}, "Authorization"),
        ({"X-Api-Key": "abc"}, "X-Api-Key"),
        ({"user": "sk-abc"}, "user"),
        ({"stop": ["Bearer abc"]}, "stop"),
        ({"user": "me:right-key"}, "user"),
    ],
)
def test_a_key_in_the_extra_settings_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], name: str
) -> None:
    monkeypatch.setenv("TUTOR_KEY", "right-key")
    with pytest.raises(SystemExit, match=rf"extra holds a key \('{name}'\), .*api_key_env$") as error:
        teacher.checked(settings("http://127.0.0.1/v1", api_key_env="TUTOR_KEY", extra=extra))
    assert "abc" not in str(error.value)
    assert "right-key" not in str(error.value)


def test_settings_that_only_sound_like_a_key_are_none() -> None:
    extra = {"max_tokens": 5, "stop_token": "</s>", "prompt_cache_key": "a", "chat_template_kwargs": {"think": False}}
    teacher.checked(settings("http://127.0.0.1/v1", extra=extra))
