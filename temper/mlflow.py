"""MLflow's model registry as a mirror of the releases, over its HTTP API (2.0), where MLFLOW_TRACKING_URI names a server.

Git stays the record. A release is a version there, found by the alias `release-1-0-0`; the stages that it is in are aliases too.
"""

import base64
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

SECONDS = 30  # that a server may take to answer
EXISTS = "RESOURCE_ALREADY_EXISTS"
ALIAS = "registered-models/alias"


class Refused(Exception):
    """What the server did not do, in a line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(" ".join(f"{code}: {message}".split()))
        self.code = code


def server() -> str | None:
    """The server's address, None where none is configured; files and databases, which MLflow also takes, are not mirrored to."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    return address.rstrip("/") if address.startswith(("http://", "https://")) else None


def register(address: str, name: str, release: str, source: str, tags: Mapping[str, str]) -> str:
    """The number of the version of the model `name` that is `release` (v1.0.0), made if it is not there yet; raises Refused."""
    with suppress(Refused):
        return registered(address, name, release)
    try:
        _post(address, "registered-models/create", {"name": name})
    except Refused as refused:
        if refused.code != EXISTS:
            raise
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    body = {"name": name, "source": source, "description": f"release {release}", "tags": listed}
    version = str(_post(address, "model-versions/create", body)["model_version"]["version"])
    _post(address, ALIAS, {"name": name, "alias": alias(release), "version": version})
    return version


def promote(address: str, name: str, release: str, stage: str) -> None:
    """Let the alias `stage` be of `release`, and of no other; raises Refused."""
    _post(address, ALIAS, {"name": name, "alias": stage, "version": registered(address, name, release)})


def registered(address: str, name: str, release: str) -> str:
    """The number of the version that is `release`; raises Refused."""
    found = _asked(address, f"{ALIAS}?{urlencode({'name': name, 'alias': alias(release)})}", None)
    return str(found["model_version"]["version"])


def alias(release: str) -> str:
    """`release-1-0-0`: an alias has no dots, and `v1` is taken by MLflow for a version of its own."""
    return "release-" + release.removeprefix("v").replace(".", "-").replace("+", "-")


def _post(address: str, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return _asked(address, endpoint, json.dumps(body).encode())


def _asked(address: str, endpoint: str, body: bytes | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | _credentials()
    try:
        with urlopen(Request(f"{address}/api/2.0/mlflow/{endpoint}", body, headers), timeout=SECONDS) as answer:
            return json.loads(answer.read() or b"{}")
    except HTTPError as error:
        raise Refused(*_reason(error)) from None
    # urllib wraps what fails before the request is sent alone; a server that hangs up is an HTTPException or an OSError.
    except (OSError, HTTPException, ValueError) as error:
        raise Refused(type(error).__name__, str(error)) from None


def _reason(error: HTTPError) -> tuple[str, str]:
    """MLflow's code and message, or the status where something in between answered."""
    try:
        told = json.loads(error.read())
        return str(told["error_code"]), str(told.get("message", ""))
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}", error.reason


def _credentials() -> dict[str, str]:
    """From the variables that MLflow's own client reads; they go nowhere else."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user is None or password is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
