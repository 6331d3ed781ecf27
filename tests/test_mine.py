"""A month of traffic: what failed and what is uncertain is found and ranked, drift where it was planted, and labels become data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy import stats
from sklearn.feature_extraction.text import HashingVectorizer

from commands import mine
from commands.compose import composed
from commands.mine import Mine
from scripts import ingest
from temper import (
    consistency,
    drift,
    embeddings,
    labelling,
    likeness,
    metrics,
    mine_report,
    mining,
    params,
    records,
    shards,
    traffic,
)
from temper.drift import Asked, Sample
from temper.masking import Allowed
from temper.records import Row
from temper.traffic import Exchange
from tests import traffic_month
from tests.test_teacher import Endpoint
from tests.traffic_month import CLEAN, DRIFTING, Plan

ROOT = Path(__file__).resolve().parent.parent
FAST = ("mine.drift.rules.kernel_rows=120", "mine.drift.rules.permutations=799")
NOBODY = Allowed((), ())


def words(texts: Sequence[str]) -> NDArray[Any]:
    """Stands in for the embedding model, which only its own environment can run: texts with the same words are near."""
    return HashingVectorizer(n_features=256, ngram_range=(1, 1)).transform(texts).toarray()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with training rows and the log of a clean month."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drift, "DRAWS", 4000)
    Path("conf").symlink_to(ROOT / "conf")
    records.write("data/mix/train.jsonl", traffic_month.training(0, 700))
    log(CLEAN)
    return tmp_path


def log(plan: Plan) -> None:
    records.write("logs/requests.jsonl", traffic_month.month(plan))


@cache
def text_of(*overrides: str) -> str:
    return composed([*FAST, *overrides])


def chosen(*overrides: str) -> Mine:
    Path("params.yaml").write_text(text_of(*overrides))
    return mine.settings([])


def mined(*overrides: str) -> dict[str, Any]:
    """What reports/mine.json has after the command."""
    mine.mine(chosen(*overrides), "logs", words)
    return metrics.read("reports/mine.json")


def queue() -> list[Row]:
    return list(records.read("mined/queue.jsonl"))


def alarms(values: dict[str, Any]) -> set[tuple[str, str]]:
    """(feature, window) of each."""
    named = [key.removeprefix("drift_").removesuffix("_verdict") for key in values if key.endswith("_verdict")]
    found = [name for name in named if values[f"drift_{name}_verdict"] != drift.NONE]
    return {(feature, window) for feature, _, window in (name.rpartition("_") for name in found)}


# Failures and uncertainty


def test_a_month_is_mined(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = mined()
    assert values["chats"] == 800 + 5 * 12
    assert values["drift_alarms"] == 0
    assert alarms(values) == set()
    rows = queue()
    assert {row["label"] for row in rows} == {None}
    assert values["queue"] == len(rows) == values["queue_failure"] + values["queue_uncertain"]
    said = capsys.readouterr().out
    assert "drift: none" in said
    assert "make mine LABELS=mined/queue.jsonl" in said


def test_every_planted_failure_is_found_and_nothing_else(site: Path) -> None:
    planted: dict[str, set[str]] = {"thumbs_down": set(), "low_score": set(), "invalid_form": set()}
    asked = {}
    for row in records.read("logs/requests.jsonl"):
        if row["kind"] == "request":
            asked[row["id"]] = row["request"]["messages"][0]["content"]
            if not row["response"]["choices"][0]["content"].endswith("}"):
                planted["invalid_form"].add(asked[row["id"]])
        elif row.get("thumbs") == "down":
            planted["thumbs_down"].add(asked[row["id"]])
        elif row.get("score") == 0.2:
            planted["low_score"].add(asked[row["id"]])
    assert min(map(len, planted.values())) > 5
    mined()
    failures = [row for row in queue() if row["reason"] == mining.FAILURE]
    found = {
        reason: {row["messages"][0]["content"] for row in failures if reason in row["reasons"]} for reason in planted
    }
    assert found == planted
    assert all(set(row["comments"]) == {"not what I asked"} for row in failures if "thumbs_down" in row["reasons"])
    broken = [row for row in failures if row["reasons"] == ["invalid_form"]]
    assert not any(row["answer"].endswith("}") for row in broken), "what is shown is what failed"


def test_failures_come_first_by_priority_and_what_is_uncertain_next(site: Path) -> None:
    mined()
    reasons = [row["reason"] for row in queue()]
    assert reasons == sorted(reasons, key=[mining.FAILURE, mining.UNCERTAIN].index)
    for reason in set(reasons):
        priorities = [row["priority"] for row in queue() if row["reason"] == reason]
        assert priorities == sorted(priorities, reverse=True)
    uncertain = [row for row in queue() if row["reason"] == mining.UNCERTAIN]
    assert {row["id"][:8] for row in uncertain} == {f"again-{number:02}" for number in range(1, 12, 2)}
    assert all(row["requests"] == 5 and row["entropy"] == pytest.approx(1) for row in uncertain)


def test_no_more_rows_of_a_reason_than_are_asked_for(site: Path) -> None:
    all_of_them = (mined(), [row["id"] for row in queue()])[1]
    values = mined("mine.queue.failure=3", "mine.queue.uncertain=0")
    assert [row["id"] for row in queue()] == all_of_them[:3]
    assert (values["queue_failure"], values["queue_uncertain"]) == (3, 0)


def test_what_was_labelled_stays(site: Path) -> None:
    mined()
    rows = queue()
    records.write("mined/queue.jsonl", [rows[0] | {"label": "null"}, *rows[1:]])
    mined("mine.queue.failure=1", "mine.queue.uncertain=0")
    assert queue() == [rows[0] | {"label": "null"}]
    mined("mine.queue.failure=0", "mine.queue.uncertain=1")
    assert [row["label"] for row in queue()] == [None, "null"], "not found again, and not lost"


@pytest.mark.parametrize("days", ["null", "10"], ids=["with the first exchange", "without it"])
def test_a_label_is_of_the_prompt_whichever_exchange_is_shown(site: Path, days: str) -> None:
    month = list(traffic_month.month(replace(CLEAN, failing=0.0, repeated=0)))
    asked = traffic_month.DOMAINS[0], "Weather in Lima, please", "null"
    first = [traffic_month.record("a", 1.0, *asked), traffic_month.feedback("a", 1.0, score=0.2)]
    second = [traffic_month.record("b", 25.0, *asked), traffic_month.feedback("b", 25.0, "down")]
    records.write("logs/requests.jsonl", month + first)
    mined()
    (row,) = queue()
    assert (row["id"], row["label"]) == ("a", None)
    older = {key: value for key, value in row.items() if key != "prompt"}
    for before in (row, older):
        records.write("mined/queue.jsonl", [before | {"label": "null"}])
        records.write("logs/requests.jsonl", month + first + second)
        mined(f"mine.days={days}", "mine.drift.window_days=30")
        assert queue() == [before | {"label": "null"}]
    mine.main(["labels", "mined/queue.jsonl"])
    assert len(made("failures")) == 1


def test_the_report_has_its_pictures(site: Path) -> None:
    log(replace(DRIFTING["longer answers"], failing=CLEAN.failing))
    values = mined()
    text = Path("reports/mine.md").read_text()
    shown = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert {Path(one).stem for one in shown} == {file.stem for file in Path("reports/mine").glob("*.svg")}
    assert {"days", "psi", "entropy", "answer_length", "requests", "tools"} <= {Path(one).stem for one in shown}
    for name in shown:
        picture = (Path("reports") / name).read_text()
        assert picture.startswith("<svg")
        assert "currentColor" not in picture
    assert "**major drift**" in text
    assert f"| thumbs down | {values['fault_thumbs_down']} |" in text


def test_days_of_different_years_are_different_days() -> None:
    days = [datetime(2025, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)]
    exchanges = [exchange(time=day, id=str(number)) for number, day in enumerate(days)]
    assert mine_report.by_day(exchanges, [])["others"] == {"2025-03-01": 1, "2026-03-01": 1, "2026-03-02": 1}
    assert mine_report.by_day(exchanges[1:], [])["others"] == {"03-01": 1, "03-02": 1}


TOOL = {"name": "sum", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
RIGHT = '{"name": "sum", "arguments": {"a": 1}}'


def exchange(answer: str = RIGHT, ending: str = "stop", **changed: Any) -> Exchange:
    request = {"messages": [{"role": "user", "content": "add"}], "tools": [{"type": "function", "function": TOOL}]}
    made = Exchange("a", traffic_month.BEGUN, request, (answer,), (ending,), 200, "", "allowed", "m")
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (exchange(), ""),
        (exchange("null"), ""),
        (exchange("Sure: 1"), "form"),
        (exchange(" "), "empty"),
        (exchange(RIGHT, "length"), "cut"),
        (exchange('{"name": "add", "arguments": {"a": 1}}'), "tool"),
        (exchange('{"name": "sum", "arguments": {"a": "one"}}'), "arguments"),
        (exchange('{"name": "sum", "arguments": {}}'), "arguments"),
        (exchange('{"name": "sum", "arguments": {"a": 1, "b": 2}}'), "arguments"),
        (exchange(status=503), "error"),
        (exchange(status=504, ended="late"), "error"),
        (exchange("", ended="gone", status=499), ""),
        (exchange("", answers=(), endings=(), ended="gone"), ""),
    ],
)
def test_an_answer_that_is_none_is_told_by_its_form(one: Exchange, expected: str) -> None:
    assert mining.invalid(one, calls_only=True) == expected


def test_other_people_s_tools_may_be_answered_in_words() -> None:
    assert mining.invalid(exchange("Which number?"), calls_only=False) == ""
    assert mining.invalid(exchange('{"name": "sum", "arguments": {"a": "one"}}'), calls_only=False) == "arguments"


def test_an_answer_is_held_against_the_schema_that_the_request_has() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    request = {"messages": [{"role": "user", "content": "a?"}], "response_format": form}
    assert mining.invalid(exchange('{"a": 1}', request=request), calls_only=True) == ""
    assert mining.invalid(exchange('{"a": "1"}', request=request), calls_only=True) == "form"
    broken = request | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}
    assert mining.invalid(exchange('{"a": "1"}', request=broken), calls_only=True) == ""


def test_calls_in_openai_s_own_form_are_read_as_ours() -> None:
    assert traffic.said({"index": 0, "name 0": "sum", "arguments 0": '{"a": 1}'}) == RIGHT
    assert mining.misfit(traffic.said({"name 0": "sum", "arguments 0": '{"a": '}), [TOOL]) == "form"


def test_the_last_opinion_counts_and_comments_add_up(site: Path) -> None:
    domain = traffic_month.DOMAINS[0]
    rows = [
        traffic_month.record("x", 1.0, domain, "Weather in Lima, please", "null"),
        traffic_month.feedback("x", 1.1, "down", comment="no"),
        traffic_month.feedback("x", 1.2, "up", comment="I misread it"),
        traffic_month.feedback("y", 1.2, "up"),
    ]
    records.write("logs/requests.jsonl", rows)
    found = traffic.read(traffic.files("logs"), None, NOBODY)
    assert (found.exchanges[0].thumbs, found.exchanges[0].comments) == ("up", ("no", "I misread it"))
    assert found.counts["feedback_of_nobody"] == 1


def test_files_are_read_oldest_first_and_what_tells_nothing_is_counted(site: Path) -> None:
    domain = traffic_month.DOMAINS[0]
    plain = traffic_month.record("x", 1.0, domain, "Weather in Lima, please", "null")
    others = [
        plain | {"id": "b", "guard": {"verdict": "blocked", "rule": "x"}},
        plain | {"id": "c", "path": "/v1/completions"},
        plain | {"id": "d", "status": 429},
    ]
    # As replicas write them, each into a folder of its own.
    records.write("logs/pod/requests.jsonl", [plain | {"id": "y"}])
    records.write("logs/requests-20260301T000000.0.jsonl", others)
    records.write("logs/requests.jsonl", [plain])
    assert [path.name for path in traffic.files("logs")][-1] == "requests.jsonl"
    found = traffic.read(traffic.files("logs"), None, NOBODY)
    assert [one.id for one in found.exchanges] == ["x", "y"]
    assert {key: found.counts[f"left_out_{key}"] for key in ("blocked", "completion", "refused")} == {
        "blocked": 1,
        "completion": 1,
        "refused": 1,
    }


def test_older_days_are_left_out(site: Path) -> None:
    assert mined("mine.days=7", "mine.drift.window_days=30")["chats"] < 400
    assert metrics.read("reports/mine.json")["left_out_older"] > 500


# Logs that are not scrubbed


def test_a_log_that_was_not_scrubbed_is_refused(site: Path) -> None:
    rows = list(records.read("logs/requests.jsonl"))
    records.write("logs/requests.jsonl", [*rows[:5], rows[5] | {"time": 1_700_000_000.5}, *rows[6:]])
    with pytest.raises(
        SystemExit, match=r"^logs/requests\.jsonl:6: a record that was not scrubbed: .*make serve"
    ) as refusal:
        mined()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("write to jane.roe@example.org", "EMAIL_ADDRESS"), ("the key is AKIAIOSFODNN7EXAMPLE", "SECRET_KEY")],
)
def test_a_log_that_still_holds_identifiers_is_refused_without_repeating_them(site: Path, text: str, kind: str) -> None:
    rows = list(records.read("logs/requests.jsonl"))
    asked = {"messages": [{"role": "user", "content": text}]}
    records.write("logs/requests.jsonl", [*rows[:3], rows[3] | {"kind": "request", "request": asked}])
    with pytest.raises(SystemExit, match=rf"^logs/requests\.jsonl:4: holds what looks like {kind}: ") as refusal:
        mined()
    assert not any(secret in str(refusal.value) for secret in ("jane", "AKIA"))
    mined("mine.pii.entities=[]", "mine.drift.least=1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "request"', r"requests\.jsonl:1: not JSON"),
        ('{"a": 1}', r"requests\.jsonl:1: no record of a log"),
        ('{"kind": "request", "id": "a", "time": "noon"}', r"requests\.jsonl:1: time is 'noon', where a moment"),
        ("", r"^logs: no chat in it .*mine\.days"),
    ],
)
def test_what_is_no_log_is_named(site: Path, line: str, message: str) -> None:
    Path("logs/requests.jsonl").write_text(line)
    with pytest.raises(SystemExit, match=message):
        mined()
    with pytest.raises(SystemExit, match=r"^elsewhere: no log there: .*serve\.log\.folder"):
        traffic.files("elsewhere")
    with pytest.raises(SystemExit, match=r"^usage: make mine LOGS=logs"):
        mine.main(["logs"])


# Uncertainty


def test_the_entropy_of_answers_is_that_of_their_classes() -> None:
    groups = [
        ["null", "null", "null"],
        [RIGHT, '{"arguments": {"a": 1}, "name": "sum"}', "null", "null"],
        ["Paris", "  paris ", "It is Rome, I think"],
        ["a", "b", "c", "d"],
    ]
    found = [consistency.entropy(of) for of in consistency.classes(groups, words, 0.9)]
    assert found[0] == 0
    assert found[1] == pytest.approx(np.log(2) / np.log(4))
    assert found[2] == pytest.approx(stats.entropy([2, 1]) / np.log(3))
    assert found[3] == pytest.approx(1)


def test_texts_that_mean_the_same_are_one_class() -> None:
    group = ["the answer is seven apples", "seven apples is the answer", "I do not know this"]
    assert consistency.classes([group], words, 0.9) == [[0, 0, 1]]
    assert consistency.majority(group, [0, 0, 1]) == group[0]


def test_an_endpoint_is_asked_for_more_answers_and_what_it_says_most_is_suggested(site: Path) -> None:
    known = mined()["prompts_of_known_entropy"]
    served = Endpoint(lambda body: "null" if body["seed"] % 5 else RIGHT)
    served.models = ["temper"]
    try:
        address = f"mine.endpoint.base_url={served.url}"
        values = mined(address, "mine.endpoint.prompts=40", "mine.endpoint.samples=3", "seed=1")
    finally:
        served.close()
    assert len(served.answered) == 40 * 3
    assert all(body["messages"][0]["role"] == "system" for body in served.answered), (
        "as the model was trained to be asked"
    )
    assert values["prompts_of_known_entropy"] == known + 40
    failures = [row for row in queue() if row["reason"] == mining.FAILURE]
    assert sum(row["suggested"] == "null" for row in failures[:20]) >= 15, "the others have an answer that was liked"


def test_what_failed_is_not_suggested_and_what_was_liked_is() -> None:
    liked, wrong = exchange(thumbs="up"), exchange("null", id="b", thumbs="down")
    for exchanges in ([wrong, wrong, liked], [liked, wrong]):
        (prompt,) = mining.prompts(exchanges)
        mining.find_failures(prompt, mining.Failures(0.5, calls_only=True))
        mining.find_uncertain([prompt], mining.Uncertain(2, 0.9, 0.5), words)
        assert prompt.suggested == RIGHT
    (prompt,) = mining.prompts([wrong, wrong])
    mining.find_failures(prompt, mining.Failures(0.5, calls_only=True))
    mining.find_uncertain([prompt], mining.Uncertain(2, 0.9, 0.5), words)
    assert prompt.suggested is None


# Drift


@pytest.mark.parametrize(
    ("plan", "features"),
    [
        ("a new domain of tools", {"requests", "tools"}),
        ("longer answers", {"answer_length"}),
        ("another language", {"language", "requests"}),
    ],
)
def test_planted_drift_is_found_where_it_is(site: Path, plan: str, features: set[str]) -> None:
    log(DRIFTING[plan])
    found = alarms(mined())
    after = {"2026-03-15", "2026-03-22"}
    assert {(feature, window) for feature in features for window in after} <= found
    assert {window for _, window in found} == after | {mine.ALL}


@pytest.mark.parametrize("is_long", [True, False], ids=["long answers", "short answers"])
def test_answers_that_were_always_so_are_no_drift_and_new_ones_are(site: Path, is_long: bool) -> None:
    """Answers are held against the model's own where there are some: reference answers would alarm since the first day."""
    log(Plan(since=0, longer=1.0, failing=0.0, repeated=0))
    before = mined()
    assert before["own_answers"] == 0
    assert ("answer_length", mine.ALL) in alarms(before)
    assert "held against the reference answers" in Path("reports/mine.md").read_text()
    records.write("data/evaluate/dpo.jsonl", traffic_month.answers(1, 150, is_long))
    records.write("data/evaluate/dpo-golden.jsonl", traffic_month.answers(2, 50, is_long))
    after = mined()
    assert after["own_answers"] == 200
    assert (("answer_length", mine.ALL) in alarms(after)) is not is_long
    assert "answer_kind" not in {feature for feature, _ in alarms(after)}
    assert "held against 200 of the model's own" in Path("reports/mine.md").read_text()


