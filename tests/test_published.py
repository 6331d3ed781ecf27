"""Published data sets are read as stated, here or by the environment that can."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from temper import published
from temper.published import Published
from tests.test_human_labels import labels, written


def test_rows_are_those_of_the_file_at_its_hash(tmp_path: Path) -> None:
    of = written(tmp_path / "a.jsonl", {"a": 1}, {"a": None})
    assert published.rows(of) == [{"a": 1}, {"a": None}]
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=r"'labels': sha256 of .*a\.jsonl is [0-9a-f]{64}, not"):
        published.rows(of)


def test_another_environment_reads_what_this_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == published.NEEDED else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    of = written(tmp_path / "a.jsonl", {"text": "é", "parts": [{"b": 2}]})
    assert published.rows(of) == [{"text": "é", "parts": [{"b": 2}]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"other": 1}))
    with pytest.raises(SystemExit, match=r"^conf/: benchmark 'labels': sha256 of .* is [0-9a-f]{64}, not"):
        published.rows(of)


def test_a_file_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    assert published.missing(None) == "not measured: none are named"
    assert "no file" in published.missing(labels(tmp_path / "none.jsonl"))
    assert published.missing(written(tmp_path / "some.jsonl", {})) == ""
    assert published.missing(Published("hub", "hub", "a/b", "c", None, "d", "mit")) == ""
