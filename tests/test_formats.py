"""Rows in the forms that people keep them in, each taken for what it is."""

import csv
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from temper import calls, files, formats, record, rewards, sources
from temper.record import BadRow
from temper.records import Row
from temper.sandbox import Limits

RULES = sources.Rules("reject", 1_000_000, "It does not say.")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
ASK = {"role": "user", "content": "Is it raining in Paris?"}
SAY = {"role": "assistant", "content": "It is."}
EXCHANGE = [ASK, SAY]


def chat(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]


def made(row: Row, name: str | None = None) -> Row:
    name = name or formats.detect([row])
    assert name is not None
    return record.make(formats.converted(row, name, RULES.refusal), "mine.jsonl", "cc0-1.0", "mine")


@pytest.fixture
def sifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Row]]:
    """A function that reads raw/<name>, which a test has written, as ingest does."""
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()

    def read(name: str = "*", format: str = "auto", columns: dict[str, str] | None = None) -> list[Row]:
        source = sources.Source("file", f"raw/{name}", None, None, format, [], columns or {}, "cc0-1.0")
        return [row for unit in sources.units([source], RULES) for row in sources.read(unit, RULES)]

    return read


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": EXCHANGE}, EXCHANGE),
        ({"messages": json.dumps(EXCHANGE)}, EXCHANGE),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, SAY]}, chat("Hi", "It is.")),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, chat("Hi", "Ho")),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, chat("Add\n\n1 2", "3")),
        ({"instruction": "Greet", "input": "", "output": "Hi"}, chat("Greet", "Hi")),
        ({"instruction": "c", "input": None, "output": "d", "history": [["a", "b"]]}, chat("a", "b", "c", "d")),
        ({"prompt": "Hi", "completion": "Ho"}, chat("Hi", "Ho")),
        ({"prompt": "Hi", "response": "Ho"}, chat("Hi", "Ho")),
        ({"question": "1+1?", "answer": "2"}, chat("1+1?", "2")),
        ({"prompt": [ASK], "completion": [SAY]}, EXCHANGE),
        (
            {"system": "Be brief.", "prompt": "Hi", "completion": "Ho"},
            [{"role": "system", "content": "Be brief."}, *chat("Hi", "Ho")],
        ),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, *EXCHANGE]},
            [{"role": "system", "content": "Be brief."}, *EXCHANGE],
        ),
    ],
)
def test_chats(row: Row, messages: list[dict[str, str]]) -> None:
    found = made(row)
    assert found["messages"] == messages
    assert (found["kind"], found["tools"], found["licence"]) == ("chat", [], "cc0-1.0")
    assert "gold" not in found
    assert record.response(found) == "\n".join(turn["content"] for turn in messages if turn["role"] == "assistant")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [TOOL]},
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "wet"},
                SAY,
            ],
            "tools": json.dumps([TOOL]),
        },
        {
            "messages": [ASK, {"role": "assistant", "function_call": CALL["function"]}],
            "functions": [TOOL["function"]],
        },
        {
            "conversations": [
                {"from": "human", "value": ASK["content"]},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
                {"from": "observation", "value": "wet"},
                {"from": "gpt", "value": "It is."},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
    ],
)
def test_tool_calls_become_our_call_rows(row: Row) -> None:
    found = made(row)
    assert record.kind(found) == "call"
    assert found["tools"] == [{"name": "weather", "parameters": SCHEMA}]
    assert found["gold"] == {"name": "weather", "arguments": {"city": ["Paris"]}}
    assert found["messages"][0] == {"role": "system", "content": calls.system_prompt(found["tools"])}
    assert found["messages"][1] == ASK
    assert calls.parse(found["messages"][-1]["content"]) == {"name": "weather", "arguments": {"city": "Paris"}}
    assert len(found["messages"]) == 3


def test_a_system_turn_keeps_its_text_below_the_signatures() -> None:
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found = made({"messages": [system, ASK, answer], "tools": [TOOL]})
    assert found["messages"][0]["content"] == calls.system_prompt(found["tools"]) + "\n\nBe brief."
    assert len(found["messages"]) == 3


