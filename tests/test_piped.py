"""A process of another environment answers line by line, and says why when it cannot."""

import copy
import sys
from pathlib import Path

import pytest

from temper import envs
from temper.piped import Piped

DOUBLES = """
import os, sys
from temper import piped

def begin():
    print("chatter of a library")
    if sys.argv[1] == "unable":
        raise SystemExit("no room here")
    def answer(asked):
        if asked["number"] < 0:
            os.kill(os.getpid(), 9)
        print("more chatter")
        return {"twice": 2 * asked["number"]}
    return {"hello": sys.argv[1]}, answer

if __name__ == "__main__":
    piped.serve(begin)
"""


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "doubles.py").write_text(DOUBLES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setattr(envs, "python", lambda _: sys.executable)
    return "doubles"


def test_it_greets_and_answers_each_line_whatever_libraries_print(doubles: str) -> None:
    with Piped("main", doubles, "all") as piped:
        assert piped.greeting == {"hello": "all"}
        assert [piped.ask({"number": number}) for number in (1, 2)] == [{"twice": 2}, {"twice": 4}]
        assert copy.deepcopy(piped) is piped


def test_one_that_cannot_begin_says_its_last_words(doubles: str) -> None:
    said = r"^doubles ended \(status 1\): chatter of a library / no room here$"
    with Piped("main", doubles, "unable") as piped, pytest.raises(SystemExit, match=said):
        piped.ask({"number": 1})


def test_one_that_is_killed_says_so_at_the_next_question(doubles: str) -> None:
    with Piped("main", doubles, "all") as piped:
        for _ in range(2):
            with pytest.raises(SystemExit, match=r"^doubles ended \(status -9, by the system where memory ran out\)"):
                piped.ask({"number": -1})
