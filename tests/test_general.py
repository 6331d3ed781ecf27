"""General text for perplexity: what counts as a passage, how many are taken, and what is refused."""

import json
from pathlib import Path

import pytest

from commands.compose import composed
from scripts import general
from temper import metrics, params, records, wheels
from temper.benchmarks import Benchmark

LINES = ["short", "long enough to be a passage", "another line that is long enough"]


def source(path: Path, field: str) -> Benchmark:
    return Benchmark("own", "file", None, None, wheels.digest(path), str(path), [field], "cc0-1.0")


def test_turns_and_texts_are_read_line_by_line_and_the_fitting_ones_kept(tmp_path: Path) -> None:
    file = tmp_path / "prose.jsonl"
    turns = [[{"role": "user", "content": line}] for line in LINES]
    file.write_text(json.dumps({"turns": turns}) + "\n" + json.dumps({"turns": "\n".join(LINES)}) + "\n")
    found = list(general.passages(source(file, "turns"), 20, 30))
    assert found == [{"id": f"own/{number}", "text": LINES[1]} for number in (1, 2)]


def settings(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: int, passages: int) -> None:
    monkeypatch.chdir(folder)
    Path("prose.jsonl").write_text(
        "".join(json.dumps({"text": f"line {number:02d}"}) + "\n" for number in range(lines))
    )
    loaded = general.General([source(Path("prose.jsonl"), "text")], 1, 100, passages)
    monkeypatch.setattr(params, "load", lambda _section, _schema: loaded)


def test_passages_are_taken_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(tmp_path, monkeypatch, lines=10, passages=3)
    general.main()
    assert [row["text"] for row in records.read(general.OUT)] == ["line 00", "line 03", "line 06"]
    assert metrics.read("reports/general.json") == {"bytes": 21, "found": 10, "passages": 3}


@pytest.mark.parametrize("passages", [11, 0])
def test_a_number_of_passages_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passages: int
) -> None:
    settings(tmp_path, monkeypatch, lines=10, passages=passages)
    with pytest.raises(SystemExit, match=r"^general: 10 passages of 1 to 100 .*general\.passages") as error:
        general.main()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(file.stem for file in Path("conf/general").glob("*.yaml")))
def test_every_source_is_pinned(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"general={name}"]))
    loaded = params.load("general", general.General, tmp_path / "params.yaml")
    assert all(len(one.revision or "") == 40 or len(one.sha256 or "") == 64 for one in loaded.sources)
    assert all(one.licence for one in loaded.sources)