def test_requests_unlike_training_join_the_queue_when_there_is_drift(site: Path) -> None:
    log(DRIFTING["a new domain of tools"])
    mined()
    unlike = [row for row in queue() if row["reason"] == mining.UNLIKE]
    assert len(unlike) == 50
    assert sum(row["tools"][0]["name"] == traffic_month.NEW.tool for row in unlike) >= 45


@pytest.mark.slow
def test_months_that_did_not_drift_raise_no_more_alarms_than_promised(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "DRAWS", 2000)
    cfg = chosen("mine.drift.rules.kernel_rows=80")
    wrong, months = 0, 60
    for seed in range(months):
        records.write("data/mix/train.jsonl", traffic_month.training(seed, 500))
        exchanges = [
            traffic._exchange(row, [])
            for row in traffic_month.month(Plan(seed=seed, requests=500, failing=0.0))
            if row["kind"] == "request"
        ]
        wrong += bool(mine.compare(cfg, exchanges, mining.prompts(exchanges), words).alarms())
    assert wrong <= stats.binom.ppf(0.999, months, cfg.drift.rules.alpha)


def test_psi_alone_cries_wolf_on_small_samples_and_its_test_does_not() -> None:
    generator = np.random.default_rng(0)
    by_band = by_test = by_chance = 0
    draws = 200
    for _ in range(draws):
        training, window = generator.lognormal(size=200), generator.lognormal(size=60)
        value, chance, p = drift.binned(training, window, 10, generator)
        by_band += value >= drift.SMALL
        by_test += p <= 0.05
        by_chance += value > chance
    assert by_band > 0.5 * draws
    assert by_test <= stats.binom.ppf(0.999, draws, 0.05)
    assert by_chance <= stats.binom.ppf(0.999, draws, 1 - drift.CHANCE)


