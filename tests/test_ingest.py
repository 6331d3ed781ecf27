"""From a user's own file to rows, and what happens to the rows that are not fit."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands.compose import composed
from scripts import ingest
from temper import calls, downloads, formats, lengths, metrics, mismatch, params, record, records, shards
from temper.records import Row

VERBS = ["paint", "measure", "translate", "cook", "repair", "forecast", "borrow", "deliver", "compose", "weigh"]
NOUNS = ["fence", "river", "poem", "lentils", "bicycle", "storm", "novel", "parcel", "symphony", "melon"]


def words(_: Path) -> lengths.Count:
    """Stands in for the base model's tokenizer, which a test without models/base has not."""
    return lambda rows: [len(" ".join([row.get("text", ""), *_said(row)]).split()) for row in rows]


def _said(row: Row) -> list[str]:
    return [turn["content"] for turn in record.every_turn(row)]


def line(number: int, answer: str | None = None) -> dict[str, Any]:
    tool = {"name": f"{VERBS[number]}_{NOUNS[number]}", "parameters": {"properties": {"size": {"type": "integer"}}}}
    call = {"name": tool["name"], "arguments": {"size": number}}
    user = f"Please {VERBS[number]} a {NOUNS[number]} sized {number}"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer or json.dumps(call)}]
    return {"messages": messages, "tools": [tool]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that runs the stage over raw/*.jsonl in an empty tree and returns its metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(lengths, "counter", words)
    ingest.counter.cache_clear()
    Path("raw").mkdir()

    def stage(**settings: Any) -> dict[str, Any]:
        source = {"kind": "file", "id": "raw/*.jsonl", "revision": None, "sha256": None, "format": "auto"}
        section = {
            "sources": [source | {"files": [], "columns": {}, "licence": "cc0-1.0"} | settings.pop("source", {})],
            "shard_rows": 1000,
            "max_tokens": 100,
            "max_bytes": 100_000,
            "unanswerable": {"least": 0.2, "most": 0.5, "answer": "It does not say."},
            "null_share": 0.0,
            "bad_rows": "fail",
            "limit": None,
            "seed": 17,
        }
        executor = {"kind": "local", "workers": 1}
        OmegaConf.save({"ingest": section | settings, "executor": executor}, "params.yaml")
        ingest.main()
        return metrics.read("reports/ingest.json")

    return stage


def write(*lines: Any, name: str = "chats") -> None:
    texts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    Path(f"raw/{name}.jsonl").write_bytes(b"\n".join(texts) + b"\n")


def test_own_rows_are_read_in_order(run: Callable[..., dict[str, Any]]) -> None:
    write(line(1), line(0), name="b")
    write(line(2), name="a")
    assert run()["kept"] == 3
    rows = list(shards.read("data/ingest"))
    assert [row["gold"]["arguments"]["size"] for row in rows] == [[2], [1], [0]]
    assert [row["source"] for row in rows] == ["a.jsonl", "b.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b'{"messages": [', "not JSON"),
        (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
        (b"[1]", "a list, where each line must be one JSON object"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "roles are assistant"),
        ({"messages": [{"role": "user", "content": ""}]}, "a user turn without content"),
    ],
)
def test_a_bad_line_is_named_or_set_aside(run: Callable[..., dict[str, Any]], bad: Any, found: str) -> None:
    write(line(0), bad, line(1))
    with pytest.raises(SystemExit) as refusal:
        run()
    message = str(refusal.value)
    assert message.startswith(f"raw/chats.jsonl:2: {found}")
    assert message.endswith("set ingest.bad_rows to reject")
    assert "\n" not in message
    assert not [path for path in Path("data").rglob("*") if path.is_file()]

    found_metrics = run(bad_rows="reject")
    assert (found_metrics["seen"], found_metrics["kept"]) == (3, 2)
    [left] = records.read("data/rejected/ingest.jsonl")
    assert left["place"] == "raw/chats.jsonl:2"
    assert found in left["detail"]
    assert found_metrics[f"rejected_{left['reason']}"] == 1


def test_a_source_that_is_not_there_or_empty_or_changed(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(SystemExit, match=r"^raw/\*\.jsonl: no such file: correct `id`"):
        run()
    Path("raw/none.jsonl").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^raw/none\.jsonl: empty, .*: fill it, delete it, or set ingest\.bad_rows"):
        run()
    write(line(1), name="some")
    found = run(bad_rows="reject")
    assert (found["seen"], found["kept"], found["rejected_empty"]) == (2, 1, 1)
    assert [row["place"] for row in records.read("data/rejected/ingest.jsonl")] == ["raw/none.jsonl:1"]
    write(line(0), name="none")
    with pytest.raises(SystemExit, match=r"^raw/none\.jsonl: sha256 is [0-9a-f]{64}, conf/data expects 00"):
        run(source={"id": "raw/none.jsonl", "sha256": "0" * 64})
    with pytest.raises(SystemExit, match="no reader for 'file/parquet': choose one of auto, preference, messages"):
        run(source={"format": "parquet"})


def test_files_of_one_name_in_several_folders_are_several_sources(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for number, folder in enumerate(("general", "safety")):
        Path("raw", folder).mkdir()
        write(line(number), name=f"{folder}/x")
    for id in ("raw/*/*.jsonl", f"{tmp_path}/raw/*/*.jsonl"):
        run(source={"id": id})
        assert [row["source"] for row in shards.read("data/ingest")] == ["general/x.jsonl", "safety/x.jsonl"]


def test_a_file_whose_edits_dvc_would_not_notice_is_refused(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0))
    Path("elsewhere.jsonl").write_bytes(Path("raw/chats.jsonl").read_bytes())
    with pytest.raises(SystemExit, match=r"^elsewhere\.jsonl: outside raw/"):
        run(source={"id": "elsewhere.jsonl"})
    digest = hashlib.sha256(Path("elsewhere.jsonl").read_bytes()).hexdigest()
    assert run(source={"id": "elsewhere.jsonl", "sha256": digest})["kept"] == 1


def test_settings_that_make_no_sense(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0))
    with pytest.raises(SystemExit, match=r"ingest\.bad_rows is 'skip': choose fail or reject"):
        run(bad_rows="skip")
    with pytest.raises(SystemExit, match=r"ingest\.null_share is 1\.0"):
        run(null_share=1.0)
    with pytest.raises(SystemExit, match=r"every row was rejected, see data/rejected/ingest\.jsonl"):
        run(max_tokens=1)
    assert [row["reason"] for row in records.read("data/rejected/ingest.jsonl")] == ["too_long"]


def test_long_rows_and_rows_beyond_the_limit_are_rejected(run: Callable[..., dict[str, Any]]) -> None:
    long = line(3)
    long["messages"][0]["content"] += " very" * 100
    write(line(0), long, line(1), line(2))
    found = run(limit=2)
    assert (found["seen"], found["kept"], found["rejected_too_long"], found["rejected_limit"]) == (4, 2, 1, 1)
    assert found["tokens_max"] <= 100


def test_missing_nulls_are_requests_under_tools_that_cannot_serve_them(run: Callable[..., dict[str, Any]]) -> None:
    write(*(line(number) for number in range(10)), line(3, "null"))
    found = run(null_share=0.5)
    rows = list(shards.read("data/ingest"))
    made = [row for row in rows if row["category"] == mismatch.CATEGORY]
    assert found["null_share"] == 0.5
    assert found["seen"] == found["kept"] == len(rows) == 20
    assert len({record.request(row) for row in made}) == len(made) == 9
    for row in made:
        [verb] = [verb for verb in VERBS if verb in record.request(row)]
        assert record.response(row) == "null"
        assert row["gold"] is None
        assert verb not in row["tools"][0]["name"]
        assert row["messages"][0]["content"] == calls.system_prompt(row["tools"])


def test_the_seed_chooses_the_made_rows(run: Callable[..., dict[str, Any]]) -> None:
    write(*(line(number) for number in range(10)))

    def made(seed: int) -> bytes:
        run(null_share=0.3, seed=seed)
        return Path("data/ingest/mismatched.jsonl").read_bytes()

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("cut", ["shards", "files"])
def test_the_made_rows_do_not_depend_on_how_rows_lie(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    monkeypatch.setattr(ingest, "BLOCK", 16)
    rows = [line(number % 10) | {"category": "c"} for number in range(70)]
    for number, row in enumerate(rows):
        row["messages"][0]["content"] += f" and {number}"
    found = []
    for pieces in (1, 7, 64):
        for path in Path("raw").iterdir():
            path.unlink()
        files = [rows[number::pieces] for number in range(pieces)] if cut == "files" else [rows]
        for number, part in enumerate(files):
            write(*part, name=f"part{number:02d}")
        run(null_share=0.4, shard_rows=-(-len(rows) // pieces) if cut == "shards" else 1000)
        made = records.read("data/ingest/mismatched.jsonl")
        found.append([(record.request(row), row["tools"]) for row in made])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 47
    assert not [path for path in Path("data/ingest").iterdir() if path.suffix != ".jsonl"]


def text(number: int) -> dict[str, str]:
    return {"text": f"The {VERBS[number % 10]} of the {NOUNS[number % 7]} in the year {number}"}


def test_every_kind_of_row_in_one_run(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0), line(1), line(2, "null"), name="calls")
    write({"prompt": "Hi", "completion": "Ho"}, name="chats")
    write({"prompt": "Hi", "chosen": "Ho", "rejected": "No no no"}, name="pairs")
    write(text(0), text(1), name="texts")
    found = run(null_share=0.4)
    assert [found[f"kind_{kind}"] for kind in ("call", "chat", "preference", "text")] == [3, 1, 1, 2]
    assert [found[f"format_{name}"] for name in ("messages", "prompt-completion", "preference", "text")] == [1] * 4
    assert found["null_share"] == pytest.approx(1 / 3)  # of the call rows: one more null would exceed the share
    assert found["tokens_max"] <= 100
    kinds = [record.kind(row) for row in shards.read("data/ingest")]
    assert kinds == ["call"] * 3 + ["chat", "preference", "text", "text"]
    assert all(row.keys().isdisjoint({"place", "tokens"}) for row in shards.read("data/ingest"))


def test_a_preference_row_is_as_long_as_its_longer_answer(run: Callable[..., dict[str, Any]]) -> None:
    write({"prompt": "Hi", "chosen": "Ho", "rejected": "No " * 120}, {"prompt": "Hi", "chosen": "a", "rejected": "b"})
    found = run()
    assert (found["kept"], found["rejected_too_long"]) == (1, 1)


def test_without_a_limit_nothing_is_counted(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "counter", lambda model: pytest.fail("the tokenizer was loaded"))
    write(*(line(number) for number in range(10)))
    found = run(max_tokens=None, null_share=0.5)
    assert found["kept"] == 20
    assert "tokens" not in found


def test_a_chat_that_the_template_refuses_is_rejected(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lengths, "counter", lambda model: lambda rows: [None if "bad" in str(row) else 5 for row in rows]
    )
    write(text(0), {"text": "bad"}, text(1))
    found = run()
    assert (found["seen"], found["kept"], found["rejected_template"]) == (3, 2, 1)
    assert [row["place"] for row in records.read("data/rejected/ingest.jsonl")] == ["raw/chats.jsonl:2"]


def test_a_category_a_row_does_not_flood_the_metrics(run: Callable[..., dict[str, Any]]) -> None:
    write(*(text(number) | {"category": f"c{number}"} for number in range(150)))
    found = run()
    named = [key for key in found if key.startswith("category_") and key != "category_other"]
    assert (len(named), found["category_other"]) == (100, 50)


def question(answer: str) -> dict[str, str]:
    return {"context": "It rains.", "question": f"Is it {answer or 'snow'}?", "answer": answer}


def test_the_share_of_unanswerable_questions_has_limits(run: Callable[..., dict[str, Any]]) -> None:
    write(question("rain"), question("wet"), question(""))
    assert run()["unanswerable_share"] == pytest.approx(1 / 3)
    write(question("rain"))
    with pytest.raises(
        SystemExit, match=r"^conf/data: 0\.000 of the questions are unanswerable, .* allows 0\.2 to 0\.5"
    ):
        run()
    write(question("rain"), question(""), question(""))
    with pytest.raises(SystemExit, match=r"0\.667 of the questions are unanswerable"):
        run()


def test_batches_keep_order_and_places(run: Callable[..., dict[str, Any]]) -> None:
    count = lengths.BATCH * 2 + 7
    write(*({"text": "long " * 200} if number % 5 == 0 else text(number) for number in range(count)))
    found = run()
    assert found["seen"] == count
    left = [row["place"] for row in records.read("data/rejected/ingest.jsonl")]
    assert left == [f"raw/chats.jsonl:{number + 1}" for number in range(0, count, 5)]
    kept = [row["text"] for row in shards.read("data/ingest")]
    assert kept == [text(number)["text"] for number in range(count) if number % 5]


def test_a_source_needs_a_licence_and_a_known_kind(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0))
    with pytest.raises(SystemExit, match="no licence: state it"):
        run(source={"licence": " "})
    with pytest.raises(SystemExit, match="no kind 'ftp': choose one of wheel, hub, url, file"):
        run(source={"kind": "ftp"})


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the files in web/."""
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once_at_its_hash(run: Callable[..., dict[str, Any]], served: str) -> None:
    content = json.dumps(text(0)).encode() + b"\n{\n"
    Path("web/rows.jsonl").write_bytes(content)
    source = {"kind": "url", "id": f"{served}/rows.jsonl?token=abc", "sha256": hashlib.sha256(content).hexdigest()}
    assert run(source=source)["rejected_malformed"] == 1
    Path("web/rows.jsonl").unlink()
    assert run(source=source)["kept"] == 1, "a second run takes it from the cache"
    [row] = shards.read("data/ingest")
    assert row["source"] == f"{served.rpartition(':')[0]}/rows.jsonl"
    [left] = records.read("data/rejected/ingest.jsonl")
    assert left["place"] == f"{row['source']}:2"


def test_a_url_that_cannot_be_had(run: Callable[..., dict[str, Any]], served: str) -> None:
    Path("web/rows.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match=r"rows\.jsonl: sha256 is 44136fa3\w+, conf/data expects 0000"):
        run(source={"kind": "url", "id": f"{served}/rows.jsonl", "sha256": "0" * 64})
    with pytest.raises(SystemExit, match=r"other\.jsonl: the server answered 404"):
        run(source={"kind": "url", "id": f"{served}/other.jsonl", "sha256": "0" * 64})
    with pytest.raises(SystemExit, match="a URL without sha256"):
        run(source={"kind": "url", "id": f"{served}/rows.jsonl"})
    with pytest.raises(
        SystemExit, match=r"^http://127\.0\.0\.1/rows\.jsonl: not downloaded \(ConnectError\)"
    ) as refusal:
        run(source={"kind": "url", "id": "http://user:secret@127.0.0.1:9/rows.jsonl?key=secret", "sha256": "0" * 64})
    assert "secret" not in str(refusal.value)
    assert not [path for path in Path("cache").rglob("*") if path.is_file()]


COMMIT = "e53f048856ff4f594e959d75785d2c2d37b678ee"


def test_splits_of_a_hub_repository(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "snapshot"
    for name in ("main/train-00000-of-00002", "main/train-00001-of-00002", "main/test-00000-of-00001", "other/train-0"):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / f"{name}.jsonl").write_text(json.dumps(text(len(name))) + "\n{\n")
    (hub / "README.md").write_text("About the data.")
    monkeypatch.setattr(downloads, "_snapshot", lambda id, revision, patterns: hub)
    source = {"kind": "hub", "id": "some/rows", "revision": COMMIT}
    assert [
        run(source=source | {"files": files})["kept"] for files in (["main/train"], ["train"], [], ["other/*"])
    ] == [2, 3, 4, 1]
    run(source=source | {"files": ["main/test"]})
    [row] = shards.read("data/ingest")
    assert (row["source"], row["category"]) == (f"some/rows {COMMIT}/main/test-00000-of-00001.jsonl", "rows")
    [left] = records.read("data/rejected/ingest.jsonl")
    assert left["place"] == f"{row['source']}:2", "no path of the cache"
    with pytest.raises(SystemExit, match="no validation in it: correct `files`"):
        run(source=source | {"files": ["validation"]})


def test_a_hub_repository_that_cannot_be_had(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="revision is 'main', where a commit"):
        run(source={"kind": "hub", "id": "some/rows", "revision": "main"})
    # As on a machine without network: the Hub's client reads its settings when it is imported.
    code = f"from temper import downloads; downloads.hub('some/rows', '{COMMIT}', ['train'])"
    root = Path(ingest.__file__).resolve().parent.parent
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(
        f"conf/data: some/rows at {COMMIT}: the Hub did not give it (LocalEntryNotFoundError): check"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("preset", sorted(file.stem for file in Path("conf/data").glob("*.yaml")))
def test_every_preset_of_data_is_readable(tmp_path: Path, preset: str) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"data={preset}"]))
    settings = ingest.checked(params.load("ingest", ingest.Ingest, tmp_path / "params.yaml"))
    for source in settings.sources:
        assert source.format in ("auto", "bfcl", *formats.FORMATS)
        assert source.kind in ("wheel", "hub", "url", "file")
        assert source.licence


MEASURE = """
import json, resource, sys
from pathlib import Path
from scripts import ingest
from temper import lengths
lengths.counter = lambda model: lambda rows: [len(row["messages"][0]["content"].split()) for row in rows]
ingest.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_memory_does_not_grow_with_the_input(run: Callable[..., dict[str, Any]], ending: str) -> None:
    def peak(rows: int) -> int:
        """KiB that ingest needs for so many rows of two kilobytes."""
        row = {"prompt": "Why? " * 99, "completion": "So. " * 400}
        with Path(f"raw/many{ending}").open("w") as out:
            out.write("[" if ending == ".json" else "")
            for number in range(rows):
                out.write(
                    ("," if number and ending == ".json" else "") + json.dumps(row | {"system": str(number)}) + "\n"
                )
            out.write("]" if ending == ".json" else "")
        environment = os.environ | {"PYTHONPATH": str(Path(ingest.__file__).resolve().parent.parent)}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    write(text(0), name="many")
    run()  # writes params.yaml
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("*.jsonl", f"many{ending}"))
    few, many = peak(500), peak(15_000)
    assert many - few < 12_000, f"30 MB more of input took {many - few} KiB more"


def test_where_a_synthesized_row_comes_from_stays_with_it(run: Callable[..., dict[str, Any]]) -> None:
    origin = {"teacher": "a-model", "method": "distil", "parents": ["a"]}
    write(line(0) | {"provenance": origin})
    run()
    assert [row["provenance"] for row in shards.read("data/ingest")] == [origin]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, "cc0-1.0"),
        ({"licence": " "}, "cc0-1.0"),
        ({"licence": 3, "provenance": "a book"}, "cc0-1.0"),
        ({"licence": "cc0-1.0"}, "cc0-1.0"),
        ({"license": "mit"}, "cc0-1.0 AND mit"),
        ({"licence": "mit AND openai-terms"}, "cc0-1.0 AND mit AND openai-terms"),
        ({"provenance": {"teacher_licence": "openai-terms"}}, "cc0-1.0 AND openai-terms"),
    ],
)
def test_the_licence_that_a_row_states_stays_with_it(
    run: Callable[..., dict[str, Any]], stated: dict[str, Any], expected: str
) -> None:
    write(line(0) | stated)
    run()
    assert [row["licence"] for row in shards.read("data/ingest")] == [expected]
