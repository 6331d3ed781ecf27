"""The server's end of the log: records go into a pipe whose other end scrubs and writes them, and never hold up a request."""

import os
import queue
import threading
from typing import Any

import orjson

from temper.exposition import Series


class LogPipe:
    """A thread writes what is put here into the open file `number`. With `pending` records waiting, the newest are dropped."""

    def __init__(self, number: int, pending: int, series: Series) -> None:
        self._number = number
        self._series = series
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(pending)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def put(self, record: dict[str, Any]) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._series.dropped += 1
        else:
            self._series.logged += 1

    def _write(self) -> None:
        while True:
            record = self._waiting.get()
            try:
                line = memoryview(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                while line:
                    line = line[os.write(self._number, line) :]
            except OSError:
                # Nobody reads any more: every record from here on is a dropped one.
                self._series.dropped += 1
