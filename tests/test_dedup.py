"""Duplicates leave with the id of what was kept; requests that are nearly the same share a cluster."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from temper import duplicates, embeddings, executors, metrics, mismatch, record, records

ROOT = Path(__file__).resolve().parent.parent
LONG = "Please book a quiet double room in a small hotel near the central station of Bologna from Monday until Friday"
SECTION = {"ngram": 5, "bands": 20, "rows": 6, "threshold": 0.8, "seed": 17, "semantic": None, "min_answer_words": 30}
SETTINGS = duplicates.Settings(ngram=5, bands=4, rows=2, threshold=0.8, seed=17)
ONE = executors.Local("local", workers=1)


def row(
    request: str, answer: str = "null", tool: str = "book", system: str = "Tools:", category: str = "c"
) -> dict[str, Any]:
    turns = [("system", f"{system} {tool}()"), ("user", request), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return record.identified({"messages": messages, "tools": [{"name": tool, "parameters": {}}], "category": category})


TRIANGLE = "Find the area of a triangle with base {} and height {} and round it"
MANY_TOOLS = " ".join(f"parameter{number}: string," for number in range(80))
ROWS = {
    "original": row(LONG, '{"name": "book"}'),
    "unlike": row("What is the weather like in Oslo today?"),
    "capitals": row(LONG.upper(), '{"NAME": "book"}'),
    "near": row(f"{LONG} please", '{"name": "book"}'),
    "other answer": row(LONG, tool="sing"),
    "other tools": row(LONG, '{"name": "book"}', tool="cook"),
    "numbers": row(TRIANGLE.format(3, 4), "12"),
    "other numbers": row(TRIANGLE.format(10, 22), "220"),
    "many tools": row("Book me a room in Rome", system=MANY_TOOLS),
    "same tools": row("Is breakfast included there?", system=MANY_TOOLS),
}
ALIKE = {"original", "capitals", "near"}


class Ran:
    """What the stage made of ROWS, by their names above."""

    def __init__(self, output: str) -> None:
        names = {one["id"]: name for name, one in ROWS.items()}
        kept = list(records.read("data/dedup/00000.jsonl"))
        self.output = output
        self.metrics = metrics.read("reports/dedup.json")
        self.kept = {names[one["id"]]: one["cluster"] for one in kept}
        self.rejected = {
            names[one["id"]]: (one["reason"], names[one["kept"]]) for one in records.read("data/rejected/dedup.jsonl")
        }


def ran_stage() -> str:
    """What the stage says on a terminal."""
    command = [sys.executable, "-m", "scripts.dedup"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dedup"))
        OmegaConf.save({"dedup": SECTION, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
        records.write("data/ingest/00000.jsonl", ROWS.values())
        yield Ran(ran_stage())


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@example("".join(map(chr, range(128))))
def test_ascii_text_is_normalised_as_any_text_would_be(text: str) -> None:
    assert duplicates._normalised(text) == " ".join(text.casefold().split()).encode()


def test_of_duplicates_the_one_of_least_id_stays_and_the_others_name_it(ran: Ran) -> None:
    first = min(ALIKE, key=lambda name: ROWS[name]["id"])
    assert ran.rejected.keys() == ALIKE - {first}
    assert {kept for _, kept in ran.rejected.values()} == {first}
    assert list(ran.kept) == [name for name in ROWS if name not in ran.rejected]
    reasons = sorted(reason for reason, _ in ran.rejected.values())
    assert reasons == ["exact", "near"]
    assert (ran.metrics["seen"], ran.metrics["kept"]) == (len(ROWS), len(ROWS) - 2)
    assert (ran.metrics["rejected_exact"], ran.metrics["rejected_near"]) == (1, 1)


def test_one_request_with_two_answers_is_two_rows_of_one_cluster(ran: Ran) -> None:
    first = next(name for name in ALIKE if name in ran.kept)
    assert ran.kept[first] == ran.kept["other answer"]


def test_the_same_question_under_other_tools_is_another_row_of_the_cluster(ran: Ran) -> None:
    assert ran.kept["other tools"] == ran.kept["other answer"]


def test_other_numbers_make_another_row_of_the_same_cluster(ran: Ran) -> None:
    assert ran.kept["numbers"] == ran.kept["other numbers"]


def test_a_long_list_of_tools_does_not_make_requests_alike(ran: Ran) -> None:
    assert ran.kept["many tools"] != ran.kept["same tools"]


def test_clusters_and_categories_are_counted(ran: Ran) -> None:
    assert ran.metrics["clusters"] == len(set(ran.kept.values())) == 5
    assert ran.metrics["category_c"] == len(ran.kept)


def test_long_answers_that_are_alike_share_a_cluster_and_stay(tmp_path: Path) -> None:
    answer = " ".join(words(40, 1))
    # Letters, since requests are compared without their numbers.
    why, what_for = (" ".join(words(40, seed)).translate(str.maketrans("0123456789", "abcdefghij")) for seed in (2, 3))
    rows = [row(why, answer), row(what_for, f"{answer} indeed"), row("Who?", "Me"), row("When?", "Me")]
    found = outcome(rows, all_of, 1, tmp_path / "linked", settings=replace(SETTINGS, min_answer_words=30))
    first, second, *short = (found[one["id"]] for one in rows)
    assert {reason for reason, *_ in found.values()} == {None}
    assert first[2] == second[2]
    assert len({first[2], *(cluster for *_, cluster in short)}) == 3
    for words_needed in (None, 42):
        settings = replace(SETTINGS, min_answer_words=words_needed)
        apart = outcome(rows, all_of, 1, tmp_path / str(words_needed), settings=settings)
        assert len({cluster for *_, cluster in apart.values()}) == 4


def test_the_engine_keeps_its_log_to_itself(ran: Ran) -> None:
    assert ran.output == ""


def words(count: int, seed: int) -> list[str]:
    return [f"w{random.Random(f'{seed}/{position}').randrange(10**6)}" for position in range(count)]


def mixture(count: int) -> list[dict[str, Any]]:
    """Rows of which a third are alike to others: repeated, in capitals, one word longer, with other numbers or tools."""
    rows = []
    for seed in range(count // 6):
        text = " ".join(words(30, seed))
        rows += [row(text), row(text.upper()), row(f"{text} more"), row(f"{text} 1 {text} 2"), row(text, tool="sing")]
        rows.append(row(f"{text} 3 {text} 4", category=mismatch.CATEGORY))
    return rows


def outcome(
    rows: Sequence[Any],
    cut: Callable[[Any, int], Any],
    pieces: int,
    folder: Path,
    executor: Any = ONE,
    settings: duplicates.Settings = SETTINGS,
) -> Any:
    """{id: (reason, kept, cluster)} of `rows` cut into shards."""
    shards = []
    for number in range(pieces):
        shards.append(folder / f"in/{number:05d}.jsonl")
        records.write(shards[-1], cut(rows, number))
    verdicts = duplicates.find(shards, settings, folder / "work", executor)
    found = {}
    for shard, verdict in zip(shards, verdicts, strict=True):
        for one in duplicates.marked(records.read(shard), verdict):
            found[one["id"]] = (one.get("reason"), one.get("kept"), one["cluster"])
    return found


def all_of(rows: Any, number: int) -> Any:
    return rows


def in_the_second(rows: Any, number: int) -> Any:
    return rows if number else []


def robin(rows: Any, number: int, pieces: int) -> Any:
    return rows[number::pieces]


def runs(rows: Any, number: int, pieces: int) -> Any:
    size = -(-len(rows) // pieces)
    return rows[number * size : (number + 1) * size]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcome(mixture(180), all_of, 1, tmp_path_factory.mktemp("whole"))


def test_what_a_row_left_for_is_a_row_that_stayed(whole: Any) -> None:
    assert {whole[kept][0] for _, kept, _ in whole.values() if kept} == {None}


@pytest.mark.parametrize(("cut", "pieces"), [(robin, 7), (runs, 64)])
def test_neither_order_nor_shards_change_a_verdict(cut: Any, pieces: int, whole: Any, tmp_path: Path) -> None:
    assert {reason for reason, _, _ in whole.values()} == {None, "exact", "near"}
    rows = mixture(180)
    shuffled = random.Random(pieces).sample(rows, len(rows))
    assert outcome(shuffled, partial(cut, pieces=pieces), pieces, tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "pieces"), [(runs, 7), (robin, 64)])
def test_nor_does_dealing_them_out_otherwise(cut: Any, pieces: int, whole: Any, tmp_path: Path) -> None:
    assert outcome(mixture(180), partial(cut, pieces=pieces), pieces, tmp_path) == whole


@pytest.mark.slow
def test_ray_gives_the_same_verdicts(tmp_path: Path) -> None:
    rows = mixture(60)
    few = duplicates.Settings(ngram=5, bands=2, rows=1, threshold=0.8, seed=17)  # Ray takes seconds to start a task
    whole = outcome(rows, all_of, 1, tmp_path / "one", settings=few)
    ray = executors.Ray("ray", workers=2, cpus_per_task=1, mem_per_cpu_gb=1, join_mem_gb=1)
    assert outcome(rows, partial(robin, pieces=3), 3, tmp_path / "ray", ray, few) == whole


def test_a_made_row_never_stays_in_the_place_of_a_genuine_one(tmp_path: Path) -> None:
    text = " ".join(words(30, 1))
    variants = [f"{text} {ending}" for ending in words(12, 2)]
    rows = [row(variant, category=mismatch.CATEGORY) for variant in variants[:-1]] + [row(variants[-1])]
    found = outcome(rows, all_of, 1, tmp_path)
    assert {kept for _, kept, _ in found.values() if kept} == {rows[-1]["id"]}


def test_rows_of_every_kind_are_compared(tmp_path: Path) -> None:
    # Other words, not only other numbers in them: requests are compared without those.
    text, prompt = " ".join(words(30, 1)).replace("w", "v"), [{"role": "user", "content": " ".join(words(30, 2))}]
    answers = [[{"role": "assistant", "content": content}] for content in ("Yes indeed", "No way")]
    worse = [{"role": "assistant", "content": " ".join(words(60, 3))}]
    rows = [
        record.identified(one)
        for one in (
            {"kind": "text", "text": text, "source": "a"},
            {"kind": "text", "text": text, "source": "b"},
            {"kind": "preference", "messages": prompt, "chosen": answers[0], "rejected": answers[1], "source": "a"},
            {"kind": "preference", "messages": prompt, "chosen": answers[0], "rejected": answers[1], "source": "b"},
            {"kind": "preference", "messages": prompt, "chosen": answers[0], "rejected": worse, "source": "a"},
            {"kind": "chat", "messages": prompt + answers[0], "source": "a"},
        )
    ]
    found = outcome(rows, all_of, 1, tmp_path)
    assert [found[one["id"]][0] for one in rows].count("exact") == 2
    assert not any(found[one["id"]][0] for one in rows[4:]), "another pair and a chat are no duplicates of a pair"
    assert len({cluster for _, _, cluster in found.values()}) == 2


def test_what_leaves_is_what_comparing_each_with_each_finds(tmp_path: Path) -> None:
    rows = []
    for seed in range(30):
        text = words(60, seed)
        rows.append(row(" ".join(text), answer=""))
        for edits in range(1, 4):
            for place in random.Random(seed * 10 + edits).sample(range(60), edits):
                text[place] = f"{text[place]}x"
            rows.append(row(" ".join(text), answer=""))
    sets = [grams(one["messages"][1]["content"]) for one in rows]
    pairs = itertools.combinations(range(len(rows)), 2)
    alike = [(left, right) for left, right in pairs if jaccard(sets[left], sets[right]) >= 0.8]
    labels = duplicates.components(len(rows), [np.array(alike)])
    least: dict[int, str] = {}
    for one, label in zip(rows, labels.tolist(), strict=True):
        least[label] = min(one["id"], least.get(label, one["id"]))
    many = duplicates.Settings(ngram=5, bands=30, rows=2, threshold=0.8, seed=17)
    found = outcome(rows, all_of, 1, tmp_path, settings=many)
    assert 0 < len(alike) < len(rows)
    for one, label in zip(rows, labels.tolist(), strict=True):
        assert (found[one["id"]][1] or one["id"]) == least[label]


def grams(text: str) -> set[tuple[str, ...]]:
    split = text.split()
    return {tuple(split[start : start + 5]) for start in range(len(split) - 4)}


def jaccard(left: set[tuple[str, ...]], right: set[tuple[str, ...]]) -> float:
    return len(left & right) / len(left | right)


def test_large_buckets_lose_no_row_that_is_like_the_rest(tmp_path: Path) -> None:
    text = " ".join(words(60, 1))
    rows = [row(f"{text} {ending}", answer="") for ending in words(300, 2)]
    found = outcome(rows, all_of, 1, tmp_path)
    assert sum(reason is None for reason, _, _ in found.values()) == 1


def test_no_rows_at_all_are_no_obstacle(tmp_path: Path) -> None:
    assert outcome([], all_of, 1, tmp_path) == {}


def test_an_empty_shard_is_no_obstacle(tmp_path: Path) -> None:
    rows = mixture(6)
    found = outcome(rows, in_the_second, 2, tmp_path)
    assert found.keys() == {one["id"] for one in rows}


def test_shards_that_change_between_the_steps_are_noticed(tmp_path: Path) -> None:
    records.write(tmp_path / "a.jsonl", ROWS.values())
    [verdicts] = duplicates.find([tmp_path / "a.jsonl"], SETTINGS, tmp_path / "work", ONE)
    with pytest.raises(SystemExit, match="changed"):
        list(duplicates.marked(iter(list(ROWS.values())[::-1]), verdicts))


def test_short_rows_of_one_meaning_leave_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(texts: Sequence[str]) -> Any:
        """Towards one axis for what is about Oslo, another for the rest, and hardly ever quite along it."""
        vectors = np.array([[1, 0.1] if "Oslo" in text else [0.1, 1] for text in texts], dtype=np.float32)
        vectors = vectors.reshape(-1, 2)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    monkeypatch.setattr(embeddings, "embed", embed)
    rows = [
        row("Weather in Oslo?"),
        row("How is the weather up in Oslo?"),
        row("Book a table"),
        row("Oslo " + " ".join(words(50, 1))),
    ]
    settings = duplicates.Settings(5, 4, 2, 0.8, 17, duplicates.Semantic(similarity=0.95, max_words=20))
    shards = [rows[:1], [], rows[1:]]
    found = outcome(rows, lambda rows, number: shards[number], 3, tmp_path, settings=settings)
    first, again, table, long = (found[one["id"]] for one in rows)
    assert {first[0], again[0]} == {None, "semantic"}
    assert table[0] is None and long[0] is None
    assert first[2] == again[2] != table[2]


RUN = """
import sys
from pathlib import Path
from temper import duplicates, executors, stage
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
settings = duplicates.Settings(5, 4, 2, 0.8, 17)
shards = sorted((folder / "in").glob("*.jsonl"))
stage.run(lambda: duplicates.find(shards, settings, folder / "work", executors.Local("local", workers)), "dedup")
"""


def started(folder: Path, workers: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(workers)], cwd=folder, env=environment)


def written(folder: Path, rows: int, pieces: int) -> list[dict[str, Any]]:
    made = mixture(rows)
    for number in range(pieces):
        records.write(folder / f"in/{number:05d}.jsonl", made[number::pieces])
    return made


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_last_finished_task(tmp_path: Path) -> None:
    made = written(tmp_path, 3000, pieces=8)
    done = tmp_path / "work/steps/sign/completions"
    with started(tmp_path, workers=1) as running:
        wait_for(lambda: done.is_dir() and len(list(done.iterdir())) >= 3)
        os.kill(running.pid, signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert 3 <= len(finished) < 8
    with started(tmp_path, workers=1) as running:
        assert running.wait() == 0
    assert len(list(done.iterdir())) == 8
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    resumed = [np.fromfile(path, duplicates.VERDICT) for path in sorted((tmp_path / "work/verdicts").iterdir())]
    fresh = duplicates.find(sorted((tmp_path / "in").glob("*")), SETTINGS, tmp_path / "fresh", ONE)
    assert sum(map(len, resumed)) == len(made)
    assert all((one == np.fromfile(path, duplicates.VERDICT)).all() for one, path in zip(resumed, fresh, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_no_process_behind(workers: int, tmp_path: Path) -> None:
    written(tmp_path, 6000, pieces=4)
    with started(tmp_path, workers) as running:
        children: list[psutil.Process] = []
        wait_for(lambda: (tmp_path / "work/sets").is_dir() or any((tmp_path / "work").glob("*/sets/*")))
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= workers, "the executor's processes never started"
        os.kill(running.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=5)
    for process in alive:
        process.kill()
    assert not alive


def test_a_broken_row_ends_the_run_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": \n')
    find = partial(duplicates.find, [tmp_path / "a.jsonl"], SETTINGS, tmp_path / "work")
    with pytest.raises(SystemExit, match=r"a\.jsonl:1: not JSON"):
        find(ONE)
