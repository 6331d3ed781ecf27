"""Traces for Langfuse by its ingestion API: records as a trace with one generation, feedback as scores, sent in batches.

https://langfuse.com/docs/api: POST /api/public/ingestion, Basic authentication, 207 with what it took and what not. Langfuse calls
the route legacy beside OpenTelemetry's; it needs no library.
"""

import json
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx

from temper.records import Row
from temper.serving import Langfuse

MOST_BYTES = 3_500_000  # of a batch, by Langfuse's reference; a server of one's own may take less
PENDING = 1000  # records that wait; of more the newest are dropped
ATTEMPTS = 4
BACKOFF = 0.5  # seconds before the second attempt, then doubled
TIMEOUT = 10.0


class Sender:
    """A thread sends what is put here; `close` waits for the last batch."""

    def __init__(self, cfg: Langfuse) -> None:
        self._cfg = cfg
        self._waiting: queue.Queue[Row | None] = queue.Queue(PENDING)
        keys = (os.environ[cfg.public_key_env], os.environ[cfg.secret_key_env])
        self._client = httpx.Client(base_url=str(cfg.host), auth=keys, timeout=TIMEOUT)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="langfuse", daemon=True)
        self._thread.start()

    def put(self, record: Row) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            found, is_open = self._batch()
            for batch in batches(event for record in found for event in events(record)):
                self._post(batch)

    def _batch(self) -> tuple[list[Row], bool]:
        """Records that came within `seconds` of the first, at most `batch`, and whether more may come."""
        record = self._waiting.get()
        found: list[Row] = []
        deadline = time.monotonic() + self._cfg.seconds
        while record is not None:
            found.append(record)
            left = deadline - time.monotonic()
            if len(found) >= self._cfg.batch or left <= 0:
                return found, True
            try:
                record = self._waiting.get(timeout=left)
            except queue.Empty:
                return found, True
        return found, False

    def _post(self, batch: list[Row]) -> None:
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            try:
                reply = self._client.post("/api/public/ingestion", json={"batch": batch})
            except httpx.HTTPError as error:
                reason = type(error).__name__
                continue
            reason = f"status {reply.status_code}"
            if reply.is_success:
                self._count(reply)
                return
            if reply.status_code == 413 and len(batch) > 1:
                for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                    self._post(half)
                return
            if reply.status_code not in (408, 429) and reply.status_code < 500:
                break
        self._drop(len(batch), reason)

    def _count(self, reply: httpx.Response) -> None:
        """A batch that was taken may have events that were not."""
        try:
            errors = reply.json()["errors"]
        except (ValueError, LookupError, TypeError):
            return
        if errors:
            self._drop(len(errors), f"the first with status {errors[0].get('status')}")

    def _drop(self, events: int, reason: str) -> None:
        self.dropped += events
        print(f"Langfuse took no traces ({reason}): {events} events dropped", file=sys.stderr, flush=True)


def batches(found: Iterable[Row]) -> Iterator[list[Row]]:
    """Events in their order, of at most MOST_BYTES together; one that is longer is alone."""
    batch: list[Row] = []
    total = 0
    for event in found:
        # With blanks and escapes that httpx sends without, so commas and what stands around the list are within.
        size = len(json.dumps(event))
        if batch and total + size > MOST_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(event)
        total += size
    if batch:
        yield batch


def events(record: Row) -> list[Row]:
    """What Langfuse calls events: a trace and its generation, or a score each of a piece of feedback."""
    bodies = scores(record) if record["kind"] == "feedback" else generation(record)
    return [{"id": uuid.uuid4().hex, "type": kind, "timestamp": record["time"], "body": body} for kind, body in bodies]


def generation(record: Row) -> list[tuple[str, Row]]:
    request, latency = record["request"], record["latency"]
    ended = datetime.fromisoformat(record["time"])
    begun = ended - timedelta(seconds=latency["total"])
    asked = request.get("messages") or request.get("prompt")
    state = {"status": record["status"], "guard": record["guard"], "revision": record["revision"]}
    trace: Row = {
        "id": record["id"],
        "name": record["path"],
        "timestamp": begun.isoformat(),
        "release": record["revision"],
    }
    spoken: Row = {"input": asked, "output": record["response"]["choices"], "metadata": state}
    detail: Row = {
        "id": f"{record['id']}-generation",
        "traceId": record["id"],
        "name": record["path"],
        "model": record["model"],
        "modelParameters": {key: request[key] for key in PARAMETERS if request.get(key) is not None},
        "startTime": begun.isoformat(),
        "endTime": ended.isoformat(),
        "level": "DEFAULT" if record["status"] < 400 else "ERROR",
    }
    if latency["first_token"] is not None:
        detail["completionStartTime"] = (begun + timedelta(seconds=latency["first_token"])).isoformat()
    if usage := record["usage"]:
        names = {"input": "prompt_tokens", "output": "completion_tokens", "total": "total_tokens"}
        detail["usageDetails"] = {key: usage[name] for key, name in names.items() if usage.get(name) is not None}
    return [("trace-create", trace | spoken), ("generation-create", detail | spoken)]


PARAMETERS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "n")


def scores(record: Row) -> list[tuple[str, Row]]:
    given: dict[str, Any] = {"score": record["score"]}
    if record["thumbs"]:
        given["thumbs"] = int(record["thumbs"] == "up")
    found: list[Row] = [{"name": name, "value": value} for name, value in given.items() if value is not None]
    if record["comment"] and not found:
        # No score is without a value: that of a mere comment is that there is one.
        found = [{"name": "comment", "value": "given", "dataType": "CATEGORICAL"}]
    return [("score-create", {"traceId": record["id"], **score, "comment": record["comment"]}) for score in found]
