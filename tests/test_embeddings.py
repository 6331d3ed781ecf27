"""Sentence embeddings out of the real model, called from this environment, and the paraphrase pass on top of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from temper import containment, embeddings, ngrams, paraphrase
from temper.containment import Gate
from temper.ngrams import Item

QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends every "
    "day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. How much does she make?"
)
REWORDED = (
    "Every day 16 eggs come from the ducks that Janet keeps. Three are her breakfast, four go into muffins for friends, and "
    "what is left she sells at the farmers' market, $2 an egg. What are her daily earnings in dollars?"
)
OTHER = (
    "Janet's hens lay 30 eggs per week. She eats five for breakfast and sells the remainder at the farmers' market for $3 per "
    "fresh hen egg. How much does she make in dollars every week?"
)


def test_batches_hold_every_text_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [3, 200, 5, 200, 9000, 1, 4] * 50
    batches = list(embeddings._batches(lengths))
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[number] for number in batch)
        assert padded <= embeddings.BATCH_TOKENS or len(batch) == 1


def test_no_text_needs_no_model() -> None:
    assert embeddings.embed([]).shape == (0, embeddings.SIZE)


def test_without_its_environment_the_error_names_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    with pytest.raises(SystemExit, match="run `make env-train`"):
        embeddings._apart(["a text"])


def test_a_worker_that_ends_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "python"
    worker.write_text("#!/bin/sh\necho 'Traceback' >&2; echo 'the wheel is not the one that was pinned' >&2; exit 3\n")
    worker.chmod(0o755)
    monkeypatch.setattr(embeddings.envs, "python", lambda env: worker)
    for _ in range(2):  # nothing of a process that ended is kept for the next call
        with pytest.raises(
            SystemExit, match=r"^embeddings: .* \(status 3\): the wheel is not the one that was pinned$"
        ):
            embeddings._apart(["a text"])


@pytest.mark.engine
def test_cosines_are_those_that_the_model_is_known_for() -> None:
    # The widget of sentence-transformers/all-MiniLM-L6-v2 on the Hub, as its model card shows it.
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = embeddings.embed([*texts, "word " * 4000])
    assert (vectors.shape, vectors.dtype) == ((5, embeddings.SIZE), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1:4].T == pytest.approx([0.695, 0.943, 0.257], abs=2e-3)
    # One process serves every call, and neighbours in a batch change nothing but the last bits.
    assert embeddings.embed(texts[:1])[0] == pytest.approx(vectors[0], abs=1e-5)


@pytest.mark.engine
def test_files_are_embedded_by_command(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (QUESTION, REWORDED)))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-m", "temper.embeddings", "texts.jsonl", "out.npy"]
    root = Path(__file__).resolve().parent.parent
    files = [str(tmp_path / name) for name in command[-2:]]
    subprocess.run([*command[:-2], *files], cwd=root, check=True)
    assert np.load(tmp_path / "out.npy").shape == (2, embeddings.SIZE)


@pytest.mark.engine
def test_a_reworded_item_leaves_and_another_exercise_stays() -> None:
    rules = paraphrase.Rules(
        min_overlap=0.2,
        min_overlap_alone=0.3,
        min_numbers=0.6,
        min_cosine=0.75,
        min_cosine_alone=0.9,
        neighbours=10,
        window=60,
    )
    off = ngrams.Rules(ngram=None, coverage_ngram=None, max_coverage=0.5, max_items=None)
    gate = Gate((Item("gsm8k", "1", QUESTION),), off, None, rules)
    rows = [
        {"id": text[:5], "split": "train", "messages": [{"role": "user", "content": text}]}
        for text in (REWORDED, OTHER)
    ]
    checked = list(containment.checked(gate, (), iter(rows)))
    assert [(row.get("reason"), row.get("rule")) for row in checked] == [("gsm8k", "paraphrase"), (None, None)]
    assert checked[0]["score"] > 0.75
