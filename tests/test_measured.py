"""What the benchmarks of the data stages report, and what the README says of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contamination, dedup, evaluation, scale, secret_texts, serve, train
from temper import measured, metrics, paraphrase, records
from temper.ngrams import Item

RULES = paraphrase.Rules(
    min_overlap=0.2,
    min_overlap_alone=0.3,
    min_numbers=0.6,
    min_cosine=0.75,
    min_cosine_alone=0.9,
    neighbours=10,
    window=60,
)
SHIPPED = contamination.Thresholds(0.2, 0.6, 0.75)


@pytest.mark.parametrize("benchmark", [train, serve, evaluation], ids=["train", "serve", "evaluation"])
def test_every_figure_that_has_a_target_is_committed_beside_it(benchmark: Any) -> None:
    found = metrics.read(benchmark.OUT)
    targets: dict[str, float] = benchmark.TARGETS
    assert targets.keys() <= found.keys()
    assert {key: found[f"{key}_target"] for key in targets} == targets


def like(cosine: float, overlap: float = 0.4, numbers: float | None = 1.0) -> list[contamination.Match]:
    return [contamination.Match(overlap, numbers, cosine)]


def test_figures_at_the_shipped_thresholds_and_at_the_chosen_ones_have_their_own_names() -> None:
    found: contamination.Matches = {
        "reworded": [like(0.9), like(0.8), like(0.7), []],
        "gsm8k_train": [like(0.85), []],
        "nl2bash": [[], []],
    }
    shipped = contamination.rates("paraphrase", found, SHIPPED, RULES)
    chosen = contamination.rates("paraphrase_chosen", found, SHIPPED._replace(min_cosine=0.9), RULES)
    assert (shipped["paraphrase_recall_reworded"], shipped["paraphrase_false_positives_gsm8k_train"]) == (0.5, 0.5)
    assert shipped["paraphrase_false_positives_worst"] == 0.5
    assert shipped["paraphrase_false_positives_worst_source"] == "gsm8k_train"
    assert chosen["paraphrase_chosen_recall_reworded"] == 0.25
    assert chosen["paraphrase_chosen_false_positives_worst"] == 0.0
    assert not shipped.keys() & chosen.keys()


@pytest.mark.parametrize(
    ("match", "found"),
    [
        (like(0.75, overlap=0.2, numbers=0.6), True),
        (like(0.74), False),
        (like(0.9, overlap=0.19), False),
        (like(0.9, numbers=0.59), False),
        (like(0.89, overlap=0.3, numbers=None), False),
        (like(0.9, overlap=0.3, numbers=None), True),
        (like(0.1) + like(0.9), True),
    ],
)
def test_a_row_is_found_if_one_passage_passes_every_threshold(match: list[contamination.Match], found: bool) -> None:
    assert contamination.is_found(match, SHIPPED, RULES) == found


def test_all_thresholds_are_chosen_on_the_tuning_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean rows differ from rewordings by the numbers alone on one half, and by nothing on the other."""
    (tmp_path / "llm_decontaminator").mkdir()
    lines = [json.dumps({"text": f"Question: {number}\nAnswer: x"}) for number in range(10)]
    (tmp_path / "llm_decontaminator/rephrase_gsm8k.jsonl").write_text("\n".join(lines))

    def matches(search: Any, sources: dict[str, list[str]], wanted: Any) -> Any:
        clean = [like(0.8, numbers=1.0 if row % 2 else 0.6) for row in range(12)]
        return {name: [like(0.8)] * len(of) if name in wanted else clean for name, of in sources.items()}, {}

    monkeypatch.setattr(contamination, "matches", matches)
    clean = {"nl2bash": [" ".join(map(str, range(20)))] * 12}
    values = contamination.reworded(tmp_path, [Item("gsm8k", "1", "48 apples")], clean, RULES, None)
    assert (values["paraphrase_min_numbers"], values["paraphrase_chosen_min_numbers"]) == (0.6, 0.8)
    assert (values["paraphrase_min_cosine"], values["paraphrase_chosen_min_cosine"]) == (0.75, 0.8)
    assert values["paraphrase_recall_reworded"] == values["paraphrase_chosen_recall_reworded"] == 1
    assert values["paraphrase_false_positives_nl2bash"] == values["paraphrase_chosen_false_positives_nl2bash"] == 1


def test_secrets_and_look_alikes_are_the_same_ones_in_every_run() -> None:
    texts = list(secret_texts.texts(9))
    assert texts == list(secret_texts.texts(9))
    assert len({one.secret for one in texts if one.secret}) == 9 * len(secret_texts.SECRETS)
    assert all(one.secret in one.text for one in texts)
    assert {one.form for one in texts if not one.secret} == set(secret_texts.LOOK_ALIKES)


DEDUP = {"scale_0100000_join_bytes_per_row": 900.0, "scale_1000000_join_bytes_per_row": 400.0, "scale_peak_gb": 0.76}
DEDUP |= {"scale_0100000_disk_bytes_per_row": 900.0, "scale_1000000_disk_bytes_per_row": 1000.0}


