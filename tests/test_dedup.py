"""Duplicates leave with the id of what was kept; requests that are nearly the same share a cluster."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from scripts import dedup
from temper import metrics, minhash, record, records

ROOT = Path(__file__).resolve().parent.parent
LONG = "Please book a quiet double room in a small hotel near the central station of Bologna from Monday until Friday"


def row(request: str, answer: str = "null", tool: str = "book", system: str = "Tools:") -> dict[str, Any]:
    turns = [("system", f"{system} {tool}()"), ("user", request), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return record.identified({"messages": messages, "tools": [{"name": tool, "parameters": {}}], "category": "c"})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """A function that runs the stage over rows and returns what it kept."""
    monkeypatch.chdir(tmp_path)

    def stage(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        section = {"ngram": 5, "bands": 14, "rows": 8, "seed": 17}
        OmegaConf.save({"dedup": section, "hardware": {"runtime": {"processes": 1}}}, "params.yaml")
        records.write("data/ingest.jsonl", rows)
        dedup.main()
        return list(records.read("data/dedup.jsonl"))

    return stage


def rejected() -> list[dict[str, Any]]:
    return list(records.read("data/rejected/dedup.jsonl"))


def test_duplicates_leave_and_the_first_stays(
    run: Callable[..., list[dict[str, Any]]], capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = row(LONG), row("What is the weather like in Oslo today?")
    exact, near = row(LONG.upper()), row(f"{LONG} please")
    kept = run([first, other, exact, near])
    assert [one["id"] for one in kept] == [first["id"], other["id"]]
    assert [(one["id"], one["reason"], one["kept"]) for one in rejected()] == [
        (exact["id"], "exact", first["id"]),
        (near["id"], "near", first["id"]),
    ]
    found = metrics.read("reports/dedup.json")
    assert (found["seen"], found["kept"], found["rejected_exact"], found["rejected_near"]) == (4, 2, 1, 1)
    # Datatrove's own log would bury everything else.
    assert capfd.readouterr() == ("", "")


def test_one_request_with_two_answers_is_two_rows_of_one_cluster(run: Callable[..., list[dict[str, Any]]]) -> None:
    call, null, other = row(LONG, '{"name": "book"}'), row(LONG, "null", tool="sing"), row("Sing me a song about rain")
    kept = run([call, other, null])
    assert [one["id"] for one in kept] == [call["id"], other["id"], null["id"]]
    assert kept[0]["cluster"] == kept[2]["cluster"] == call["id"]
    assert kept[1]["cluster"] == other["id"]


def test_the_same_question_under_other_tools_is_another_row(run: Callable[..., list[dict[str, Any]]]) -> None:
    assert len(run([row(LONG, tool="book"), row(LONG, tool="cook")])) == 2


def test_other_numbers_make_another_row_of_the_same_cluster(run: Callable[..., list[dict[str, Any]]]) -> None:
    text = "Find the area of a triangle with base {} and height {} and round it"
    kept = run([row(text.format(3, 4), "12"), row(text.format(10, 22), "220")])
    assert len(kept) == 2
    assert kept[0]["cluster"] == kept[1]["cluster"]


def test_a_long_list_of_tools_does_not_make_requests_alike(run: Callable[..., list[dict[str, Any]]]) -> None:
    system = " ".join(f"parameter{number}: string," for number in range(80))
    kept = run([row("Book me a room in Rome", system=system), row("Is breakfast included there?", system=system)])
    assert len({one["cluster"] for one in kept}) == 2


def test_texts_shorter_than_an_ngram_match_only_themselves() -> None:
    settings = minhash.Settings(ngram=5, bands=14, rows=8, seed=17, normalise_numbers=False)
    texts = ["hi there", "book a table", "Hi, there!", "", "hi", "", LONG]
    assert minhash.clusters(texts, settings, processes=1) == [0, 1, 0, 3, 4, 5, 6]


@pytest.mark.slow
def test_processes_change_no_cluster() -> None:
    settings = minhash.Settings(ngram=5, bands=2, rows=2, seed=17, normalise_numbers=False)
    texts = ["Is it open?", f"{LONG} please", "Is it far away?", LONG, "Is it open?"]
    assert minhash.clusters(texts, settings, processes=1) == [0, 1, 2, 1, 0]
    assert minhash.clusters(texts, settings, processes=2) == [0, 1, 2, 1, 0]


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_behind() -> None:
    many = "[' '.join(str((n * 7919 + k) % 9973) + 'w' for k in range(200)) for n in range(3000)]"
    script = (
        f"from temper import minhash\nminhash.clusters({many}, minhash.Settings(5, 14, 8, 1, False), processes=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as running:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not children and time.monotonic() < deadline:
            children = psutil.Process(running.pid).children(recursive=True)
            time.sleep(0.1)
        assert children, "the executor's manager never started"
        time.sleep(0.5)
        os.kill(running.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
