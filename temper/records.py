"""JSON-lines in and out: compact, keys sorted."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

Row = dict[str, Any]


def read(path: str | Path) -> Iterator[Row]:
    """Yield one object per line; exits naming the file and line that is not UTF-8, not JSON or not an object."""
    with _opened(Path(path)) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = orjson.loads(line)
            except ValueError:
                row = None
            # What is wrong, and where, is put into words for a bad line alone.
            yield row if type(row) is dict else parse(line, f"{path}:{number}")


def parse(line: bytes, place: str) -> Row:
    """One line as an object; `place` is the `file:line` that an error names."""
    try:
        row = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        raise SystemExit(f"{place}: not UTF-8 at byte {error.start}: convert the file with `iconv -t utf-8`") from None
    except json.JSONDecodeError as error:
        raise SystemExit(
            f"{place}: not JSON ({error.msg} at column {error.colno}): correct or delete the line"
        ) from None
    if not isinstance(row, dict):
        raise SystemExit(f"{place}: a {type(row).__name__}, where each line must be one JSON object")
    return row


def line(row: Row) -> bytes:
    """A row as one line, newline included; TypeError for what no reader would get back: integers past 64 bits, lone surrogates."""
    return orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def write(path: str | Path, rows: Iterable[Row]) -> int:
    """Write `rows` and return how many there were; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    count = 0
    try:
        with partial.open("wb") as out:
            for row in rows:
                out.write(line(row))
                count += 1
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file: run the stage that writes it with `dvc repro`") from None