def test_psi_is_its_formula_and_what_it_is_by_chance_the_theory_s() -> None:
    before, after = np.array([400, 600]), np.array([250, 750])
    expected = (0.25 - 0.4) * np.log(0.25 / 0.4) + (0.75 - 0.6) * np.log(0.75 / 0.6)
    assert float(drift.psi(before, after)) == pytest.approx(expected, rel=5e-3)
    # Yurdakul and Naranjo (2020): PSI / (1/n + 1/m) is about χ² with bins - 1 degrees of freedom.
    even = np.full(10, 100)
    _, chance, p = drift.calibrated(even, even, np.random.default_rng(1))
    assert chance == pytest.approx(stats.chi2.ppf(0.95, 9) * 2 / 1000, rel=0.05)
    assert p == 1


def test_mmd_is_that_of_its_definition_and_tells_two_shapes_apart() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(40, 3)), generator.normal(size=(30, 3))
    kernel = drift.gaussian(np.concatenate([first, second]))
    pairs = [kernel[:40, :40], kernel[40:, 40:], kernel[:40, 40:]]
    expected = pairs[0].sum() / (40 * 39) + pairs[1].sum() / (30 * 29) - 2 * pairs[2].mean()
    belongs = (np.arange(70) < 40).astype(float)[:, None]
    assert drift.mmd(kernel, belongs)[0] == pytest.approx(expected)
    rules = drift.Rules(0.05, 10, 0.1, 0.25, 499, 100)
    # The same mean, another spread: a distance of centroids would see nothing.
    spread = generator.normal(size=(80, 3)) * 2
    assert drift.mmd_p(generator.normal(size=(80, 3)), spread, rules, generator) == 1 / 500
    samples = [generator.normal(size=(2, 40, 3)) for _ in range(60)]
    found = [drift.mmd_p(pair[0], pair[1], rules, generator) for pair in samples]
    assert sum(p <= 0.05 for p in found) <= stats.binom.ppf(0.999, 60, 0.05)


