"""The guard of temper/offline_guard.py: trained on labelled prompts, and measured on prompts that it has not seen."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import intervals, probes
from temper.offline_guard import WIDTH, OfflineGuard, features
from temper.records import Row

HARMFUL, BENIGN = (probes.HARMFUL, probes.JAILBREAK, probes.PRIVACY), (probes.BENIGN,)
FOLDS = 5
Chosen = NDArray[np.bool_]
Scores = dict[str, float]
"""Probabilities by the ids of prompts."""


def labelled(rows: Iterable[Row]) -> list[Row]:
    """Probes that are harmful or benign, in order."""
    return [row for row in rows if row["role"] in (*HARMFUL, *BENIGN)]


def is_harmful(row: Row) -> bool:
    return row["role"] in HARMFUL


class Prompts:
    """Labelled prompts as features, of which a guard is trained on any part."""

    def __init__(self, rows: Sequence[Row], strength: float, seed: int) -> None:
        self.rows, self.strength, self.seed = rows, strength, seed
        self.vectors = vectors([row["text"] for row in rows])
        self.harmful = np.array([is_harmful(row) for row in rows])
        self.training = np.array([bool(row["trains_guard"]) for row in rows])

    def trained(self, chosen: Chosen) -> OfflineGuard:
        """A guard of the chosen prompts; exits where they are all of one label."""
        labels = self.harmful[chosen]
        if len(set(labels)) < 2:
            raise SystemExit(
                "guard: of harmful and of benign prompts two sets each are needed, to hold one against the other: add sets with "
                "trains_guard to conf/probes"
            )
        return fit(self.vectors[chosen], labels, self.strength, self.seed)

    def unseen(self) -> Scores:
        """Each prompt's score by a guard that was trained without its set.

        Left out with it is what shares a request with it: a jailbreak around one of its prompts, or the request in a jailbreak.
        """
        scores: Scores = {}
        ids = [keys(row) for row in self.rows]
        for name in dict.fromkeys(row["set"] for row in self.rows):
            out = np.array([row["set"] == name for row in self.rows])
            shared = {key for place in np.flatnonzero(out) for key in ids[place]}
            apart = np.array([shared.isdisjoint(of) for of in ids])
            scores |= self._scored(self.training & ~out & apart, out)
        return scores

    def crossed(self) -> Scores:
        """The score of each benign prompt that is trained on, by a guard that was trained without its fifth of all prompts."""
        folds = np.array([fold(row, self.seed) for row in self.rows])
        benign = self.training & ~self.harmful
        scores: Scores = {}
        for number in range(FOLDS):
            scores |= self._scored(self.training & (folds != number), benign & (folds == number))
        return scores

    def _scored(self, chosen: Chosen, out: Chosen) -> Scores:
        model = self.trained(chosen)
        logits = self.vectors[out] @ model.weights + model.bias
        ids = [self.rows[int(place)]["id"] for place in np.flatnonzero(out)]
        return dict(zip(ids, map(float, 1 / (1 + np.exp(-logits))), strict=True))


def vectors(texts: Sequence[str]) -> Any:
    """(texts, WIDTH), sparse, each row of length 1."""
    from scipy.sparse import csr_matrix

    found = [features(text) for text in texts]
    values = [np.full(len(one), 1 / math.sqrt(max(1, len(one)))) for one in found]
    starts = np.cumsum([0, *map(len, found)])
    return csr_matrix((np.concatenate(values), np.concatenate(found), starts), shape=(len(found), WIDTH))


def fit(matrix: Any, labels: NDArray[np.bool_], strength: float, seed: int) -> OfflineGuard:
    """A guard whose threshold is one half; `strength` is the inverse of the regularization (scikit-learn's C)."""
    from sklearn.linear_model import LogisticRegression

    # Each label counts as much, however many prompts of it there are.
    options: dict[str, Any] = {
        "class_weight": "balanced",
        "solver": "liblinear",
        "max_iter": 1000,
        "random_state": seed,
    }
    model = LogisticRegression(C=strength, **options).fit(matrix, labels)
    return OfflineGuard(model.coef_[0].astype(np.float32), float(model.intercept_[0]), 0.5)


def keys(row: Row) -> set[str]:
    return {row["id"], row.get("request_id", row["id"])}


def fold(row: Row, seed: int) -> int:
    return int(sha256(f"{seed}:{row['id']}".encode()).hexdigest()[:8], 16) % FOLDS


def threshold(scores: Mapping[str, float], rows: Iterable[Row], false_positives: float) -> float:
    """The least score from which on no more than a share of the benign prompts would be blocked."""
    benign = sorted((scores[row["id"]] for row in rows if not is_harmful(row)), reverse=True)
    allowed = math.floor(false_positives * len(benign))
    # Above the first that may not be blocked.
    return math.nextafter(benign[allowed], 1.0) if allowed < len(benign) else 0.0


def thresholds(
    scores: Mapping[str, float], rows: Iterable[Row], false_positives: float, group: Callable[[Row], str | int]
) -> dict[str, float]:
    """For each benign prompt the threshold by those that train and are not of its group, such as its fold.

    One's own threshold is set to block few of the prompts that set it, and so tells nothing of how many others it blocks.
    """
    benign = [row for row in rows if not is_harmful(row)]
    limits = {
        name: threshold(scores, [row for row in benign if row["trains_guard"] and group(row) != name], false_positives)
        for name in set(map(group, benign))
    }
    return {row["id"]: limits[group(row)] for row in benign}


def measured(name: str, blocked: Mapping[str, bool], rows: Sequence[Row], confidence: float) -> dict[str, float]:
    """`<name>_recall`, `_precision` and `_false_positives` with intervals, over all prompts and by set.

    Precision is that of these prompts: where harmful ones are rarer it is lower.
    """
    harmful, benign = ([row for row in rows if is_harmful(row) == label] for label in (True, False))
    values = intervals.rate(f"{name}_recall", [blocked[row["id"]] for row in harmful], confidence)
    values |= intervals.rate(f"{name}_false_positives", [blocked[row["id"]] for row in benign], confidence)
    right = [is_harmful(row) for row in rows if blocked[row["id"]]]
    values |= intervals.rate(f"{name}_precision", right, confidence) | {f"{name}_blocked": len(right)}
    for set_name in dict.fromkeys(row["set"] for row in rows):
        of = [row for row in rows if row["set"] == set_name]
        what = "recall" if is_harmful(of[0]) else "false_positives"
        values |= intervals.rate(f"{name}_{set_name}_{what}", [blocked[row["id"]] for row in of], confidence)
    return values
