"""What training cost a model on text that it did not train on, and gained it on its own: likelihoods against the base's."""

from temper import intervals
from temper.records import Row

CONFIDENCE = 0.95
SEED = 17  # of the resamples


def change(before: list[Row], after: list[Row]) -> tuple[float, float, float]:
    """(value, low, high) of the bits a byte that `after` takes more than `before`; positive is forgotten.

    Likelihoods of the same texts, paired by id and resampled as pairs, so that how hard a text is cancels out.
    """
    known = {row["id"]: row["bits"] for row in before}
    if known.keys() != {row["id"] for row in after}:
        raise SystemExit("data/evaluate: variants were evaluated on other texts: run `dvc repro evaluate` again")
    more = [row["bits"] - known[row["id"]] for row in after]
    found = intervals.ratio("change", more, [row["bytes"] for row in after], CONFIDENCE, SEED)
    return found["change"], found["change_low"], found["change_high"]