def test_a_certain_shift_that_is_small_is_no_alarm_in_numbers_and_one_in_embeddings() -> None:
    rules = drift.Rules(0.05, 10, 0.1, 0.25, 999, 100)
    found = {
        test: drift.outcome(drift.Shift(test, 1e-6, 0.05, 0.01, 9000), 1e-5, rules)
        for test in (drift.KS, drift.PSI, drift.MMD)
    }
    assert found == {drift.KS: drift.NONE, drift.PSI: drift.NONE, drift.MMD: drift.MODERATE}
    assert drift.outcome(drift.Shift(drift.KS, 1e-6, 0.3, 0.01, 9000), 1e-5, rules) == drift.LARGE
    assert drift.outcome(drift.Shift(drift.KS, 0.01, 0.3, 0.4, 50), 0.2, rules) == drift.NONE


def test_the_family_is_corrected() -> None:
    generator = np.random.default_rng(3)
    training = {str(name): Sample(numbers=generator.normal(size=300)) for name in range(20)}
    window = {name: Sample(numbers=generator.normal(size=80)) for name in training}
    rules = drift.Rules(0.05, 10, 0.1, 0.25, 999, 100)
    found = drift.judged(training, {"w": window}, rules, 1)
    assert found[Asked("0", "w")].p >= found[Asked("0", "w")].shift.p
    assert drift.judged(training, {"w": window}, rules, 1) == found


