"""A judge is asked in both orders, once; what its verdicts are worth is counted; and its troubles are one line with a remedy."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from temper import judge
from temper.judge import Contest, Judge, Meeting, Verdict
from temper.records import Row
from temper.vllm import Answer
from tests.test_teacher import BROKEN, DOWN, Body, Endpoint, Fault, settings

ROOT = Path(__file__).resolve().parent.parent


def row(name: str = "ab") -> Row:
    turns = [{"role": role, "content": f"{role} {name}"} for role in ("user", "assistant")]
    return {"id": name, "kind": "chat", "category": "chat", "messages": turns, "tools": []}


def compared(body: Body) -> tuple[str, str]:
    found = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n\[End\]", body["messages"][0]["content"], re.DOTALL)
    assert found
    return found[1], found[2]


def saying(word: str) -> str:
    return json.dumps({"verdict": word})


def longer(body: Body) -> str:
    """A judge that prefers the longer answer."""
    first, second = map(len, compared(body))
    return saying("A" if first > second else "B" if second > first else "tie")


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.chdir(tmp_path)
    served = Endpoint(longer)
    yield served
    served.close()


def judge_at(url: str, answers: int = 4, **changes: Any) -> Judge:
    return Judge(settings(url, **changes), answers, "Better is better.", 32)


def hold(chosen: Judge, *answers: list[str], cut: tuple[str, ...] = ()) -> tuple[list[Contest], Row]:
    """The contests of prompts with these samples, and the metrics."""
    rows = [row(f"row{number}") for number in range(len(answers))]
    samples = [[Answer(text, text in cut) for text in texts] for texts in answers]
    contests, bill = judge.hold(chosen, rows, samples, 17, {})
    return contests, judge.summary(contests, 0.95) | bill


def test_the_best_meets_the_worst_and_every_two_answers_are_asked_about_in_both_orders(endpoint: Endpoint) -> None:
    (contest,), values = hold(judge_at(endpoint.url), ["aaa", "b", "cccc", "dd"])
    pair = contest.pair()
    assert pair is not None
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("cccc", "b")
    assert (pair["prompt"], pair["chosen_from"], pair["prompt_id"]) == (row("row0")["messages"][:-1], "judge", "row0")
    asked = [compared(body) for body in endpoint.answered]
    assert len(asked) == len(set(asked)) == 12
    assert {(second, first) for first, second in asked} == set(asked)
    assert all(body["temperature"] == 0 for body in endpoint.answered)
    assert all("user row0" in body["messages"][0]["content"] for body in endpoint.answered)
    assert all("Better is better." in body["messages"][0]["content"] for body in endpoint.answered)
    assert (values["judge_comparisons"], values["judge_comparisons_decided"], values["judge_requests"]) == (6, 6, 12)
    assert (values["judge_flips"], values["judge_first"], values["judge_verdicts_invalid"]) == (0, 0.5, 0)
    assert (values["judge_model"], values["judge_endpoint"]) == ("tutor", "local")


def test_a_judge_that_prefers_a_place_makes_no_pair_and_is_seen_to(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: saying("A")
    contests, values = hold(judge_at(endpoint.url), ["a", "b", "c"], ["d", "e"])
    assert [contest.outcome for contest in contests] == ["tie", "tie"]
    assert contests[0].pair() is None
    assert (values["judge_flips"], values["judge_first"]) == (1, 1)
    assert values["judge_flips_low"] > 0.4
    assert (values["judge_comparisons_tied"], values["judge_prompts_tie"]) == (4, 2)


def test_a_tie_in_both_orders_is_no_flip_and_for_no_place(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: saying("tie")
    _, values = hold(judge_at(endpoint.url), ["a", "b"])
    assert (values["judge_flips"], values["judge_first"], values["judge_first_high"]) == (0, 0, 1)
    assert values["judge_comparisons_tied"] == 1


def test_a_winner_in_one_order_only_is_a_tie(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: saying("A" if compared(body) == ("a", "b") else "tie")
    (contest,), values = hold(judge_at(endpoint.url), ["a", "b"])
    assert (contest.outcome, values["judge_flips"]) == ("tie", 1)


def test_replies_that_are_no_verdict_are_counted_and_shown(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (
        "I like the first\none." if "row0" in body["messages"][0]["content"] else longer(body)
    )
    contests, values = hold(judge_at(endpoint.url), ["a", "bb"], ["a", "bb"])
    assert [contest.outcome for contest in contests] == ["invalid_verdict", "decided"]
    assert contests[0].left()["detail"] == "I like the first one."
    assert (values["judge_verdicts"], values["judge_verdicts_invalid"]) == (4, 2)
    assert values["judge_flips"] == 0


def test_a_verdict_that_was_cut_off_is_none(endpoint: Endpoint) -> None:
    endpoint.finish = lambda body: "length"
    (contest,), _ = hold(judge_at(endpoint.url), ["a", "bb"])
    assert contest.outcome == "invalid_verdict"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"verdict": "A"}', "A"),
        (' {"verdict":"tie"}\n', "tie"),
        ("A", None),
        ('"A"', None),
        ('{"verdict": "a"}', None),
        ('{"verdict": "C"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": "A", "why": "longer"}', None),
        ('I say {"verdict": "A"}', None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text: str, word: str | None) -> None:
    assert judge.parsed(text) == word


def test_identical_answers_are_one_and_the_most_frequent_take_part(endpoint: Endpoint) -> None:
    (contest,), values = hold(judge_at(endpoint.url, answers=2), ["rare", "b", "aa", "b", "aa", "b"])
    assert contest.answers == ("b", "aa")
    assert endpoint.asked == 2
    assert (values["judge_samples"], values["judge_duplicates"], values["judge_answers"]) == (6, 3, 2)


def test_answers_that_were_cut_are_not_compared(endpoint: Endpoint) -> None:
    contests, values = hold(judge_at(endpoint.url), ["a", "bb", "long"], ["a", "long"], ["a", "a"], cut=("long",))
    assert [contest.outcome for contest in contests] == ["decided", "cut", "one_answer"]
    assert (values["judge_samples_cut"], endpoint.asked) == (2, 2)


def test_nothing_to_compare_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (contest,), _ = hold(judge_at("http://127.0.0.1:1/v1"), ["a", "a"])
    assert contest.outcome == "one_answer"


def meeting(forth: str, back: str) -> Meeting:
    return Meeting(Verdict(forth), Verdict(back))


@pytest.mark.parametrize(
    ("winners", "best"),
    [
        ({(0, 1): "A", (1, 2): "A", (0, 2): "B"}, None),
        ({(0, 1): "A", (1, 2): "A", (0, 2): "tie"}, (0, 1)),
        ({(0, 1): "B", (1, 2): "tie", (0, 2): "B"}, (1, 0)),
        ({(0, 1): "tie", (1, 2): "tie", (0, 2): "B"}, (2, 0)),
        ({(0, 1): "tie", (1, 2): "tie", (0, 2): "tie"}, None),
    ],
    ids=["a circle", "a chain", "two winners", "one decided", "none"],
)
def test_the_pair_is_one_that_both_orders_decided(winners: dict[tuple[int, int], str], best: Any) -> None:
    meetings = {places: meeting(word, judge.SWAPPED[word]) for places, word in winners.items()}
    assert Contest(row(), ("a", "b", "c"), 3, 0, 0, meetings).best == best


def test_troubles_of_the_endpoint_change_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    calm = hold(judge_at(endpoint.url), ["a", "bb", "ccc"])
    (tmp_path / judge.JOURNAL).unlink()
    endpoint.times.clear()
    malformed: Fault = (200, {}, b"{}")
    endpoint.fault = lambda body, attempt: (BROKEN, malformed)[attempt] if attempt < 2 else None
    assert hold(judge_at(endpoint.url), ["a", "bb", "ccc"]) == calm
    assert endpoint.asked == 18


def test_a_second_run_asks_nothing_even_with_the_endpoint_gone(endpoint: Endpoint) -> None:
    first = hold(judge_at(endpoint.url), ["a", "bb", "ccc"])
    endpoint.close()
    judge.reach(judge_at(endpoint.url))
    assert hold(judge_at(endpoint.url), ["a", "bb", "ccc"]) == first


def test_an_endpoint_that_goes_down_ends_the_run_in_a_line_and_the_next_goes_on(endpoint: Endpoint) -> None:
    endpoint.fault = lambda body, attempt: (
        DOWN if "row1" in body["messages"][0]["content"] or body["max_tokens"] == 1 else None
    )
    chosen = judge_at(endpoint.url, concurrency=1)
    with pytest.raises(SystemExit, match=r"503.*goes on from here") as error:
        hold(chosen, ["a", "bb"], ["a", "bb"])
    assert "\n" not in str(error.value)
    endpoint.fault = lambda body, attempt: None
    hold(chosen, ["a", "bb"], ["a", "bb"])
    prompts = [body["messages"][0]["content"] for body in endpoint.answered]
    assert sum("row0" in prompt for prompt in prompts) == 2, "what it said before is not asked again"
    assert any("row1" in prompt for prompt in prompts)


KILLED = """
import sys
from tests.test_judge import hold, judge_at
print(hold(judge_at(sys.argv[1], concurrency=2), *([f"{n}", f"{n} {n}", f"{n} {n} {n}"] for n in range(10)))[1])
"""


@pytest.mark.slow
def test_a_killed_run_asks_again_only_what_was_under_way(endpoint: Endpoint, tmp_path: Path) -> None:
    def stuck(body: Body) -> str:
        if len(endpoint.answered) >= 25:
            endpoint.hold.clear()
            time.sleep(0.5)
        return longer(body)

    endpoint.answer = stuck
    command = [sys.executable, "-c", KILLED, endpoint.url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while endpoint.hold.is_set():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    endpoint.answer = longer
    endpoint.hold.set()
    while endpoint.active:
        time.sleep(0.01)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "'judge_prompts_decided': 10" in done.stdout
    assert len(endpoint.times) == 60
    assert 60 < endpoint.asked <= 60 + 2 * 2


def test_the_form_of_a_verdict_is_sent_and_null_leaves_it_out(endpoint: Endpoint) -> None:
    hold(judge_at(endpoint.url), ["a", "bb"])
    hold(judge_at(endpoint.url, extra={"response_format": None, "top_k": 1}), ["a", "bb"])
    forms = [body.get("response_format") for body in endpoint.answered]
    assert forms == [judge.FORMAT] * 2 + [None] * 2
    assert judge.FORMAT["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]  # type: ignore[index]


def test_a_key_is_sent_and_is_in_no_file(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.key = "s3cret-of-mine"
    chosen = judge_at(endpoint.url, api_key_env="JUDGE_KEY")
    with pytest.raises(SystemExit, match=r"\$JUDGE_KEY is not set: .*preferences\.judge\.endpoint"):
        judge.checked(chosen)
    monkeypatch.setenv("JUDGE_KEY", endpoint.key)
    _, values = hold(judge.checked(chosen), ["a", "bb"])
    assert values["judge_prompts_decided"] == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(endpoint.key.encode() in path.read_bytes() for path in files)
    assert endpoint.key not in json.dumps(values)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": ""}, ["preferences.judge.endpoint.model is empty", "base_url", "licence"]),
        ({"licence": ""}, ["preferences.judge.endpoint.licence"]),
        ({"url": ""}, ["preferences.judge.endpoint.base_url", "http(s)://"]),
        ({"extra": {"api_key": "x"}}, ["preferences.judge.endpoint.extra", "api_key_env"]),
        ({"url": "http://127.0.0.1:1/v1"}, ["no answer", "start the endpoint", "preferences.judge.endpoint.base_url"]),
        ({"model": "tuttor"}, ["no model 'tuttor'", "preferences.judge.endpoint.model", "tutor"]),
        ({"answers": 1}, ["preferences.judge.answers is 1"]),
    ],
    ids=["no model", "no licence", "no address", "a key", "down", "another model", "one answer"],
)
def test_a_judge_that_cannot_be_asked_is_a_line_before_anything_is_sampled(
    endpoint: Endpoint, changes: dict[str, Any], named: list[str]
) -> None:
    chosen = judge_at(**{"url": endpoint.url} | changes)
    for _ in "12":  # the first leaves nothing behind that would hide the second
        with pytest.raises(SystemExit) as error:
            judge.reach(judge.checked(chosen))
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in named), error.value