def test_datatrove_gets_the_rows_that_ours_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [[f"word{number}-{place}" for place in range(20)] for number in range(9)]
    grown = [(dedup.as_row(of), number, 0) for number, of in enumerate([*words, words[0]])]
    monkeypatch.setattr(dedup, "grow", lambda data, count, long_share: iter(grown[:count]))
    given: list[tuple[str, list[str]]] = []

    def run(child: str, folder: Path) -> dict[str, Any]:
        given.append((child, sorted(row["id"] for path in folder.glob("in/*") for row in records.read(path))))
        seconds = {"ours": 1.0, "stage": 2.0, "stock": 20.0}[child]
        return {"seconds": seconds, "cpu_seconds": seconds, "labels": [*range(9), 0]}

    monkeypatch.setattr(dedup, "measured", run)
    values = dedup.speed(tmp_path, 10, 2, tmp_path / "speed")
    rows = sorted(row["id"] for row, _, _ in grown)
    assert given == [(child, rows) for child in ("ours", "stage", "stock")] * 2
    assert (values["speed_ratio"], values["speed_ratio_stage"], values["speed_rows_per_second"]) == (20, 10, 10)
    assert (values["speed_recall"], values["stock_recall"], values["stock_precision"]) == (1, 1, 1)


def test_a_row_that_a_kill_loses_or_repeats_anywhere_is_counted(tmp_path: Path) -> None:
    def ends(name: str, *, train: str, rejected: str) -> Any:
        records.write(tmp_path / name / "data/mix/train.jsonl", [{"id": one} for one in train])
        records.write(tmp_path / name / "data/rejected/pii.jsonl", [{"id": one} for one in rejected])
        records.write(tmp_path / name / "data/rejected/ingest.jsonl", [{"place": "raw/0.jsonl:7"}])
        return scale.ends(tmp_path / name)

    whole = ends("whole", train="abc", rejected="de")
    assert scale.compared(whole, ends("same", train="cab", rejected="ed")) == {"lost": 0, "repeated": 0}
    assert scale.compared(whole, ends("bad", train="abbb", rejected="de")) == {"lost": 1, "repeated": 2}
    assert scale.compared(whole, ends("moved", train="abcd", rejected="e")) == {"lost": 1, "repeated": 1}
    assert scale.KILLS.keys() == set(scale.STAGES)


def test_the_scale_table_takes_every_stage_and_says_what_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    costs = dict.fromkeys((f"{stage}_cpu_us_per_row" for stage in measured.STAGES), 36.0)
    sizes = dict.fromkeys((f"{stage}_bytes_per_row" for stage in measured.STAGES), 500)
    about = {"rows": 1_000_000, "costly_rows": 20_000, "overrides": "data=text split.test=0.01"}
    metrics.write(tmp_path / "scale.json", costs | sizes | about)
    metrics.write(tmp_path / "dedup.json", DEDUP)
    table = measured.scale_table()
    assert "| 1e+09 | 70 |" in table
    assert "| 3.5 TB | 1.0 TB | 400 GB |" in table
    assert "20,000 more rows" in table
    assert "but for `data=text split.test=0.01`" in table
    kills = {"kills": 11, "killed_lost": 0, "killed_repeated": 1, "lost": 0, "repeated": 0, "machine": "a machine"}
    metrics.write(tmp_path / "scale.json", costs | sizes | about | kills)
    assert "| killed 11 times, in every stage, and resumed | 20,000 rows from ingest to mix" in measured.table(
        ["scale"]
    )
    assert "Not in it" in table


def test_the_least_pattern_is_told_with_its_number_and_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    values: dict[str, Any] = {"held_out_texts": 9, "machine": "a machine", "secrets": 20, "secrets_texts": 34}
    for kind in (*measured.PATTERNS, "PERSON", "LOCATION"):
        of_kind = {"f2": 1.0, "recall": 1.0, "recall_low": 0.9, "recall_high": 1.0, "precision": 1.0, "spans": 50}
        values |= {f"{by}_{kind}_{key}": value for by in ("ours", "presidio") for key, value in of_kind.items()}
    values |= {"ours_US_SSN_recall_low": 0.72, "ours_US_SSN_spans": 10, "presidio_PHONE_NUMBER_f2": 0.62}
    for name in ("recall", "precision"):
        values |= {f"secrets_{name}": 0.9, f"secrets_{name}_low": 0.85, f"secrets_{name}_high": 0.93}
    for key in ("patterns", "people_and_places"):
        values |= {
            f"{key}_1_process_times_loop_same_kinds": 4.0,
            f"{key}_2_processes_times_loop_same_kinds": 7.0,
            f"{key}_2_processes_times_batch": 3.0 if key == "patterns" else 2.0,
        }
    metrics.write(tmp_path / "pii.json", values)
    table = measured.table(measured.DATA)
    assert "1.00 (US_SSN, n = 10: recall 1.00, 95% interval 0.72–1.00; Presidio's defaults 0.62)" in table
    assert "0.90 (0.85–0.93); 0.90 (0.85–0.93)" in table
    assert (
        "patterns alone | the same texts, 2 cores | 1 process 4.0× its loop, 2 processes 7.0×; 2 processes 3.0×"
        in table
    )
    assert "templates behind presidio_research was read while the patterns were written" in table


def test_the_drill_says_what_leaked_rows_did_to_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    found = {"gate_caught_all": 1, "leaked_n": 50, "all_n": 167, "leaked_p": 0.0034, "machine": "a machine"}
    metrics.write(tmp_path / "drill.json", found | {"leaked_exact_clean": 0.54, "leaked_exact_contaminated": 0.76})
    line = "| 50 of 167 test rows | all caught; let pass, exact answers on them 54% → 76% (p = 0.003) | all |"
    assert line in measured.table(measured.DATA)