def test_training_rows_and_prompts_count_once_however_often_they_come() -> None:
    rows = traffic_month.training(0, 5)
    assert len(list(likeness.of_training([*rows, *rows]))) == 5
    exchanges = [exchange(), exchange(), exchange("null", request={"messages": [{"role": "user", "content": "other"}]})]
    assert [one.request for one in likeness.of_traffic(exchanges)] == ["add", "other"]


def test_settings_that_cannot_find_anything_are_refused(site: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^mine\.drift\.rules\.permutations is 99: with \d+ tests at alpha 0\.05 no shift"
    ):
        mined("mine.drift.rules.permutations=99")
    with pytest.raises(SystemExit, match=r"^data/mix/train\.jsonl: \d+ rows with an answer, where drift needs 2000"):
        mined("mine.drift.least=1000")
    with pytest.raises(SystemExit, match=r"^mine\.source\.positives: least 0\.3, share 0\.9, most 0\.5: expected"):
        mined("mine.source.positives.share=0.9")
    with pytest.raises(SystemExit, match=r"^mine\.source\.folder is 'data/x': choose a folder below raw/"):
        mined("mine.source.folder=data/x")


# Labels


def labelled(**others: Any) -> None:
    """The queue with a label in every row."""
    rows: Any = queue()
    labels: dict[str, Any] = {row["id"]: "null" for row in rows} | {
        rows[place]["id"]: one for place, one in others.items()
    }
    records.write("mined/queue.jsonl", [row | {"label": labels[row["id"]]} for row in rows])