def test_our_own_calls_pass_through() -> None:
    answer = {"role": "assistant", "content": '{"name": "weather", "arguments": {"city": "Paris"}}'}
    own = {"messages": [ASK, answer], "tools": [{"name": "weather", "parameters": SCHEMA}]}
    gold = {"name": "weather", "arguments": {"city": ["Paris", "paris"]}}
    assert made(own | {"gold": gold})["gold"] == gold
    assert made(own) == record.make(own, "mine.jsonl", "cc0-1.0", "mine")
    assert "kind" not in made(own)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
        {"prompt": "Hi", "chosen": chat("Hi", "Ho"), "rejected": chat("Hi", "No"), "messages": chat("Hi", "Ho")},
        {"prompt": chat("Hi"), "chosen": chat("", "Ho")[1:], "rejected": chat("", "No")[1:]},
        {"chosen": chat("Hi", "Ho"), "rejected": chat("Hi", "No")},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Ho", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "Hi", "chosen": json.dumps(chat("", "Ho")[1:]), "rejected": "No"},
    ],
)
def test_preference_pairs(row: Row) -> None:
    found = made(row)
    assert found["kind"] == "preference"
    assert found["messages"] == chat("Hi")
    assert found["chosen"] == [{"role": "assistant", "content": "Ho"}]
    assert found["rejected"] == [{"role": "assistant", "content": "No"}]
    assert (record.request(found), record.response(found)) == ("Hi", "Ho")
    assert [turn["content"] for turn in record.every_turn(found)] == ["Hi", "Ho", "No"]


def test_a_transcript_of_several_turns() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nwith a paragraph\n\nHuman: c\n\nAssistant: "
    found = made({"chosen": start + "d", "rejected": start + "e"})
    assert found["messages"] == chat("a", "b\n\nwith a paragraph", "c")
    assert (found["chosen"][0]["content"], found["rejected"][0]["content"]) == ("d", "e")


def test_a_function_that_is_asked_for_keeps_its_tests() -> None:
    asked = {"prompt": "def double(x):\n", "completion": "    return 2 * x\n", "entry_point": "double"}
    tests = "def check(candidate):\n    assert candidate(2) == 4\n"
    found = made(asked | {"test": tests})
    assert (found["test"], rewards.task(found)) == (tests, "code")
    limits = Limits(seconds=2, memory_mb=512, disk_mb=4, namespaces=False)
    assert [rewards.code(answer, found, limits) for answer in (record.response(found), "    return x\n")] == [1.0, 0.0]
    # Names that other people's data may use for anything.
    for other in ({"test": tests, "entry_point": "not a name"}, {"test": True}, {"test": None}):
        assert rewards.task(made({key: asked[key] for key in ("prompt", "completion")} | other)) is None


def test_questions_on_a_passage() -> None:
    row = {"context": "It rains in Paris.", "question": "Where?", "answer": "In Paris."}
    found = made(row)
    assert found["messages"] == chat("It rains in Paris.\n\nQuestion: Where?", "In Paris.")
    assert found["answerable"] is True
    squad = made(row | {"answer": None, "answers": {"text": ["In Paris.", "Paris"], "answer_start": [9, 12]}})
    assert squad["answerable"] is False
    del row["answer"]
    assert made(row | {"answers": {"text": ["In Paris."]}})["messages"] == found["messages"]
    assert made(row | {"context": ["It rains", "in Paris."], "answers": ["x"]})["messages"][0]["content"].startswith(
        "It rains\n\nin Paris."
    )


@pytest.mark.parametrize("marks", [{"answer": ""}, {"answers": {"text": []}}, {"is_impossible": True}])
def test_questions_without_an_answer_get_the_stated_one(marks: Row) -> None:
    found = made({"context": "It rains.", "question": "Why?"} | marks)
    assert found["answerable"] is False
    assert record.response(found) == "It does not say."


def test_an_unanswerable_question_may_bring_its_own_answer() -> None:
    row = {"context": "It rains.", "question": "Why?", "answer": "Nobody knows.", "answerable": "false"}
    assert record.response(made(row)) == "Nobody knows."
    assert made(row)["answerable"] is False


