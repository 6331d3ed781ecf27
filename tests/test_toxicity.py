"""The list of abusive words: which rows count, and that words are whole."""

import json
from pathlib import Path

import pytest

from temper import toxicity, wheels
from temper.benchmarks import Benchmark
from temper.toxicity import Lexicon

ROWS = [
    {"text": "darn", "severity": "1.0"},
    {"text": "utter swine", "severity": "2.4"},
    {"text": "!!", "severity": "3"},
]


def lexicon(folder: Path, severity: str | None, least: float) -> Lexicon:
    file = folder / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Lexicon(
        Benchmark("own", "file", None, None, wheels.digest(file), str(file), ["text"], "mit"), severity, least
    )


def test_whole_words_that_are_severe_enough_are_found(tmp_path: Path) -> None:
    severe = toxicity.load(lexicon(tmp_path, "severity", 2))
    assert severe.find("You utter SWINE!") == "utter swine"
    assert severe.find("utterly swinelike, darn") is None
    assert toxicity.load(lexicon(tmp_path, None, 0)).find("darn it") == "darn"


@pytest.mark.parametrize(
    ("severity", "least", "said"), [("severity", 9, "as severe as 9"), ("text", 0, "is no number")]
)
def test_a_list_that_cannot_be_read_is_one_line(tmp_path: Path, severity: str, least: float, said: str) -> None:
    with pytest.raises(SystemExit, match=rf"^safety\.lexicon.*{said}.*conf/safety"):
        toxicity.load(lexicon(tmp_path, severity, least))