def made(name: str) -> list[Row]:
    return list(records.read(f"raw/mined/{name}.jsonl"))


def test_labels_become_a_source_that_ingest_takes(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mined()
    labelled()
    mine.main(["labels", "mined/queue.jsonl"])
    values = metrics.read("raw/mined/manifest.json")
    assert values["failures"] == len(made("failures")) > 20
    assert 0.3 <= values["positives_share"] <= 0.5
    assert values["positives_share"] == pytest.approx(
        values["positives"] / (3 * values["failures"] + values["others"] + values["positives"]), rel=1e-4
    )

    monkeypatch.setenv("TEMPER_SCRATCH", str(site / "scratch"))
    whole = OmegaConf.create(composed(["data=mined", "mix=mined", "data.max_tokens=null", "ingest.null_share=0"]))
    whole.ingest.sources = [one for one in whole.ingest.sources if one.kind == "file"]
    OmegaConf.save(whole, "params.yaml")
    ingest.main()
    found = metrics.read("reports/ingest.json")
    assert found["kept"] == found["seen"] == sum(values[name] for name in ("failures", "others", "positives"))
    rows = list(shards.read("data/ingest"))
    assert {row["source"] for row in rows} == {f"mined/{name}.jsonl" for name in ("failures", "others", "positives")}
    assert {row["provenance"]["method"] for row in rows} == {"mine"}
    assert {row["licence"] for row in rows} == {"proprietary"}
    assert all(row["tools"] and row["messages"][0]["role"] == "system" for row in rows)
    assert {row["gold"] is None for row in rows if row["source"] == "mined/failures.jsonl"} == {True}
    repeated = params.load("mix", ingest_mix(), Path("params.yaml")).groups
    assert repeated is not None and repeated["failures"].copies == values["copies_of_failures"] == 3


def ingest_mix() -> Any:
    from scripts.mix import Mix

    return Mix


def test_a_label_is_the_answer_the_suggestion_or_nothing(site: Path) -> None:
    mined()
    rows = queue()[:4]
    tool = rows[1]["tools"][0]
    kinds = {"integer": 3, "string": "Lima"}
    values = {key: kinds[one["type"]] for key, one in tool["parameters"]["properties"].items()}
    call = json.dumps({"name": tool["name"], "arguments": values})
    given = [
        rows[0] | {"label": True, "suggested": "null"},
        rows[1] | {"label": call},
        rows[2] | {"label": False},
        rows[3],
    ]
    records.write("mined/queue.jsonl", given)
    mine.main(["labels", "mined/queue.jsonl"])
    assert [row["messages"][-1]["content"] for row in made("failures")] == ["null", call]
    manifest = metrics.read("raw/mined/manifest.json")
    assert (manifest["labels_dropped"], manifest["labels_waiting"]) == (1, 1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (True, r"queue\.jsonl:1: label is true, and nothing was suggested"),
        (3, r"queue\.jsonl:1: label is 3: expected the right answer as text"),
        ("", r"queue\.jsonl:1: label is \"\": expected"),
        ("the weather", r"queue\.jsonl:1: its label makes no row to train on: .*correct it, or set it to false"),
        (None, r"queue\.jsonl: no label in 1 rows: fill in"),
    ],
)
def test_a_label_that_is_none_is_named(site: Path, label: Any, message: str) -> None:
    mined()
    records.write("mined/queue.jsonl", [queue()[0] | {"label": label, "suggested": None}])
    with pytest.raises(SystemExit, match=message) as refusal:
        mine.main(["labels", "mined/queue.jsonl"])
    assert "\n" not in str(refusal.value)