def test_text_and_pages() -> None:
    assert made({"text": "Once upon a time."})["text"] == "Once upon a time."
    story = "The fox jumped over the dog, and the dog did not mind it at all, since it was asleep in the sun. " * 3
    page = f"<html><body><nav><a href='/'>Home</a></nav><article><h1>Foxes</h1><p>{story}</p></article></body></html>"
    found = made({"html": page})
    assert story.strip() in found["text"]
    assert "Home" not in found["text"]
    assert (found["kind"], record.response(found), record.request(found)) == ("text", found["text"], "")
    with pytest.raises(BadRow, match="no main text"):
        made({"html": "<html><body></body></html>"})
    with pytest.raises(BadRow, match="a page of 60000 tags"):
        made({"html": "<p>" * 60_000})


@pytest.mark.parametrize(
    ("row", "name", "reason", "detail"),
    [
        ({"instruction": "x"}, "alpaca", "columns", "this row has instruction"),
        ({"instruction": 5, "output": "x"}, "alpaca", "type", "instruction is a int"),
        ({"instruction": "x", "output": "y", "history": "z"}, "alpaca", "type", "history"),
        ({"prompt": "x", "completion": ["y"]}, "prompt-completion", "type", "role and content"),
        ({"prompt": "1 + 2?", "completion": "7", "label": False}, None, "disliked", "chosen and rejected"),
        ({"prompt": "1 + 2?", "completion": "7", "label": "False"}, None, "disliked", "chosen and rejected"),
        ({"chosen": "a", "rejected": "b"}, "preference", "columns", "without a prompt"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "preference", "same", "are one"),
        ({"prompt": "x", "chosen": 1, "rejected": "a"}, "preference", "type", "an answer is a int"),
        ({"chosen": chat("a", "b"), "rejected": chat("c", "d")}, "preference", "roles", "do not begin alike"),
        ({"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "x", "c", "d")}, "preference", "roles", "chosen"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAY]}, "messages", "type", "'image'"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [CALL, CALL]}]}, "messages", "parallel", "2 calls"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]}, "messages", "type", "without a name"),
        ({"messages": EXCHANGE, "tools": [TOOL]}, "messages", "no_gold", "no call either"),
        ({"messages": "[{"}, "messages", "malformed", "not JSON"),
        ({"context": "x", "question": "y", "answer": "", "answerable": True}, "rag", "empty", "assistant turn"),
        ({"text": None}, "text", "type", "text is missing"),
        ({"text": "\u200f\n"}, "text", "empty", "without content"),
        ({"text": "a\0b"}, "text", "encoding", "NUL"),
    ],
)
def test_bad_rows(row: Row, name: str, reason: str, detail: str) -> None:
    with pytest.raises(BadRow, match=detail) as refusal:
        made(row, name)
    assert refusal.value.reason == reason


def test_a_backslash_before_a_code_is_no_nul() -> None:
    assert made({"text": r"Escape it as \u0000."})["text"] == r"Escape it as \u0000."


def test_tools_whose_parts_are_null_or_mistyped() -> None:
    """Parquet gives each tool the fields of all; and a schema may hold anything."""
    nulls = {"properties": {"city": {"type": "string"}, "size": None}, "required": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found = made({"messages": [ASK, answer], "tools": [{"function": {"name": "weather", "parameters": nulls}}]})
    assert found["tools"] == [{"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}]
    parts: list[Row] = [{"required": [{}]}, {"type": ["string", 5]}, {"properties": {"city": 1}}]
    for part in parts:
        tool = {"name": "weather", "parameters": part}
        with pytest.raises(BadRow):
            made({"messages": [ASK, answer], "tools": [{"function": tool}]})


def test_each_file_is_taken_for_what_most_of_its_rows_are(sifted: Callable[..., list[Row]]) -> None:
    Path("raw/a.jsonl").write_text('{"oops"\n' + '{"instruction": "x", "output": "y"}\n' * 2 + '{"text": "z"}\n')
    Path("raw/b.jsonl").write_text('{"text": "z"}\n')
    assert [row.get("kind", row.get("reason")) for row in sifted()] == ["malformed", "chat", "chat", "columns", "text"]
    Path("raw/c.jsonl").write_text('{"frage": "x", "antwort": "y"}\n')
    with pytest.raises(
        SystemExit, match=r"^raw/c\.jsonl: no format has its keys \(frage, antwort\): name them in `col"
    ):
        sifted("c.jsonl")
    assert sifted("c.jsonl", columns={"question": "frage", "answer": "antwort"})[0]["messages"] == chat("x", "y")


TABLE = [("frage", "antwort"), ("Was, bitte?", 'Ein "Zitat",\nzweizeilig'), ("Wo?", "Hier")]
NAMES = {"instruction": "frage", "output": "antwort"}


def rows_of_table() -> list[dict[str, str]]:
    return [dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]]


def as_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows(TABLE)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "t.csv": as_csv,
    "t.tsv": lambda path: as_csv(path, "\t"),
    "t.jsonl": lambda path: path.write_text("\n\n".join(map(json.dumps, rows_of_table()))),
    "t.json": lambda path: path.write_text(json.dumps(rows_of_table(), indent=2)),
    "t.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(rows_of_table()), path),
    "t.ndjson": lambda path: path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r).encode() for r in rows_of_table())
    ),
}


