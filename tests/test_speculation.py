"""How vLLM is told to draft, what a draft gains, and whether it pays."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from temper import metrics, speculation
from temper.speculation import Speculation, Verdict

SHIPPED = {"ngram": ("ngram", 3, 2, 4, 32, 32, 96, 0.25), "eagle3": ("eagle3", 3, None, None, 32, 32, 96, 0.25)}


def test_the_gap_is_the_domain_over_general_text() -> None:
    domain = {"drafts": 9, "acceptance_length": 2.0, "tokens_per_step": 1.5, "acceptance_at_0": 0.5}
    generic = {"drafts": 4, "acceptance_length": 1.25, "tokens_per_step": 1.25, "acceptance_at_0": 0.75}
    found = {
        f"{text}_{name}": value for text, of in (("domain", domain), ("generic", generic)) for name, value in of.items()
    }
    gaps = {"gap_acceptance_length": 0.75, "gap_tokens_per_step": 0.25, "gap_acceptance_at_0": -0.25}
    assert speculation.contrast(found | {"lossless": 1}) == gaps


def test_a_head_must_yield_more_than_a_lookup() -> None:
    reports = [{"domain_tokens_per_step": steps} for steps in (1.5, 1.5, 1.25)]
    assert speculation.beats(reports[0], reports[2])
    assert not speculation.beats(reports[0], reports[1])


def test_a_method_pays_where_it_serves_faster() -> None:
    plain = {"c1_tokens_per_second": 40.0, "c8_tokens_per_second": 200.0, "c1_ttft_p50_ms": 9.0}
    found = speculation.verdicts(speculation.speeds(plain), {1: 60.0, 8: 150.0, 32: 900.0})
    assert [(verdict.concurrency, verdict.pays) for verdict in found] == [(1, True), (8, False)]
    assert speculation.told(found) == "1: 1.50× (on), 8: 0.75× (off)"


@pytest.mark.parametrize(
    ("paying", "sequences", "expected"),
    [
        ({1: True, 8: True, 32: False}, 64, [[1, 8, 3], [9, 64, 0]]),
        ({1: True, 8: False, 32: False}, 64, [[1, 1, 3], [2, 64, 0]]),
        ({1: False, 8: True, 32: True}, 64, [[1, 1, 0], [2, 64, 3]]),
        ({1: True, 8: False, 32: True}, 64, [[1, 1, 3], [2, 8, 0], [9, 64, 3]]),
        ({1: True, 8: False, 32: False}, 4, [[1, 1, 3], [2, 4, 0]]),
        ({1: True, 8: False}, 8, [[1, 1, 3], [2, 8, 0]]),
        ({1: True}, 16, [[1, 16, 3]]),
        ({}, 16, []),
    ],
)
def test_a_batch_size_goes_by_the_next_that_was_measured(
    paying: dict[int, bool], sequences: int, expected: list[list[int]]
) -> None:
    found = [Verdict(level, 1.0, 2.0 if pays else 0.5) for level, pays in paying.items()]
    assert speculation.schedule(found, 3, sequences) == expected


def test_verdicts_are_of_reports_that_bench_wrote(tmp_path: Path) -> None:
    metrics.write(tmp_path / "bf16.json", {"c1_tokens_per_second": 10.0})
    assert speculation.measured("eagle3", tmp_path) == []
    metrics.write(tmp_path / "eagle3.json", {"c1_tokens_per_second": 13.0})
    assert speculation.measured("eagle3", tmp_path) == [Verdict(1, 10.0, 13.0)]


def test_vllm_is_told_what_each_method_takes() -> None:
    ngram, head = (Speculation(*SHIPPED[name]).arguments(Path("models/draft")) for name in ("ngram", "eagle3"))
    told = dict(pairwise(ngram))
    assert told["--speculative-config.prompt_lookup_max"] == "4"
    assert not any("model" in key for key in ngram)
    assert dict(pairwise(head))["--speculative-config.model"] == "models/draft"
    assert not any("lookup" in key for key in head)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "medusa"}, "speculation.method is 'medusa', expected ngram or eagle3"),
        ({"tokens": 0}, "must be 1 or more"),
        ({"generic": 0}, "must be 1 or more"),
        ({"lookup_max": 1}, "n-grams of 2 to 1"),
        ({"lookup_min": None}, "n-grams of None to 4"),
        ({"lookup_min": 0}, "n-grams of 0 to 4"),
    ],
)
def test_speculation_without_meaning_is_refused_in_one_line(changed: dict[str, Any], said: str) -> None:
    for shipped in SHIPPED.values():
        Speculation(*shipped).check("bench.ngram")
    with pytest.raises(SystemExit, match=r"^bench\.ngram: .*: correct conf/bench$") as error:
        replace(Speculation(*SHIPPED["ngram"]), **changed).check("bench.ngram")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