def test_too_few_positives_are_refused_and_none_asks_what_was_labelled(site: Path) -> None:
    mined()
    labelled()
    found = labelling.read(Path("mined/queue.jsonl"))
    liked = list(records.read("mined/liked.jsonl"))
    cfg = chosen().source
    with pytest.raises(SystemExit, match=r"^3 answers that were liked, .*mine\.source\.positives\.least is 30%"):
        labelling.chosen(liked[:3], found, cfg, 17)
    copied = [found.rows[mining.FAILURE][0] | {"provenance": {"request": "x"}}]
    assert copied[0] not in labelling.chosen([*copied, *liked], found, cfg, 17)
    assert labelling.chosen(liked, found, cfg, 17) == labelling.chosen(liked[::-1], found, cfg, 17)


def test_a_row_whose_caller_had_a_system_turn_of_its_own_shows_the_tools_as_training_does() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "add"}]
    first = mining.row(turns, [TOOL], RIGHT)["messages"][0]["content"]
    assert first.endswith("sum(a: integer)\n\nBe brief.")
    again = mining.row([{"role": "system", "content": first}, turns[1]], [TOOL], RIGHT)["messages"]
    assert [turn["role"] for turn in again] == ["system", "user", "assistant"]


@pytest.mark.engine
def test_the_real_model_finds_a_new_domain_by_command(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the rules as shipped: those of the other tests are quick, and too weak for a tenth of the rows."""
    log(replace(DRIFTING["a new domain of tools"], new_domain=0.2))
    Path("params.yaml").write_text(composed([]))
    mine.main(["logs", "logs"])
    found = alarms(metrics.read("reports/mine.json"))
    assert {("requests", "all"), ("tools", "all")} <= found
    assert {window for _, window in found} <= {"all", "2026-03-15", "2026-03-22"}
    log(CLEAN)
    mine.main(["logs", "logs"])
    assert alarms(metrics.read("reports/mine.json")) == set()
    assert embeddings.SIZE == 384
