"""The server's end of the log: records go into a pipe whose other end scrubs and writes them, and never hold up a request."""

import os
import queue
import threading
from typing import Any

import orjson

from temper.exposition import Series

MOST_BYTES = 1 << 26  # of records that wait: a request may be as large as serve.limits.body_bytes


class LogPipe:
    """A thread writes what is put here into the open file `number`. With `pending` records or MOST_BYTES waiting, the newest are
    dropped."""

    def __init__(self, number: int, pending: int, series: Series) -> None:
        self._number = number
        self._series = series
        self._waiting: queue.Queue[bytes] = queue.Queue(pending)
        # Each is written by one thread alone.
        self._taken = self._gone = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    @property
    def waiting_bytes(self) -> int:
        return self._taken - self._gone

    def put(self, record: dict[str, Any]) -> None:
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        if self.waiting_bytes + len(line) > MOST_BYTES:
            self._series.dropped += 1
            return
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._series.dropped += 1
        else:
            self._taken += len(line)
            self._series.logged += 1

    def _write(self) -> None:
        while True:
            whole = self._waiting.get()
            line = memoryview(whole)
            try:
                while line:
                    line = line[os.write(self._number, line) :]
            except OSError:
                # Nobody reads any more: every record from here on is a dropped one.
                self._series.dropped += 1
            self._gone += len(whole)
