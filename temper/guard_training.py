"""The guard of temper/offline_guard.py: trained on labelled prompts, and measured on those of sets that it has not seen."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from temper import intervals, probes
from temper.offline_guard import WIDTH, OfflineGuard, features
from temper.records import Row

HARMFUL, BENIGN = (probes.HARMFUL, probes.JAILBREAK, probes.PRIVACY), (probes.BENIGN,)


def fit(texts: Sequence[str], labels: Sequence[bool], strength: float, seed: int) -> OfflineGuard:
    """A guard whose threshold is one half; `strength` is the inverse of the regularization (scikit-learn's C)."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    found = [features(text) for text in texts]
    starts = np.cumsum([0, *map(len, found)])
    values = np.concatenate([np.full(len(one), 1 / math.sqrt(max(1, len(one)))) for one in found])
    matrix = csr_matrix((values, np.concatenate(found), starts), shape=(len(found), WIDTH))
    # Each class counts as much, however many prompts of it there are.
    model = LogisticRegression(
        C=strength, class_weight="balanced", solver="liblinear", max_iter=1000, random_state=seed
    )
    model.fit(matrix, np.array(labels))
    return OfflineGuard(model.coef_[0].astype(np.float32), float(model.intercept_[0]), 0.5)


def labelled(rows: Iterable[Row]) -> list[Row]:
    """Probes that are harmful or benign, in order."""
    return [row for row in rows if row["role"] in (*HARMFUL, *BENIGN)]


def trained(rows: Sequence[Row], strength: float, seed: int) -> OfflineGuard:
    return fit([row["text"] for row in rows], [is_harmful(row) for row in rows], strength, seed)


def held_out(rows: Sequence[Row], strength: float, seed: int) -> dict[str, float]:
    """Scores by id, each from a guard that was trained without the set that the prompt is of.

    Left out with it is what shares a request with it: a jailbreak around one of its prompts, or the request in a jailbreak of it.
    Sets that are not trained on are scored by the guard of all others. Exits where a set is the only one of its label.
    """
    training = [row for row in rows if row["trains_guard"]]
    scores: dict[str, float] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        out = [row for row in rows if row["set"] == name]
        shared = {key for row in out for key in keys(row)}
        left = [row for row in training if row["set"] != name and shared.isdisjoint(keys(row))]
        if len({is_harmful(row) for row in left}) < 2:
            label = "harmful" if is_harmful(out[0]) else "benign"
            raise SystemExit(
                f"guard: {name} is the only {label} set with trains_guard: add another in conf/probes to hold it against"
            )
        model = trained(left, strength, seed)
        scores |= {row["id"]: model.score(row["text"]) for row in out}
    return scores


def keys(row: Row) -> set[str]:
    return {row["id"], row.get("request_id", row["id"])}


def is_harmful(row: Row) -> bool:
    return row["role"] in HARMFUL


def threshold(scores: Mapping[str, float], rows: Iterable[Row], false_positives: float) -> float:
    """The least score from which on no more than a share of the benign prompts would be blocked."""
    benign = sorted((scores[row["id"]] for row in rows if not is_harmful(row)), reverse=True)
    allowed = math.floor(false_positives * len(benign))
    # Above the first that may not be blocked.
    return math.nextafter(benign[allowed], 1.0) if allowed < len(benign) else 0.0


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
