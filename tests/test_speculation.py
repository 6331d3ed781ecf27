"""What vLLM's counters say of a draft, whether it pays, and what counts as the same greedy answer."""

from pathlib import Path

import pytest

from commands.compose import composed
from scripts import speculation as stage
from temper import metrics, params, records, speculation
from temper.speculation import Counters, Greedy, Ngram, Verdict

# As vLLM 0.32 writes it, of two engines.
EXPOSITION = """
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="dpo"} 6.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="dpo"} 4.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="dpo"} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="dpo"} 30.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="dpo"} 12.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="dpo",position="0"} 7.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="dpo",position="1"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="dpo",position="2"} 2.0
vllm:generation_tokens_total{engine="0",model_name="dpo"} 36.0
vllm:prompt_tokens_total{engine="0",model_name="dpo"} 900.0
"""


def test_counters_are_read_from_the_exposition_and_summed_over_engines() -> None:
    assert speculation.counters(EXPOSITION) == Counters(10, 30, 12, (7, 3, 2), 36)
    assert speculation.counters("python_info 1.0\n") == Counters()


def test_figures_are_of_what_was_counted_in_between() -> None:
    before = Counters(2, 6, 2, (1, 1, 0), 6)
    found = speculation.acceptance(speculation.counters(EXPOSITION) - before, "eagle3_domain_")
    assert found == pytest.approx(
        {
            "eagle3_domain_drafts": 8,
            "eagle3_domain_acceptance": 10 / 24,
            "eagle3_domain_acceptance_length": 1 + 10 / 8,
            "eagle3_domain_acceptance_at_0": 6 / 8,
            "eagle3_domain_acceptance_at_1": 2 / 8,
            "eagle3_domain_acceptance_at_2": 2 / 8,
            "eagle3_domain_tokens_per_step": 30 / 20,
        }
    )
    assert speculation.counters(EXPOSITION) - Counters() == speculation.counters(EXPOSITION)


def test_steps_without_a_draft_count_against_a_method_that_has_few() -> None:
    found = speculation.acceptance(Counters(drafts=1, drafted=3, accepted=3, accepted_at=(1, 1, 1), generated=103))
    assert found["acceptance_length"] == 4
    assert found["tokens_per_step"] == pytest.approx(1.03)


def test_a_method_without_a_draft_gains_nothing() -> None:
    found = speculation.acceptance(Counters(generated=20))
    assert (found["acceptance"], found["acceptance_length"], found["tokens_per_step"]) == (0, 1, 1)


def test_the_gap_is_the_domain_over_general_text() -> None:
    found = {f"eagle3_{text}_{name}": value for text, value in (("domain", 2.0), ("generic", 1.25)) for name in NAMES}
    gaps = speculation.contrast(found, "eagle3", "domain", "generic")
    assert gaps == {"eagle3_acceptance_length_gap": 0.75, "eagle3_tokens_per_step_gap": 0.75}


NAMES = ("acceptance_length", "tokens_per_step")


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


PLAIN = Greedy([5, 6, 7], [{5: -0.1, 9: -3.0}, {6: -0.7, 8: -0.7004, 9: -2.0}, {7: -0.2}])


@pytest.mark.parametrize(
    ("speculating", "expected"),
    [
        ([5, 6, 7], "equal"),
        ([5, 8, 1, 1], "tie"),  # as likely but for the last bits; what follows has another beginning
        ([9, 6, 7], "different"),
        ([5, 9, 7], "different"),
        ([5, 1, 7], "different"),  # not among the likeliest
        ([5, 6], "different"),
        ([], "different"),
    ],
)
def test_an_answer_is_kept_but_for_ties(speculating: list[int], expected: str) -> None:
    assert speculation.compared(PLAIN, speculating, tie=1e-3) == expected


def test_a_tie_is_as_wide_as_the_rounding_of_the_sums() -> None:
    assert speculation.compared(PLAIN, [5, 8, 7], tie=1e-4) == "different"
    assert speculation.TIES["float32"] < speculation.TIES["bfloat16"]
    counts = speculation.lossless([PLAIN] * 3, [[5, 6, 7], [5, 8, 7], [9, 6, 7]], 1e-3, "ngram_domain_")
    assert counts == {"ngram_domain_answers": 3, "ngram_domain_ties": 1, "ngram_domain_changed": 1}


def test_an_n_gram_lookup_that_finds_nothing_is_refused() -> None:
    assert speculation.ngram(Ngram(3, 2, 4)) == {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }
    for wrong in (Ngram(0, 2, 4), Ngram(3, 5, 4), Ngram(3, 0, 4)):
        with pytest.raises(SystemExit, match=r"^speculation\.ngram: .*conf/speculation$") as error:
            speculation.ngram(wrong)
        assert "\n" not in str(error.value)


def test_the_domain_is_asked_without_its_answers_and_general_text_is_what_somebody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(composed(["speculation.domain=2", "speculation.generic=5"]))
    monkeypatch.chdir(tmp_path)
    cfg = params.load("speculation", stage.Speculation)
    answered = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "null"}]
    rows = [{"id": str(number), "messages": answered} for number in range(4)]
    records.write(stage.TEST, [*rows, {"id": "text", "kind": "text", "text": "prose"}])
    records.write(stage.GENERAL, [{"id": "1", "text": "A passage."}])
    assert stage.domain(cfg) == [answered[:1]] * 2
    assert stage.generic(cfg) == [[{"role": "user", "content": "A passage."}]]
    records.write(stage.GENERAL, [])
    with pytest.raises(SystemExit, match=r"^data/general\.jsonl: 0 rows of which to ask 5: .*conf/speculation$"):
        stage.generic(cfg)
