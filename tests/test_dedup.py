"""Duplicates leave with the id of what was kept; requests that are nearly the same share a cluster."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
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


TRIANGLE = "Find the area of a triangle with base {} and height {} and round it"
MANY_TOOLS = " ".join(f"parameter{number}: string," for number in range(80))
ROWS = {
    "first": row(LONG, '{"name": "book"}'),
    "unlike": row("What is the weather like in Oslo today?"),
    "exact": row(LONG.upper(), '{"NAME": "book"}'),
    "near": row(f"{LONG} please", '{"name": "book"}'),
    "other answer": row(LONG, tool="sing"),
    "other tools": row(LONG, '{"name": "book"}', tool="cook"),
    "numbers": row(TRIANGLE.format(3, 4), "12"),
    "other numbers": row(TRIANGLE.format(10, 22), "220"),
    "many tools": row("Book me a room in Rome", system=MANY_TOOLS),
    "same tools": row("Is breakfast included there?", system=MANY_TOOLS),
}


class Ran:
    """What the stage made of ROWS, by their names above."""

    def __init__(self, output: tuple[str, str]) -> None:
        names = {one["id"]: name for name, one in ROWS.items()}
        self.output = output
        self.metrics = metrics.read("reports/dedup.json")
        self.kept = {names[one["id"]]: names[one["cluster"]] for one in records.read("data/dedup.jsonl")}
        self.rejected = {
            names[one["id"]]: (one["reason"], names[one["kept"]]) for one in records.read("data/rejected/dedup.jsonl")
        }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dedup"))
        section = {"ngram": 5, "bands": 14, "rows": 8, "seed": 17}
        OmegaConf.save({"dedup": section, "hardware": {"runtime": {"processes": 1}}}, "params.yaml")
        records.write("data/ingest.jsonl", ROWS.values())
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            dedup.main()
        yield Ran((out.getvalue(), err.getvalue()))


def test_duplicates_leave_and_the_first_stays(ran: Ran) -> None:
    assert ran.rejected == {"exact": ("exact", "first"), "near": ("near", "first")}
    assert list(ran.kept) == [name for name in ROWS if name not in ran.rejected]
    assert (ran.metrics["seen"], ran.metrics["kept"]) == (len(ROWS), len(ROWS) - 2)
    assert (ran.metrics["rejected_exact"], ran.metrics["rejected_near"]) == (1, 1)


def test_one_request_with_two_answers_is_two_rows_of_one_cluster(ran: Ran) -> None:
    assert ran.kept["first"] == ran.kept["other answer"] == "first"


def test_the_same_question_under_other_tools_is_another_row_of_the_cluster(ran: Ran) -> None:
    assert ran.kept["other tools"] == "first"


def test_other_numbers_make_another_row_of_the_same_cluster(ran: Ran) -> None:
    assert ran.kept["numbers"] == ran.kept["other numbers"] == "numbers"


def test_a_long_list_of_tools_does_not_make_requests_alike(ran: Ran) -> None:
    assert (ran.kept["many tools"], ran.kept["same tools"]) == ("many tools", "same tools")


def test_the_engine_keeps_its_log_to_itself(ran: Ran) -> None:
    assert ran.output == ("", "")


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
    for process in alive:
        process.kill()
    assert not alive