PACKED_WRITERS = [f"{name}{end}" for name in WRITERS if name != "t.parquet" for end in files.PACKED]


@pytest.mark.parametrize("name", [*WRITERS, *PACKED_WRITERS])
def test_one_table_in_every_kind_of_file(sifted: Callable[..., list[Row]], name: str) -> None:
    packing = Path(name).suffix
    plain = Path("raw") / (name.removesuffix(packing) if packing in files.PACKED else name)
    WRITERS[plain.name](plain)
    if packing in files.PACKED:
        content = plain.read_bytes()
        plain.unlink()
        packed = (
            gzip.compress(content)
            if packing == ".gz"
            else zstandard.compress(content[:9]) + zstandard.compress(content[9:])
        )
        Path("raw", name).write_bytes(packed)
    found = sifted(columns=NAMES)
    assert [row["messages"] for row in found] == [chat(*row) for row in TABLE[1:]]
    assert {row["category"] for row in found} == {"t"}
    assert {row["source"] for row in found} == {name}


def test_the_same_content_from_the_same_source_has_the_same_id(sifted: Callable[..., list[Row]]) -> None:
    Path("raw/a.jsonl").write_text('{"text": "caf\\u00e9"}\n{"text":   "café", "note": 1}\n')
    first, second = sifted()
    assert first["id"] == second["id"]
    Path("raw/b.jsonl").write_text('{"text": "café"}\n')
    assert sifted("b.jsonl")[0]["id"] != first["id"]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", b'{"text": 1}\n\n{"text": "x"', ["raw/a.jsonl:1 type", "raw/a.jsonl:3 malformed"]),
        ("a.json", b'[{"text": "x"}, {"text": }, 5]', ["raw/a.json:row 2 malformed", "raw/a.json:row 3 malformed"]),
        ("a.json", b'[{"text": "x"}, {"text": "[y"', ["raw/a.json:row 2 malformed"]),
        ("a.json", b'[{"text": "x"}] []', ["raw/a.json:row 2 malformed"]),
        ("a.csv", b'text\n"a\nb"\nc,d\n\xff\n', ["raw/a.csv:4 columns", "raw/a.csv:5 malformed"]),
        ("a.csv", b'text\nfine\n"open\nend\n', ["raw/a.csv:3 malformed"]),
        ("a.csv", b'text,text\n"open\nend\n', ["raw/a.csv:1 columns"]),
        ("a.csv", b'te"xt,"b\nfine,b\n', ["raw/a.csv:1 columns"]),
        ("a.csv", b'\ntext,b\n,\n\n"a\nb",c\n', ["raw/a.csv:3 empty"]),
        ("a.json", b'{\n "text": "x"\n}', []),
        ("a.json", b'{"version": 1, "data": [\n{"text": "x"},\n5]}', ["raw/a.json:row 2 malformed"]),
        ("a.json", b'{"data": [{"text": "x"}]}', []),
        ("a.json", b'{"text": "x"}\n{\n{"text": "y"}', ["raw/a.json:2 malformed"]),
        ("a.json", b'{"text": "x\n{"text": "y"}', ["raw/a.json:1 malformed"]),
        ("a.json", b'{\n "text": "x",\n "more": \n}', ["raw/a.json:1 malformed"]),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', ["raw/a.jsonl:1 malformed"]),
        ("a.jsonl", b'{"text": NaN}\n{"text": ' + b"9" * 5000 + b"}\n", ["raw/a.jsonl:1 malformed", "raw/a.jsonl:2 malformed"]),
        ("a.jsonl", b'{"text": ' + b"[" * 101 + b"]" * 101 + b"}\n", ["raw/a.jsonl:1 nested"]),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", ["raw/a.jsonl:1 nested"]),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), ["raw/a.jsonl:1 malformed"]),
        ("a.parquet", b"PAR1 it is not", ["raw/a.parquet:row 1 unreadable"]),
        ("a.txt", b"caf\xe9", ["raw/a.txt:1 malformed"]),
    ],
)  # fmt: skip
def test_what_is_no_row_is_named(
    sifted: Callable[..., list[Row]], name: str, content: bytes, places: list[str]
) -> None:
    Path("raw", name).write_bytes(content)
    assert [f"{row['place']} {row['reason']}" for row in sifted(format="text") if "reason" in row] == places


