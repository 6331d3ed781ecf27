"""Whatever bytes a file holds: reading it ends, every row of it is a record or rejected with its place and reason."""

import csv
import gzip
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from temper import files, formats, record, records, sources
from temper.records import Row

MAX_BYTES = 2000
RULES = sources.Rules("reject", MAX_BYTES, "It does not say.")
SPEAK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

HARD = [
    "",
    " ",
    "\0",
    "\u200f\u200e",
    "مرحبا بالعالم",
    "שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301\u0327",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x1a",
    "\\u0000",
]
texts = st.one_of(
    st.sampled_from(HARD), st.text(max_size=20), st.sampled_from(["Hi", "Call me", '{"name": "f", "arguments": {}}'])
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", ""])
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": roles, "content": st.one_of(texts, values)}, optional={"tool_calls": values}),
        st.fixed_dictionaries({"from": roles, "value": texts}),
        values,
    ),
    max_size=5,
)
chats = st.lists(texts, min_size=1, max_size=3).map(
    lambda said: [
        turn for text in said for turn in ({"role": "user", "content": text}, {"role": "assistant", "content": text})
    ]
)
schemas = st.fixed_dictionaries(
    {
        "name": texts,
        "parameters": st.one_of(
            values,
            st.fixed_dictionaries(
                {},
                optional={
                    "properties": st.one_of(values, st.dictionaries(texts, values, max_size=2)),
                    "required": values,
                    "type": values,
                    "items": values,
                    "enum": values,
                },
            ),
        ),
    }
)
keys = {
    "messages": st.one_of(chats, messages, values),
    "tools": st.one_of(values, st.lists(schemas, max_size=2), st.lists(st.fixed_dictionaries({"function": schemas}), max_size=2)),
    "gold": st.one_of(st.none(), values, st.fixed_dictionaries({"name": texts, "arguments": values})),
    "conversations": st.one_of(messages, values),
    "category": st.one_of(texts, values),
} | {
    name: st.one_of(texts, chats, values)
    for name in ("instruction", "input", "output", "history", "system", "prompt", "completion", "chosen", "rejected",
                 "context", "question", "answer", "answers", "answerable", "is_impossible", "text", "html")
}  # fmt: skip
rows = st.one_of(
    st.fixed_dictionaries({}, optional=keys),
    st.fixed_dictionaries({"messages": chats}, optional={"tools": keys["tools"], "gold": keys["gold"]}),
    st.fixed_dictionaries({key: keys[key] for key in ("prompt", "chosen", "rejected")}),
    st.fixed_dictionaries({key: keys[key] for key in ("instruction", "input", "output")}),
    st.fixed_dictionaries({key: keys[key] for key in ("context", "question", "answer")}),
    st.fixed_dictionaries({"text": texts}),
    values,
)
names = st.sampled_from(list(formats.FORMATS))


