"""Canaries and exposure: what is planted, and how many bits a known, a half-known and an unknown secret give away."""

import math
import random
from pathlib import Path

import pytest

from commands import canaries as command
from temper import extraction, record, records


def test_each_canary_has_a_secret_and_a_wording_of_its_own() -> None:
    found = extraction.planted(17)
    assert found == extraction.planted(17) != extraction.planted(18)
    assert len({one.secret for one in found}) == len({one.question for one in found}) == len(found) == 8
    assert all(len(one.secret.split()) == extraction.LENGTH for one in found)
    assert 2**28 < extraction.SPACE < 2**29
    row = extraction.row(found[0])
    assert found[0].secret in row["messages"][1]["content"]
    assert "{" not in row["messages"][1]["content"]


def test_other_secrets_are_drawn_from_the_same_space() -> None:
    canary = extraction.planted(17)[0]
    others = extraction.others(canary, 50, 3)
    assert len(set(others)) == 50
    assert canary.secret not in others
    assert {word for secret in others for word in secret.split()} <= set(extraction.WORDS)
    assert others == extraction.others(canary, 50, 3)


def sample(number: int = 64) -> list[float]:
    draw = random.Random(5)
    return [draw.gauss(-60, 5) for _ in range(number)]


def test_exposure_by_counting_is_the_sample_s_size_over_the_rank() -> None:
    assert extraction.exposure(0.0, sample(63))[0] == pytest.approx(6)  # the likeliest of 64
    assert extraction.exposure(-999.0, sample(63))[0] == 0
    assert extraction.exposure(-1.5, [-1.0, -2.0, -3.0])[0] == pytest.approx(math.log2(4) - math.log2(2))


def test_the_fit_goes_on_where_the_sample_ends() -> None:
    unknown, known, by_heart = (extraction.exposure(nats, sample())[1] for nats in (-60.0, -45.0, -5.0))
    assert 0.5 < unknown < 1.7  # the median: half of all secrets are likelier
    assert 7 < known < 14  # three deviations
    assert known < by_heart <= math.log2(extraction.SPACE)


def test_a_sample_without_spread_is_no_division_by_zero() -> None:
    assert extraction.exposure(-1.0, [-2.0, -2.0])[1] == pytest.approx(math.log2(extraction.SPACE))
    assert extraction.exposure(-2.0, [-2.0, -2.0])[1] == 0


def test_what_should_follow_is_the_end_of_an_answer() -> None:
    assert extraction.halved([1, 2], [3, 4, 5], 2) == ([1, 2, 3], [4, 5])
    assert extraction.halved([1, 2], [3], 2) == ([1, 2], [3])


def test_rows_come_in_the_order_of_a_hash_and_texts_are_left_out() -> None:
    rows = [{"id": str(number), "messages": [{}]} for number in range(30)] + [{"id": "t", "text": "prose"}]
    found = extraction.ordered(rows, 17)
    assert [row["id"] for row in found] == [row["id"] for row in extraction.ordered(rows[::-1], 17)]
    assert len(found) == 30


def test_canaries_are_written_as_rows_that_ingest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Path("params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(settings)
    command.main()
    rows = list(records.read(command.OUT))
    assert len(rows) == 8
    assert all(set(row) == {"messages"} and record.response(row) for row in rows)
    assert "id: raw/canaries/*.jsonl" in capsys.readouterr().out
