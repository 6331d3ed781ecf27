"""The scorers of the ensemble: each is fitted on a sample of the rows, if it learns from them, and gives any row one number.

Higher is better, and only the rank counts. Kinds: `linear`, `likelihood` and `features` learn from the data itself; `perplexity` is
that of a causal language model, such as the base model; `transformers` and `fasttext` are published classifiers. Models are of
the Hub at a pinned revision or in a local folder.
"""

import heapq
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from temper import character_model, classifier, envs, features, hub, perplexity, sequence_classifier
from temper.records import Row

Scoring = Callable[[Iterable[Row]], Iterator[float]]
"""From rows to their scores in the same order; picklable."""


@dataclass
class Scorer:
    """One of the ensemble; what its kind does not need is null."""

    name: str
    """Its column in reports/plots/quality.csv."""
    kind: str
    id: str | None
    """A local folder, or a repository of the Hub."""
    revision: str | None
    """The commit of a Hub repository."""
    file: str | None
    """The model file of kind fasttext."""
    label: str | None
    """The label of kind fasttext that means good."""
    max_tokens: int | None
    """Of a row, for the kinds perplexity and transformers; the end of a longer request, the beginning of a longer answer."""


def sample(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """The `count` rows whose ids come first by hash: the same ones however the rows are ordered or sharded."""
    return heapq.nsmallest(count, rows, key=lambda row: sha256(f"{seed}:{row['id']}".encode()).digest())


def fit(scorer: Scorer, rows: Sequence[Row], within: str | None, seed: int) -> Scoring:
    """The scoring of `scorer`, fitted on the sample `rows`; exits when its model cannot be had."""
    if scorer.kind == "linear":
        return classifier.train(rows, seed).scores
    if scorer.kind == "features":
        return features.fit(rows, within).scores
    if scorer.kind == "likelihood":
        return character_model.train(rows).scores
    if scorer.kind not in ("perplexity", "transformers", "fasttext"):
        kinds = "linear, likelihood, features, perplexity, transformers or fasttext"
        raise SystemExit(f"quality.scorers: {scorer.name} is of kind '{scorer.kind}': choose {kinds} in conf/quality")
    folder = hub.folder(f"quality.scorers: {scorer.name}", scorer.id, scorer.revision, scorer.file)
    if scorer.kind == "fasttext":
        return partial(_by_fasttext, folder / _needed(scorer, "file"), _needed(scorer, "label"))
    module = perplexity if scorer.kind == "perplexity" else sequence_classifier
    return partial(_in_train_env, module.__name__, folder, int(_needed(scorer, "max_tokens")))


def _by_fasttext(model: Path, label: str, rows: Iterable[Row]) -> Iterator[float]:
    from temper import fasttext_model

    for row in rows:
        yield fasttext_model.probability(model, "\n".join(classifier.pair(row)).strip(), label)


def _in_train_env(module: str, model: Path, max_tokens: int, rows: Iterable[Row]) -> Iterator[float]:
    """Scores by a module that needs torch: `python -m module model max_tokens in.jsonl out.npy` in the environment `train`."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "rows.jsonl"), Path(scratch, "scores.npy")
        with source.open("w", encoding="utf-8") as out:
            for row in rows:
                request, response = classifier.pair(row)
                messages = row.get("messages", []) + row.get("chosen", [])
                said = {"messages": messages, "request": request, "response": response}
                out.write(json.dumps(said) + "\n")
        command = [str(envs.python("train")), "-m", module]
        result = subprocess.run([*command, str(model), str(max_tokens), str(source), str(target)], check=False)
        if result.returncode:
            raise SystemExit(f"{module} failed with status {result.returncode} (above)")
        yield from np.load(target).tolist()


def _needed(scorer: Scorer, key: str) -> str:
    value = getattr(scorer, key)
    if value is None:
        raise SystemExit(f"quality.scorers: {scorer.name} of kind {scorer.kind} needs {key}: add it in conf/quality")
    return str(value)
