"""Rows out of files as people have them: JSON lines, a JSON array, CSV, Parquet, text and HTML; all but Parquet also .gz or .zst.

Everything streams: no more than a row (at most `max_bytes`) or a batch of Parquet rows is held. What is no row is a
BadRow in its place, and reading goes on after it; blank lines are no rows.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as arrow
import zstandard
from pyarrow import parquet

from temper import record
from temper.record import BadRow
from temper.records import Row

Found = tuple[str, Row | BadRow]
"""`:line` or `:row n` in the file, and the row or what is wrong with it."""
BOM = b"\xef\xbb\xbf"
BATCH = 256  # Parquet rows held at a time
# 4 KiB of zstd can unpack to 128 MiB (a repeated byte); more at a time could fill the memory.
ZSTD_BLOCK = 4096
CHUNK = 1 << 20
STRUCTURE = re.compile(rb'["\\\[\]{},]')
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


@dataclass(frozen=True)
class Span:
    """Part of a file of JSON lines: bytes from `start` to `end` (None: the file's), and the number of its first line."""

    start: int
    end: int | None
    line: int


WHOLE = Span(0, None, 1)


def spans(path: Path, size: int) -> list[Span]:
    """A file as parts that can be read apart from each other, each of about `size` bytes: JSON lines; others are one part."""
    if path.suffix.lower() in PACKED or READERS[suffix(path)] is not _json_lines or path.stat().st_size <= size:
        return [WHOLE]
    begins, offset, line = [(0, 1)], 0, 1
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            wanted = begins[-1][0] + size - offset
            at = block.find(b"\n", max(0, wanted)) + 1 if wanted < len(block) else 0
            if at > 0 and offset + at < path.stat().st_size:
                begins.append((offset + at, line + block.count(b"\n", 0, at)))
            offset, line = offset + len(block), line + block.count(b"\n")
    ends = [begin for begin, _ in begins[1:]]
    return [Span(begin, end, number) for (begin, number), end in zip(begins, [*ends, None], strict=True)]


def read(path: Path, max_bytes: int, span: Span = WHOLE) -> Iterator[Found]:
    """Every row of a file or of a part, with its place in the file; exits when the name tells no type that we read."""
    reader = READERS[suffix(path)]
    if reader is _parquet:
        yield from _parquet(path, max_bytes)
        return
    count = 0
    with _opened(path) as stream:
        rows = reader(stream, max_bytes) if span == WHOLE else _json_lines(stream, max_bytes, span)
        try:
            for found in rows:
                yield found
                count += 1
        except BROKEN as error:
            detail = f"the compressed data break here ({error}): fetch the file again"
            yield f":row {count + 1}", BadRow("unreadable", detail)


def suffix(path: Path) -> str:
    """The type that a file's name states, without .gz or .zst; exits when it is none that we read."""
    packed = path.suffix.lower() in PACKED
    found = (path.with_suffix("") if packed else path).suffix.lower()
    if found not in READERS or (packed and found == ".parquet"):
        raise SystemExit(f"{path.name}: no type that can be read: rename it to one of {', '.join(READERS)} [.gz, .zst]")
    return found


def stem(name: str) -> str:
    """A file's name without what states its type and packing."""
    path = Path(name)
    return path.with_suffix("").stem if path.suffix.lower() in PACKED else path.stem


def loads(data: bytes | str) -> Any:
    """One JSON value; BadRow for what is no JSON or would not survive: repeated keys, NaN, deep nesting, huge integers."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value = DECODER.decode(text)
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        detail = f"not UTF-8 at byte {error.start}: convert the file with `iconv -t utf-8`"
        raise BadRow("malformed", detail) from None
    except json.JSONDecodeError as error:
        raise BadRow("malformed", f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise BadRow("nested", record.TOO_NESTED) from None
    except ValueError:
        raise BadRow("malformed", "a whole number of more than 4300 digits") from None
    record.check_nesting(text, value)
    return value


def _object(data: bytes) -> Row:
    return _mapping(loads(data))


def _mapping(value: Any) -> Row:
    if not isinstance(value, dict):
        raise BadRow("malformed", f"a {type(value).__name__}, where each line must be one JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow("malformed", f"the key {twice[:40]!r} twice in one object")
    return row


def _refuse(constant: str) -> None:
    raise BadRow("malformed", f"not JSON ({constant} is no number there)")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def _found(place: str, read_row: Callable[..., Row], *arguments: Any) -> Found:
    try:
        return place, read_row(*arguments)
    except BadRow as error:
        return place, error


def _too_big(max_bytes: int) -> BadRow:
    return BadRow("too_big", f"over {max_bytes} bytes (ingest.max_bytes)")


def _json_lines(stream: BinaryIO, max_bytes: int, span: Span = WHOLE) -> Iterator[Found]:
    if span.start:
        stream.seek(span.start)
    yield from _line_rows(enumerate(_lines(stream, max_bytes, span), start=span.line), max_bytes)


def _line_rows(numbered: Iterable[tuple[int, bytes]], max_bytes: int) -> Iterator[Found]:
    for number, line in numbered:
        if len(line) > max_bytes:
            yield f":{number}", _too_big(max_bytes)
        elif line.strip():
            yield _found(f":{number}", _object, line)


def _lines(stream: BinaryIO, max_bytes: int, span: Span = WHOLE) -> Iterator[bytes]:
    """Each line without its end and the first without a byte order mark; of a longer one, the first max_bytes + 1 bytes."""
    first, limit = not span.start, max_bytes + len(BOM) + len(b"\r\n") + 1
    while (span.end is None or stream.tell() < span.end) and (line := stream.readline(limit)):
        if not line.endswith(b"\n") and len(line) == limit:
            while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
        line = (line.removeprefix(BOM) if first else line).rstrip(b"\r\n")
        first = False
        yield line[: max_bytes + 1]


def _json(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    """The elements of an array, what one object holds, or JSON lines under the name of .json."""
    head = stream.peek(CHUNK).removeprefix(BOM).lstrip()  # type: ignore[attr-defined]
    if head.startswith(b"["):
        for number, element in enumerate(_elements(stream, max_bytes), start=1):
            yield _found(f":row {number}", _element_row, element)
        return
    numbered = enumerate(_lines(stream, max_bytes), start=1)
    first = next((line for line in numbered if line[1].strip()), (1, b""))
    is_cut, is_last = len(first[1]) > max_bytes, not stream.peek(1)  # type: ignore[attr-defined]
    if head.startswith(b"{") and not is_cut and (is_last or _goes_on(first[1])):
        yield from _object_rows(first[1] + b"\n" + stream.read(max_bytes), max_bytes)
    else:
        yield from _line_rows(chain([first], numbered), max_bytes)


def _goes_on(line: bytes) -> bool:
    """Whether the JSON on a line breaks off at its end, as a pretty-printed object's first line does."""
    text = line.decode(errors="replace").rstrip()
    try:
        DECODER.decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return False


def _object_rows(data: bytes, max_bytes: int) -> Iterator[Found]:
    """A file that is one object: the rows that it has under `data`, or itself as the only row."""
    if len(data.rstrip()) > max_bytes:
        detail = f"one object of over {max_bytes} bytes (ingest.max_bytes): write its rows as JSON lines"
        yield ":1", BadRow("too_big", detail)
        return
    place, found = _found(":1", _object, data)
    if isinstance(found, BadRow) and b"\n" in data.strip():
        detail = f"neither the file nor its first line is one object ({found}): JSON lines must be named .jsonl"
        found = BadRow(found.reason, detail)
    rows = None if isinstance(found, BadRow) else found.get("data")
    if not isinstance(rows, list):
        yield place, found
        return
    for number, row in enumerate(rows, start=1):
        yield _found(f":row {number}", _mapping, row)


def _element_row(element: bytes | BadRow) -> Row:
    if isinstance(element, BadRow):
        raise element
    return _object(element)


def _elements(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | BadRow]:
    """What stands between the top commas of an array, not parsed; BadRow for what is too long or stands outside."""
    held = _Held(max_bytes)
    depth, in_string, escaped, offset, count = 0, False, -1, 0, 0
    while chunk := stream.read(CHUNK):
        start = 0
        for match in STRUCTURE.finditer(chunk):
            at, token = match.start(), match.group()
            if offset + at == escaped:
                continue
            if in_string:
                in_string = token != b'"'
                escaped = offset + at + 1 if token == b"\\" else escaped
            elif token == b'"':
                in_string = True
            elif token in (b"[", b"{"):
                depth += 1
                start = at + 1 if depth == 1 else start
            elif token in (b"]", b"}") or (token == b"," and depth == 1):
                depth -= token != b","
                if depth == 0 or token == b",":
                    held.add(chunk[start:at])
                    yield from held.taken(optional=depth == 0 and count == 0)
                    start, count = at + 1, count + 1
                if depth == 0:
                    if (chunk[start:] + stream.read(CHUNK)).strip():
                        yield BadRow("malformed", "text after the end of the array")
                    return
        held.add(chunk[start:])
        offset += len(chunk)
    yield BadRow("malformed", "the file ends within the array")


class _Held:
    """The bytes of one array element so far, as long as they are within `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = bytearray()
        self.over = False

    def add(self, piece: bytes) -> None:
        self.over = self.over or len(self.bytes) + len(piece) > self.max_bytes
        self.bytes += b"" if self.over else piece

    def taken(self, *, optional: bool) -> Iterator[bytes | BadRow]:
        """The element, after which nothing is held; a blank is none if `optional`."""
        whole, over = bytes(self.bytes), self.over
        self.bytes.clear()
        self.over = False
        if over:
            yield _too_big(self.max_bytes)
        elif whole.strip() or not optional:
            yield whole


def _csv(stream: BinaryIO, max_bytes: int, delimiter: str = ",") -> Iterator[Found]:
    """Rows by the names in the first line. A cell may hold line ends; the place is the line where the row begins.

    After a row that is too long or whose quotes are broken, reading goes on at the next line: the detail names the last line
    that went with it. A first line that names no columns is the one bad row of the file.
    """
    csv.field_size_limit(max_bytes)
    lines = _CsvLines(stream, max_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, BadRow) as error:
            if header is None:
                yield place, BadRow("columns", f"the first line names no columns ({error}): no row can be read")
                return
            yield place, lines.bad_row(error)
            continue
        if header is not None and cells:
            yield _found(place, _csv_row, cells, header)
        elif cells and len(set(cells)) < len(cells):
            yield place, BadRow("columns", "the first line names a column twice: no row can be read")
            return
        elif cells:
            header = cells


class _CsvLines:
    """The lines of a file for csv.reader, which forgets the row it is in when it is told that the row is too long."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self.lines, self.max_bytes = _lines(stream, max_bytes), max_bytes
        self.number = self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        self.row_bytes += len(line)
        if self.row_bytes > self.max_bytes:
            raise _too_big(self.max_bytes)
        return line.decode(errors="surrogateescape") + "\n"

    def begin_row(self) -> str:
        """The place of the row that the next line begins."""
        self.row_bytes = 0
        return f":{self.number + 1}"

    def bad_row(self, error: csv.Error | BadRow) -> BadRow:
        """What is wrong with the row just read."""
        reason, detail = (error.reason, error) if isinstance(error, BadRow) else ("malformed", f"not CSV ({error})")
        return BadRow(reason, f"{detail}, up to line {self.number}")


def _csv_row(cells: list[str], header: list[str]) -> Row:
    if not any(cells):
        raise BadRow("empty", "no cell has content")
    if len(cells) != len(header):
        raise BadRow("columns", f"{len(cells)} cells, where the first line names {len(header)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raise BadRow("malformed", "not UTF-8: convert the file with `iconv -t utf-8`") from None
    return dict(zip(header, cells, strict=True))


def _tsv(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    return _csv(stream, max_bytes, delimiter="\t")


def _text(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    """The whole file as one row with `text`."""
    for place, found in _html(stream, max_bytes):
        yield _found(place, _decoded, found)


def _decoded(found: Row | BadRow) -> Row:
    if isinstance(found, BadRow):
        raise found
    try:
        return {"text": found["html"].decode()}
    except UnicodeDecodeError as error:
        detail = f"not UTF-8 at byte {error.start}: convert the file with `iconv -t utf-8`"
        raise BadRow("malformed", detail) from None


def _html(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    """The whole file as one row with `html`: bytes, since a page states its own encoding."""
    data = stream.read(max_bytes + 1).removeprefix(BOM)
    if data.strip():
        yield ":1", _too_big(max_bytes) if len(data) > max_bytes else {"html": data}


def _parquet(path: Path, max_bytes: int) -> Iterator[Found]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in _batch_rows(batch):
                    number += 1
                    yield _found(f":row {number}", _parquet_row, row, max_bytes)
    except (arrow.ArrowException, OSError) as error:
        detail = f"not Parquet from here on ({str(error).splitlines()[0][:120]}): fetch the file again"
        yield f":row {number + 1}", BadRow("unreadable", detail)


def _batch_rows(batch: Any) -> list[Row | None]:
    """The rows of a record batch; None for one that Python cannot hold (a date after 9999, text that is not UTF-8)."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, arrow.ArrowException):
        return [_sole_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _sole_row(batch: Any) -> Row | None:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError, arrow.ArrowException):
        return None


def _parquet_row(row: Row | None, max_bytes: int) -> Row:
    if row is None:
        raise BadRow("malformed", "a value that is not UTF-8 or outside what Python can hold")
    if _weight(row) > max_bytes:
        raise _too_big(max_bytes)
    return row


def _weight(value: Any) -> int:
    """Characters of all text in a value."""
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, list):
        return sum(map(_weight, value))
    return len(value) if isinstance(value, str | bytes) else 0


class _Zstd(io.RawIOBase):
    """Unpacked zstd frames. The library's own reader takes data that break off for their end."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed = packed
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.begun = False
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            block = self.packed.read(ZSTD_BLOCK)
            if not block:
                if self.begun:
                    raise EOFError("they end within a frame")
                return 0
            self.ready = self._unpacked(block)
        given = self.ready[: len(buffer)]
        self.ready = self.ready[len(given) :]
        buffer[: len(given)] = given
        return len(given)

    def close(self) -> None:
        self.packed.close()
        super().close()

    def _unpacked(self, block: bytes) -> bytes:
        pieces = []
        while block:
            pieces.append(self.frame.decompress(block))
            block, self.begun = self.frame.unused_data, not self.frame.eof
            if self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(pieces)


def _opened(path: Path) -> BinaryIO:
    opener = PACKED.get(path.suffix.lower())
    if opener is None:
        return path.open("rb")
    return io.BufferedReader(opener(path), CHUNK)


def _gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _zstd(path: Path) -> Any:
    return _Zstd(path.open("rb"))


PACKED: dict[str, Callable[[Path], Any]] = {".gz": _gzip, ".zst": _zstd}
READERS: dict[str, Callable[..., Iterator[Found]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _text,
    ".md": _text,
    ".html": _html,
    ".htm": _html,
}
