"""What a server's counters say of a stretch of time."""

import pytest

from temper import scrape

TEXT = """
# HELP vllm:request_queue_time_seconds Histogram of time spent in WAITING phase.
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="a {b} \\"c\\""} 60.0
vllm:request_queue_time_seconds_bucket{engine="0",le="0.5",model_name="a"} 98.0
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf",model_name="a"} 100.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="a"} 25.0
vllm:request_queue_time_seconds_count{engine="0",model_name="a"} 100.0
vllm:spec_decode_num_drafts_total{engine="0"} 10.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 30.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 12.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 8.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 4.0
vllm:generation_tokens_total{engine="0"} 72.0
vllm:prefix_cache_queries_total{engine="0"} 400.0
vllm:prefix_cache_hits_total{engine="0"} 100.0
"""


def test_series_are_read_with_their_labels() -> None:
    found = scrape.parsed(TEXT)
    assert found.total("vllm:request_queue_time_seconds_count") == 100
    assert found.by("vllm:request_queue_time_seconds_bucket", "le") == {"0.3": 60, "0.5": 98, "+Inf": 100}
    assert found.by("vllm:request_queue_time_seconds_bucket", "model_name")['a {b} \\"c\\"'] == 60


def test_a_wait_is_told_by_its_mean_and_a_bound_of_its_buckets() -> None:
    assert scrape.queue(scrape.parsed(TEXT)) == {"queue_mean_ms": 250}  # the 99th is beyond the last bound
    shorter = TEXT.replace('le="0.5",model_name="a"} 98.0', 'le="0.5",model_name="a"} 99.0')
    assert scrape.queue(scrape.parsed(shorter)) == {"queue_mean_ms": 250, "queue_p99_below_ms": 500}


def test_a_draft_is_told_by_tokens_of_a_step_and_by_position() -> None:
    assert scrape.speculation(scrape.parsed(TEXT)) == {
        "drafts": 10,
        "acceptance": pytest.approx(0.4),
        "acceptance_length": pytest.approx(2.2),
        "tokens_per_step": pytest.approx(1.2),
        "acceptance_at_0": 0.8,
        "acceptance_at_1": 0.4,
    }
    assert scrape.cached(scrape.parsed(TEXT)) == {"prefix_cached": 0.25}


def test_only_what_was_added_counts_and_stretches_add_up() -> None:
    before = scrape.parsed(TEXT)
    after = scrape.parsed(TEXT.replace('num_drafts_total{engine="0"} 10.0', 'num_drafts_total{engine="0"} 15.0'))
    during = after.since(before)
    assert during.total(scrape.DRAFTS) == 5
    assert scrape.added([during, during]).total(scrape.DRAFTS) == 10
    # Nothing waited for or looked up: nothing to say.
    assert (scrape.queue(during), scrape.cached(during)) == ({}, {})


def test_a_draft_that_found_nothing_gained_nothing_and_no_draft_says_nothing() -> None:
    found = scrape.parsed(TEXT)
    idle = scrape.speculation(found.since(found))
    assert idle == {"drafts": 0, "tokens_per_step": 1}
    lines = [line for line in TEXT.splitlines() if "spec_decode" not in line]
    assert scrape.speculation(scrape.parsed("\n".join(lines))) == {}


def test_steps_without_a_draft_count_against_a_method_that_has_few() -> None:
    few = TEXT.replace('drafts_total{engine="0"} 10.0', 'drafts_total{engine="0"} 1.0').replace("72.0", "1212.0")
    found = scrape.speculation(scrape.parsed(few))
    assert found["acceptance_length"] == 13
    assert found["tokens_per_step"] == pytest.approx(1.01)
