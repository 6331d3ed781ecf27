"""Where rows come from: public data in a wheel, or a user's own JSON lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from temper import bfcl, record, records, wheels
from temper.record import BadRow
from temper.records import Row

RAW = Path("raw")  # a dependency of ingest


@dataclass
class Source:
    kind: str
    """`wheel` (from the package index) or `file` (a path or glob under raw/, or anywhere at a stated hash)."""
    id: str
    revision: str | None
    sha256: str | None
    """Of the wheel, or of the one file; null for a file that may change."""
    format: str
    """`bfcl` in a wheel, `messages` in a file."""
    files: list[str]
    """Categories of the wheel; [] for `file`."""
    licence: str


@dataclass(frozen=True)
class Candidate:
    place: str
    """`file:line`, for errors."""
    correctable: bool
    """Whether the user can mend it: a row of public data at a pinned hash is only ever taken or left."""
    read: Callable[[], Row]
    """Returns the record, or raises BadRow."""


def candidates(source: Source) -> Iterator[Candidate]:
    """Every row of a source, not yet read; exits when the source itself cannot be had."""
    readers = {("wheel", "bfcl"): _from_bfcl, ("file", "messages"): _from_files}
    if (source.kind, source.format) not in readers:
        known = ", ".join("/".join(pair) for pair in readers)
        raise SystemExit(
            f"conf/data: {source.id}: no reader for '{source.kind}/{source.format}': choose one of {known}"
        )
    yield from readers[source.kind, source.format](source)


def _from_bfcl(source: Source) -> Iterator[Candidate]:
    if source.sha256 is None or source.revision is None:
        raise SystemExit(f"conf/data: {source.id}: a wheel without revision and sha256: add both")
    wheel = wheels.fetch(source.id, source.revision, source.sha256)
    for category in source.files:
        for place, item in bfcl.read(wheel, category):
            yield Candidate(place, False, partial(_bfcl_record, item, source, category))


def _bfcl_record(item: Row, source: Source, category: str) -> Row:
    return record.make(bfcl.row(**item), f"{source.id} {source.revision}/{category}", source.licence, category)


def _from_files(source: Source) -> Iterator[Candidate]:
    for path in _paths(source):
        lines = path.read_bytes().splitlines()
        if not lines:
            raise SystemExit(
                f"{path}: empty, where each line must be one JSON object: fill it or take it out of conf/data"
            )
        for number, line in enumerate(lines, start=1):
            yield Candidate(f"{path}:{number}", True, partial(_file_record, line, f"{path}:{number}", path, source))


def _file_record(line: bytes, place: str, path: Path, source: Source) -> Row:
    try:
        row = records.parse(line, place)
    except SystemExit as error:
        raise BadRow("malformed", str(error).removeprefix(f"{place}: ")) from None
    return record.make(row, path.name, source.licence, path.stem)


def _paths(source: Source) -> list[Path]:
    """The files that a path or glob names, sorted; exits when there are none or their hash is not the stated one."""
    named = Path(source.id)
    paths = [named] if named.is_file() else sorted(Path(named.anchor).glob(str(named.relative_to(named.anchor))))
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise SystemExit(
            f"{source.id}: no such file: correct `id` in conf/data (a path or glob from the repository's root)"
        )
    if source.sha256 is None and (outside := [path for path in paths if RAW.resolve() not in path.resolve().parents]):
        raise SystemExit(
            f"{outside[0]}: outside raw/, where DVC would not notice an edit: move it there, or state its sha256 in conf/data"
        )
    for path in paths:
        if source.sha256 is not None and (found := wheels.digest(path)) != source.sha256:
            raise SystemExit(
                f"{path}: sha256 is {found}, conf/data expects {source.sha256}: correct it there if it changed"
            )
    return paths