def test_a_line_of_ten_megabytes(sifted: Callable[..., list[Row]]) -> None:
    long = json.dumps({"text": "long " * 2_000_000})
    for name, content in (("a.jsonl", f'{long}\n{{"text": "x"}}\n'), ("a.json", f'[{long}, {{"text": "x"}}]')):
        Path("raw", name).write_text(content)
        first, second = sifted(name)
        assert (first["reason"], second["text"]) == ("too_big", "x")
    taken, _ = files.read(Path("raw/a.jsonl"), 20_000_000)
    assert taken[1] == json.loads(long)


def test_thousands_of_turns(sifted: Callable[..., list[Row]]) -> None:
    long, odd = chat(*"ab" * 4000), chat(*"ab" * 4000, "c")
    Path("raw/a.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for turns in (long, odd)))
    kept, left = sifted()
    assert kept["messages"] == long
    assert left["reason"] == "roles"
    assert len(left["detail"]) < 200


@pytest.mark.parametrize("size", [1, 40, 333, 10_000])
def test_parts_of_a_large_file_are_the_file(
    sifted: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rows = [json.dumps({"text": f"Row {number} " * (number % 7)}) for number in range(60)]
    Path("raw/a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join([*rows, "{", "", ""]).encode())
    monkeypatch.setattr(files, "CHUNK", 64)
    whole = sifted()
    assert whole[-1]["place"] == "raw/a.jsonl:121"
    monkeypatch.setattr(sources, "PART", size)
    assert sifted() == whole
    assert (len(files.spans(Path("raw/a.jsonl"), size)) > 1) == (size < 10_000)
    Path("raw/a.jsonl.gz").write_bytes(gzip.compress(Path("raw/a.jsonl").read_bytes()))
    assert len(sifted("a.jsonl.gz")) == len(whole)


def test_a_file_of_no_known_type_is_refused(sifted: Callable[..., list[Row]]) -> None:
    Path("raw/a.docx").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"^a\.docx: no type that can be read: rename it to one of \.jsonl"):
        sifted()


def test_a_unit_can_be_sent_to_another_process(sifted: Callable[..., list[Row]]) -> None:
    Path("raw/a.jsonl").write_text('{"text": "x"}\n')
    found = sifted()
    source = sources.Source("file", "raw/a.jsonl", None, None, "auto", [], {}, "cc0-1.0")
    [unit] = pickle.loads(pickle.dumps(sources.units([source], RULES)))
    assert list(sources.read(unit, RULES)) == found
