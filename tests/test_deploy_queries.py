"""What Prometheus makes of the chart's queries: promtool evaluates them on series as /metrics of the server prints them."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from temper import envs, exposition
from tests import promtool
from tests.test_deploy import CANARY, Values, helm, merged

RELEASE: Values = {
    "model": {
        "repository": "https://example.org/temper.git",
        "revision": "1" * 40,
        "path": "models/dpo",
        "md5": "a" * 32 + ".dir",
        "folder": "/var/lib/temper/models/a/temper",
    },
    "server": {"image": "temper-server", "settings": "serve: {}", "sequences": 64},
    "fetch": {"image": "fetch"},
}
# Of vllm/v1/metrics/buckets.py: the first end there, and some of the others.
ENDS = ("0.3", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf")
NEW, OLD = "new111", "old222"
REVISIONS = {NEW: "0a1b", OLD: "0c2d"}
Series = dict[str, str]
"""By name and labels, values in promtool's notation: 0+3x40 rises by 3 a step, forty times."""


def query(kind: str, name: str) -> str:
    """A trigger's query, or that of an analysis metric about the pods NEW beside the pods OLD."""
    return str(source(kind, name)["query"]).replace("{{args.canary-hash}}", NEW).replace("{{args.stable-hash}}", OLD)


def source(kind: str, name: str) -> Values:
    spec = manifests()[kind]["spec"]
    if kind == "ScaledObject":
        return dict(next(one["metadata"] for one in spec["triggers"] if one["name"] == name))
    return dict(next(one["provider"]["prometheus"] for one in spec["metrics"] if one["name"] == name))


@cache
def manifests() -> dict[str, Values]:
    found = helm(merged(RELEASE, CANARY))
    assert found["errors"] == []
    documents = [one for text in found["rendered"].values() for one in yaml.safe_load_all(text) if one]
    return {one["kind"]: one for one in documents}


def labelled(name: str, pod: str = "a", side: str = OLD, **labels: str) -> str:
    """A series as Prometheus stores it: vLLM's own labels, and those of the scrape."""
    own = {"engine": "0", "model_name": "temper"} if name.startswith("vllm:") else {}
    scraped = {"namespace": "llm", "job": "temper-pods", "pod": pod, "rollouts_pod_template_hash": side}
    told = ",".join(f'{key}="{value}"' for key, value in (own | scraped | labels).items())
    return f"{name}{{{told}}}"


def histogram(
    name: str, buckets: dict[str, int], side: str = OLD, steps: int = 40, start: int = 0, each: int = 1
) -> Series:
    """A histogram into whose buckets so many values fall in every so many steps: its cumulative counts."""
    rises = [sum(count for end, count in buckets.items() if float(end) <= float(limit)) for limit in ENDS]
    return {
        labelled(f"{name}_bucket", side=side, le=limit): f"{start}+{rise / each:g}x{steps}"
        for limit, rise in zip(ENDS, rises, strict=True)
    } | {labelled(f"{name}_count", side=side): f"{start}+{rises[-1] / each:g}x{steps}"}


