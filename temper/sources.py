"""Where rows come from: a wheel, the Hugging Face Hub, a URL, or a user's own files; and each row as a record.

`units` names the pieces of work, a file each (of large files of JSON lines a part), and `read` does one: pieces can be read
in any order, by any process.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from temper import bfcl, downloads, files, formats, licences, record, wheels
from temper.record import BadRow
from temper.records import Row

RAW = Path("raw")  # a dependency of ingest
WHEEL_FORMATS = ("bfcl",)
PART = 256 << 20  # bytes of a large file of JSON lines that are one unit
LOOKED_AT = 50  # rows of a file that decide its format


@dataclass
class Source:
    kind: str
    """`wheel` (from the package index), `hub` (a data set of the Hugging Face Hub), `url`, or `file`."""
    id: str
    """Package, repository, address, or a path or glob: under raw/, or anywhere at a stated hash."""
    revision: str | None
    """Of a wheel its version, of a Hub repository its commit."""
    sha256: str | None
    """Of the wheel, of what is behind the URL, or of the one file; null for a file that may change, and for `hub`."""
    format: str
    """`bfcl` in a wheel; elsewhere `auto`, or one of temper.formats."""
    files: list[str]
    """Categories of the wheel; of a Hub repository globs or splits, all its data if []; [] otherwise."""
    columns: dict[str, str]
    """Columns by other names than the format's, `{instruction: question, output: answer}`: ours: theirs."""
    licence: str
    """Of each row, beside what the row states itself."""


@dataclass(frozen=True)
class Rules:
    bad_rows: str
    """`fail` at the first of a user's own, or `reject` it."""
    max_bytes: int
    """Of one row as it is read."""
    refusal: str
    """The answer to a question that its passage does not answer."""


@dataclass(frozen=True)
class Unit:
    """One file of a source or a part of it, or one category of a wheel."""

    source: Source
    path: Path
    label: str
    """What rejected rows call the file: never a path of this machine's cache."""
    origin: str
    """What records call their source: what the globs of conf/mix and conf/quality match."""
    category: str
    """Of rows that name none."""
    format: str
    is_own: bool
    """Whether the user can mend it: a row of public data at a pinned hash is only ever taken or left."""
    span: files.Span = files.WHOLE


def units(sources: list[Source], rules: Rules) -> list[Unit]:
    """Every file of every source, in order, fetched and its format known; exits when one cannot be had."""
    makers = {"wheel": _wheel_units, "hub": _hub_units, "url": _url_units, "file": _file_units}
    found = []
    for source in sources:
        _check(source, list(makers))
        found += [part for unit in makers[source.kind](source) for part in _parts(_decided(unit, rules))]
    return found


def read(unit: Unit, rules: Rules) -> Iterator[Row]:
    """Each row as a record, or as `{place, reason, detail}`; exits at the first bad one of the user's own if told to fail."""
    count = 0
    for place, found in _found(unit, rules):
        count += 1
        try:
            yield _made(unit, found, rules) | {"place": place}
        except BadRow as error:
            if unit.is_own and rules.bad_rows == "fail":
                raise SystemExit(f"{place}: {error}: correct it, or set ingest.bad_rows to reject") from None
            yield {"place": place, "reason": error.reason, "detail": str(error)}
    if not count and unit.is_own and unit.span == files.WHOLE:
        if rules.bad_rows == "fail":
            raise SystemExit(
                f"{unit.label}: empty, where rows were expected: fill it, delete it, or set ingest.bad_rows to reject"
            )
        yield {"place": f"{unit.label}:1", "reason": "empty", "detail": "a file without rows"}


def _found(unit: Unit, rules: Rules) -> Iterator[files.Found]:
    if unit.format in WHEEL_FORMATS:
        yield from bfcl.read(unit.path, unit.category)
        return
    for place, found in files.read(unit.path, rules.max_bytes, unit.span):
        yield f"{unit.label}{place}", found


def _made(unit: Unit, found: Row | BadRow, rules: Rules) -> Row:
    if isinstance(found, BadRow):
        raise found
    if unit.format in WHEEL_FORMATS:
        content = bfcl.row(**found)
    else:
        content = formats.converted(formats.renamed(found, unit.source.columns), unit.format, rules.refusal)
    licence = licences.together([unit.source.licence, content.get("licence")])
    return record.make(content, unit.origin, licence, unit.category)


def _check(source: Source, kinds: list[str]) -> None:
    known = WHEEL_FORMATS if source.kind == "wheel" else (formats.AUTO, *formats.FORMATS)
    if source.kind not in kinds:
        raise SystemExit(f"conf/data: {source.id}: no kind '{source.kind}': choose one of {', '.join(kinds)}")
    if source.format not in known:
        raise SystemExit(
            f"conf/data: {source.id}: no reader for '{source.kind}/{source.format}': choose one of {', '.join(known)}"
        )
    if not source.licence.strip():
        raise SystemExit(
            f"conf/data: {source.id}: no licence: state it, since it goes onto every row and into the card"
        )


def _wheel_units(source: Source) -> Iterator[Unit]:
    if source.sha256 is None or source.revision is None:
        raise SystemExit(f"conf/data: {source.id}: a wheel without revision and sha256: add both")
    wheel = wheels.fetch(source.id, source.revision, source.sha256)
    for category in source.files:
        origin = f"{source.id} {source.revision}/{category}"
        yield Unit(source, wheel, wheel.name, origin, category, source.format, is_own=False)


def _hub_units(source: Source) -> Iterator[Unit]:
    for name, path in downloads.hub(source.id, source.revision, source.files):
        origin = f"{source.id} {source.revision}/{name}"
        # A repository's files are shards with a name of their split, which says nothing about their rows.
        category = source.id.rpartition("/")[2]
        yield Unit(source, path, origin, origin, category, source.format, is_own=False)


def _url_units(source: Source) -> Iterator[Unit]:
    path, shown = downloads.url(source.id, source.sha256), downloads.shown(source.id)
    yield Unit(source, path, shown, shown, files.stem(path.name), source.format, is_own=False)


def _file_units(source: Source) -> Iterator[Unit]:
    for path in _paths(source):
        yield Unit(source, path, str(path), _origin(path), files.stem(path.name), source.format, is_own=True)


def _origin(path: Path) -> str:
    """A user's file by its path below raw/, since files of several folders may have one name; one elsewhere by its name."""
    whole, raw = path.absolute(), RAW.absolute()
    return whole.relative_to(raw).as_posix() if whole.is_relative_to(raw) else path.name


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


def _decided(unit: Unit, rules: Rules) -> Unit:
    """The unit with the format that its first rows tell, if none was stated."""
    if unit.format in WHEEL_FORMATS:
        return unit
    files.suffix(unit.path)
    if unit.format != formats.AUTO:
        return unit
    first = [found for _, found in islice(files.read(unit.path, rules.max_bytes), LOOKED_AT)]
    rows = [formats.renamed(found, unit.source.columns) for found in first if not isinstance(found, BadRow)]
    name = formats.detect(rows)
    if name is None:
        raise SystemExit(
            f"{unit.label}: no format has its keys ({formats.keys(rows[0])}): name them in `columns`, or state `format`"
        )
    return replace(unit, format=name)


def _parts(unit: Unit) -> list[Unit]:
    if unit.format in WHEEL_FORMATS:
        return [unit]
    return [replace(unit, span=span) for span in files.spans(unit.path, PART)]
