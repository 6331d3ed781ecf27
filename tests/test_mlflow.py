"""The mirror of releases in MLflow: what it asks of a server, and that nothing is asked where none is configured."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from temper import mlflow

PREFIX = "/api/2.0/mlflow/"


class Registry(BaseHTTPRequestHandler):
    """As much of MLflow's registry as is asked for, by its documented requests and errors."""

    models: set[str]
    versions: list[dict[str, Any]]
    aliases: dict[str, str]
    headers_seen: list[str | None]
    refuses: bool
    """All that is asked, as to one without permission."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuses:
            return self.answer(403, {"error_code": "PERMISSION_DENIED", "message": "ask\nan admin"})
        self.headers_seen.append(self.headers.get("Authorization"))
        endpoint = self.path.removeprefix(PREFIX)
        if endpoint == "registered-models/create":
            if body["name"] in self.models:
                return self.answer(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it is there"})
            self.models.add(body["name"])
            return self.answer(200, {"registered_model": body})
        if endpoint == "model-versions/create":
            self.versions.append(body)
            return self.answer(200, {"model_version": {"version": str(len(self.versions))}})
        if endpoint == "registered-models/alias":
            self.aliases[body["alias"]] = body["version"]
            return self.answer(200, {})
        return self.answer(404, {})

    def do_GET(self) -> None:
        if self.refuses:
            return self.answer(403, {"error_code": "PERMISSION_DENIED", "message": "ask\nan admin"})
        (alias,) = parse_qs(urlsplit(self.path).query)["alias"]
        if alias not in self.aliases:
            return self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"alias {alias}\nnot found"})
        return self.answer(200, {"model_version": {"version": self.aliases[alias]}})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    """The address of an empty registry."""
    Registry.models, Registry.versions, Registry.aliases, Registry.headers_seen = set(), [], {}, []
    Registry.refuses = False
    with HTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("URI", "TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with serving() as found:
        yield found


def test_a_release_is_a_version_and_a_stage_an_alias(address: str) -> None:
    for release in ("v1.0.0", "v1.1.0"):
        mlflow.register(address, "model", release, "https://example.org/temper.git@model", {"commit": "abc"})
    assert [one["description"] for one in Registry.versions] == ["release v1.0.0", "release v1.1.0"]
    assert Registry.versions[0]["tags"] == [{"key": "commit", "value": "abc"}]
    mlflow.promote(address, "model", "v1.1.0", "prod")
    assert Registry.aliases == {"release-1-0-0": "1", "release-1-1-0": "2", "prod": "2"}
    mlflow.promote(address, "model", "v1.0.0", "prod")
    assert Registry.aliases["prod"] == "1"


def test_what_the_server_refuses_is_said_in_its_words(address: str) -> None:
    with pytest.raises(mlflow.Refused, match=r"^INVALID_PARAMETER_VALUE: alias release-9-0-0 not found$"):
        mlflow.promote(address, "model", "v9.0.0", "prod")
    with pytest.raises(mlflow.Refused, match=r"^HTTP 404"):
        mlflow._post(address, "nowhere", {})
    with pytest.raises(mlflow.Refused, match=r"^URLError: "):
        mlflow.register("http://127.0.0.1:9", "model", "v1.0.0", "", {})


def test_what_was_told_already_is_told_again_without_a_second_version(address: str) -> None:
    numbers = [mlflow.register(address, "model", release, "", {}) for release in ("v1.0.0", "v1.1.0", "v1.0.0")]
    assert numbers == ["1", "2", "1"]
    assert len(Registry.versions) == 2


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        (b"", "RemoteDisconnected: "),
        (b"200 fine", "BadStatusLine: "),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff", "UnicodeDecodeError: "),
    ],
)
def test_what_is_no_answer_is_a_refusal_too(
    address: str, answered: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("do_GET", "do_POST"):
        monkeypatch.setattr(Registry, method, lambda self: self.wfile.write(answered))
    with pytest.raises(mlflow.Refused, match=f"^{said}"):
        mlflow.register(address, "model", "v1.0.0", "", {})


def test_credentials_are_those_of_mlflow_s_own_client(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    mlflow.register(address, "model", "v1.0.0", "", {})
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    mlflow.register(address, "model", "v1.0.1", "", {})
    assert set(Registry.headers_seen) == {"Basic bWU6c2VjcmV0", "Bearer token"}


@pytest.mark.parametrize("configured", ["", "sqlite:///mlflow.db", "./mlruns"])
def test_without_a_server_there_is_no_mirror(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", configured)
    assert mlflow.server() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/")
    assert mlflow.server() == "https://mlflow.example.org"