def evaluated(tmp_path: Path, expression: str, series: Series, expected: float | None, at: str = "10m") -> None:
    """Exit with promtool's difference unless the expression has the one expected value, or none for None."""
    try:
        tool = promtool.found()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        # Rates are sums of fractions, and promtool compares every bit.
        "promql_expr_test": [{"expr": f"round({expression}, 0.001)", "eval_time": at, "exp_samples": samples}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [case]}))
    done = subprocess.run(
        [str(tool), "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_queue_of_all_replicas_is_counted(tmp_path: Path) -> None:
    name = "vllm:num_requests_waiting"
    series = {labelled(name, "a"): "6x40", labelled(name, "b", engine="1"): "3x40", labelled(name, "c", NEW): "1x40"}
    others = {labelled(name, "d", namespace="other"): "9x40", labelled(name, "e", job="temper"): "9x40"}
    evaluated(tmp_path, query("ScaledObject", "waiting"), series | others, 10)


def test_the_wait_is_what_nine_of_ten_do_not_exceed(tmp_path: Path) -> None:
    series = histogram("vllm:request_queue_time_seconds", {"0.3": 8, "5.0": 2})
    # The ninth of ten is half way between 2.5 and 5.
    evaluated(tmp_path, query("ScaledObject", "wait"), series, 3.75)


@pytest.mark.parametrize("name", ["waiting", "wait", "busy"])
def test_nothing_scraped_is_no_reason_to_take_replicas_away(tmp_path: Path, name: str) -> None:
    evaluated(tmp_path, query("ScaledObject", name), {labelled("up"): "0x40"}, None)
    assert source("ScaledObject", name)["ignoreNullValues"] == "false", "KEDA would read nothing as 0"


@pytest.mark.parametrize("name", ["wait", "busy"])
def test_yesterdays_load_does_not_keep_replicas(tmp_path: Path, name: str) -> None:
    """The counters stay as high as they were: what is asked is their rate."""
    series = {
        labelled("vllm:num_requests_waiting"): "0x80",
        labelled("vllm:e2e_request_latency_seconds_sum"): "90000x80",
    }
    idle = histogram("vllm:request_queue_time_seconds", {"10.0": 0}, steps=80, start=5000)
    evaluated(tmp_path, query("ScaledObject", name), series | idle, 0)


def test_busy_is_how_many_requests_are_under_way(tmp_path: Path) -> None:
    name = "vllm:e2e_request_latency_seconds_sum"
    # 30 at a time take 450 seconds in 15; the other replica 20 at a time, and starts again midway.
    restarted = "0+300x30 0+300x30"
    series = {labelled(name, "a"): "0+450x60", labelled(name, "b"): restarted}
    evaluated(tmp_path, query("ScaledObject", "busy"), series, 50, at="7m")
    evaluated(tmp_path, query("ScaledObject", "busy"), series, 50, at="14m")
    threshold = float(source("ScaledObject", "busy")["threshold"])
    assert threshold == pytest.approx(0.7 * RELEASE["server"]["sequences"])


def errors(failed: int, broken: int, good: int) -> Series:
    """Of a canary, in each step: responses with a 5xx, streams whose error the engine told in them, and answers."""
    statuses = {"429": 1, "503": failed, "200": good + broken}
    name = "temper_requests_total"
    told = {labelled(name, side=NEW, status=status): f"0+{count}x40" for status, count in statuses.items()}
    told |= {labelled(name, side=OLD, status="500"): "0+50x40"}
    return told | {
        labelled("vllm:request_success_total", side=NEW, finished_reason=reason): f"0+{count}x40"
        for reason, count in {"stop": good, "length": 0, "abort": 1, "error": broken}.items()
    }


def times(new: str, old: str, each: int = 1) -> Series:
    name = "vllm:e2e_request_latency_seconds"
    return histogram(name, {"0.3": 90, new: 10}, NEW, each=each) | histogram(name, {"0.3": 90, old: 10}, OLD)


def verdicts(new: int, old: int, each: int = 1) -> Series:
    """Of 100 requests on each side in every so many steps."""
    counts = {NEW: (new, 100 - new), OLD: (old, 100 - old)}
    return {
        labelled("temper_guard_requests_total", side=side, verdict=verdict): f"0+{count / each:g}x40"
        for side, pair in counts.items()
        for verdict, count in zip(("blocked", "allowed"), pair, strict=True)
    }


def scores(new: str | None, old: str | None, *, by: str = OLD) -> Series:
    """Means of both revisions' answers, all of which reached pods of one side, which also know what an older release had."""
    told = {labelled("temper_release", side=side, revision=revision): "1x40" for side, revision in REVISIONS.items()}
    means = {REVISIONS[NEW]: new, REVISIONS[OLD]: old, "0e3f": "0.1"}
    return told | {
        labelled("temper_judge_score", side=by, revision=revision): f"{mean}x40"
        for revision, mean in means.items()
        if mean
    }


# 1 in the label of a result: whether the release goes on; None where too little is known to say.
ANALYSES: dict[str, tuple[str, Series, float | None, bool | None]] = {
    "no error": ("error-rate", errors(0, 0, 99), 0.0, True),
    "answers with a 5xx": ("error-rate", errors(5, 0, 94), 0.05, False),
    "streams that broke": ("error-rate", errors(0, 5, 94), 0.05, False),
    "errors, of six requests": (
        "error-rate",
        {labelled("temper_requests_total", side=NEW, status="500"): "0x30 1x10"},
        None,
        None,
    ),
    "as fast": ("p99", times("2.5", "2.5"), 1.0, True),
    "slower": ("p99", times("5.0", "1.0"), 4.75 / 0.95, False),
    "slower, of five requests": ("p99", times("5.0", "1.0", each=400), None, None),
    "no request yet": ("p99", histogram("vllm:e2e_request_latency_seconds", {"0.5": 9}, OLD), None, None),
    "blocked as before": ("guard-rate", verdicts(3, 3), 0.0, True),
    "blocked more": ("guard-rate", verdicts(8, 3), 0.05, False),
    "blocked more, of five requests": ("guard-rate", verdicts(8, 3, each=400), None, None),
    "no guard": ("guard-rate", {}, None, None),
    "judged better": ("judge-score", scores("0.9", "0.8"), -0.1, True),
    "judged worse": ("judge-score", scores("0.7", "0.8"), 0.1, False),
    "judged worse, and heard by the canary": ("judge-score", scores("0.7", "0.8", by=NEW), 0.1, False),
    "not judged": ("judge-score", scores(None, "0.8"), None, None),
}


@pytest.mark.parametrize(("name", "series", "expected", "goes_on"), ANALYSES.values(), ids=ANALYSES)
def test_a_canary_goes_on_where_it_is_no_worse(
    tmp_path: Path, name: str, series: Series, expected: float | None, goes_on: bool | None
) -> None:
    evaluated(tmp_path, query("AnalysisTemplate", name), series, expected)
    (metric,) = (one for one in manifests()["AnalysisTemplate"]["spec"]["metrics"] if one["name"] == name)
    result = [] if expected is None else [expected]
    met = {key: concluded(metric[key], result) for key in ("successCondition", "failureCondition")}
    assert met == {"successCondition": goes_on is True, "failureCondition": goes_on is False}


def concluded(condition: str, result: list[float]) -> bool:
    """A condition of an analysis, in the few words that the chart uses of Argo's expressions."""
    some, bound = re.fullmatch(r"(len\(result\) > 0) && result\[0\] ((?:<=|>) [\d.]+)", condition).groups()  # type: ignore[union-attr]
    assert some
    sign, number = bound.split()
    return bool(result) and (result[0] <= float(number) if sign == "<=" else result[0] > float(number))


def test_the_gateway_prints_what_is_asked() -> None:
    printed = Path(exposition.__file__).read_text()
    told = " ".join(query(kind, name) for kind, name in asked_of())
    found = set(re.findall(r"temper_\w+", told))
    assert found == {"temper_requests_total", "temper_guard_requests_total", "temper_judge_score", "temper_release"}
    for name in found:
        assert f'"{name.removesuffix("_total")}"' in printed, name
    for label in ("status", "verdict", "revision"):
        assert f'"{label}"' in printed


def test_the_locked_engine_prints_what_is_asked() -> None:
    try:
        envs.python("serve")
    except SystemExit as reason:
        pytest.skip(str(reason))
    packages = envs.path("serve") / "lib/python3.11/site-packages"
    printed = (packages / "vllm/v1/metrics/loggers.py").read_text()
    told = " ".join(query(kind, name) for kind, name in asked_of())
    found = set(re.findall(r"vllm:\w+", told))
    assert len(found) >= 4
    for name in found:
        stem = re.sub(r"_(bucket|sum|count|total)$", "", name)
        assert re.search(rf'name="({name}|{stem})"', printed), name
    assert 'labelnames = ["model_name", "engine"]' in printed
    assert 'labelnames=labelnames + ["finished_reason"]' in printed
    buckets = (packages / "vllm/v1/metrics/buckets.py").read_text()
    assert re.search(rf"REQUEST_LATENCY_BUCKETS.*?\(\s*{re.escape(ENDS[0])},", buckets, re.DOTALL)


def asked_of() -> list[tuple[str, str]]:
    """(kind, name) of every query of the chart."""
    triggers, metrics = (manifests()[kind]["spec"] for kind in ("ScaledObject", "AnalysisTemplate"))
    scaled = [("ScaledObject", one["name"]) for one in triggers["triggers"]]
    return scaled + [("AnalysisTemplate", one["name"]) for one in metrics["metrics"]]