def sifted(name: str, content: bytes, format: str = formats.AUTO) -> list[Row]:
    """What ingest makes of a file, after the checks that hold for any; [] where it says in one line that no format fits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        source = sources.Source("file", str(path), None, sources.wheels.digest(path), format, [], {}, "cc0-1.0")
        try:
            [unit] = sources.units([source], RULES)
            found = list(sources.read(unit, RULES))
        except SystemExit as error:
            assert ": no format has its keys" in str(error)
            assert "\n" not in str(error)
            return []
        for row in found:
            check(row, str(path))
        records.write(Path(folder) / "found.jsonl", found)
        assert list(records.read(Path(folder) / "found.jsonl")) == found
        assert list(sources.read(unit, RULES)) == found
    return found


def check(row: Row, path: str) -> None:
    assert re.fullmatch(rf"{re.escape(path)}:(row )?[0-9]+", row["place"])
    if "reason" in row:
        assert re.fullmatch("[a-z_]+", row["reason"])
        assert row["detail"]
        assert "\n" not in row["detail"]
        return
    content = {key: value for key, value in row.items() if key != "place"}
    assert record.identified(content)["id"] == row["id"]
    assert row["licence"] == "cc0-1.0"
    assert row["source"] == Path(path).name
    said = [turn["content"] for turn in record.every_turn(row)] + ([row["text"]] if "text" in row else [])
    assert all(text.strip() and "\0" not in text for text in said)
    assert record.kind(row) in ("call", "chat", "text", "preference")


def line(row: Any) -> bytes:
    return json.dumps(row).encode()


@given(st.sampled_from([kind for kind in files.READERS if kind != ".parquet"]), st.binary(max_size=300), names)
@SPEAK
def test_any_bytes(kind: str, content: bytes, format: str) -> None:
    sifted(f"data{kind}", content, format)


@given(st.lists(rows, min_size=1, max_size=6), st.one_of(names, st.just(formats.AUTO)))
@SPEAK
def test_rows_of_any_shape(found: list[Any], format: str) -> None:
    assert len(sifted("data.jsonl", b"\n".join(map(line, found)), format)) in (0, len(found))
    assert len(sifted("data.json", b"[%s]" % b" ,\n".join(map(line, found)), format)) in (0, len(found))


@given(
    st.lists(st.one_of(rows.map(line), st.binary(max_size=30)), min_size=1, max_size=6),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.integers(0, 2),
    st.binary(max_size=2),
    names,
)
@SPEAK
def test_every_line_is_accounted_for(
    lines: list[bytes], end: bytes, mark: bytes, extra: int, dirt: bytes, format: str
) -> None:
    long = [b'{"text": "' + b"x" * (MAX_BYTES * 2) + b'"}'] * extra
    content = mark + end.join([*long, *(one[: len(one) // 2] + dirt + one[len(one) // 2 :] for one in lines)])
    seen = sum(bool(one.strip()) for one in content.removeprefix(mark).split(b"\n"))
    found = sifted("data.jsonl", content, format)
    assert len(found) == max(seen, 1)
    assert seen or found[0]["reason"] == "empty"
    assert sum(row.get("reason") == "too_big" for row in found) >= extra


@given(st.lists(rows, min_size=1, max_size=5), st.sampled_from([".gz", ".zst"]), st.data())
@SPEAK
def test_packed_files_that_break_off(found: list[Any], packing: str, data: st.DataObject) -> None:
    content = b"".join(line(row) + b"\n" for row in found)
    packed = gzip.compress(content) if packing == ".gz" else zstandard.compress(content)
    whole = sifted(f"data.jsonl{packing}", packed, "messages")
    assert [row.get("reason") for row in whole] == [
        row.get("reason") for row in sifted("data.jsonl", content, "messages")
    ]
    cut = data.draw(st.integers(1, len(packed) - 1))
    assert sifted(f"data.jsonl{packing}", packed[:cut], "messages")[-1]["reason"] == "unreadable"
    at = data.draw(st.integers(0, len(packed) - 1))
    sifted(f"data.jsonl{packing}", packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1 :], "messages")


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6), st.sampled_from([",", "\t"]))
@SPEAK
def test_tables(cells: list[tuple[str, str, str]], delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("instruction", "input", "output"), *cells])
    content = text.getvalue().encode("utf-8", errors="surrogatepass")
    found = sifted("data.csv" if delimiter == "," else "data.tsv", content, "alpaca")
    assert len(found) == len(cells)


lengths = st.sampled_from([1, 700, MAX_BYTES, 3 * MAX_BYTES])
table_lines = st.one_of(
    st.tuples(st.just("plain"), st.sampled_from("xé"), lengths),
    st.tuples(st.just("quoted"), st.sampled_from(["x", "é", "\t", ","]), lengths),
    st.sampled_from([("empty", "", 0), ("short", "", 0), ("wide", "", 0)]),
)


@given(st.lists(table_lines, min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@SPEAK
def test_every_line_of_a_table_is_accounted_for(drawn: list[tuple[str, str, int]], end: bytes, is_tsv: bool) -> None:
    separator = "\t" if is_tsv else ","
    kinds = {"plain": "{}:Q{}{}", "quoted": '{}:Q{}"{}"', "empty": "{1}", "short": "one cell", "wide": "1{1}2{1}3"}
    told = {"empty": "empty", "short": "columns", "wide": "columns"}
    lines, expected = [f"prompt{separator}completion"], []
    for number, (kind, character, length) in enumerate(drawn, start=2):
        lines.append(kinds[kind].format(number, separator, character * length))
        is_long = len(lines[-1].encode()) > MAX_BYTES
        blank = kind == "quoted" and character == "\t"
        expected.append((number, "too_big" if is_long else told.get(kind, "empty" if blank else None)))
    content = end.join(line.encode() for line in lines)
    found = sifted(f"data.{'tsv' if is_tsv else 'csv'}", content, "prompt-completion")
    assert [(int(row["place"].rpartition(":")[2]), row.get("reason")) for row in found] == expected
    said = [record.response(row) for row in found if "reason" not in row]
    assert said == [one * length for (_, one, length), (_, why) in zip(drawn, expected, strict=True) if why is None]


@given(st.lists(st.tuples(texts, st.one_of(st.none(), texts)), min_size=1, max_size=6), st.data())
@SPEAK
def test_parquet_whole_and_damaged(pairs: list[tuple[str, str | None]], data: st.DataObject) -> None:
    questions, answers = zip(*pairs, strict=True)
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": questions, "completion": list(answers)}), buffer)
    content = buffer.getvalue()
    assert len(sifted("data.parquet", content)) == len(pairs)
    at = data.draw(st.integers(0, len(content) - 1))
    sifted("data.parquet", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], "prompt-completion")
    assert sifted("data.parquet", content[:at], "prompt-completion")[-1]["reason"] == "unreadable"
