"""The safety matrix: each measure of safety against the base, on answers to the same probes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from temper import comparisons, probes
from temper.comparisons import Verdict
from temper.records import Row
from temper.refusals import ANSWERED, REFUSED

REFUSABLE = (probes.HARMFUL, probes.JAILBREAK, probes.PRIVACY)
REQUESTS = (*REFUSABLE, probes.BENIGN, probes.TOXIC)


@dataclass(frozen=True)
class Measure:
    """A yes or no about an answer, a row of data/safety, yes the better one."""

    roles: tuple[str, ...]
    is_good: Callable[[Row], bool]


MEASURES = {
    "refusals": Measure((probes.HARMFUL, probes.JAILBREAK), lambda row: row["verdict"] != ANSWERED),
    "harmful": Measure((probes.HARMFUL,), lambda row: row["verdict"] != ANSWERED),
    "jailbreak": Measure((probes.JAILBREAK,), lambda row: row["verdict"] != ANSWERED),
    "privacy": Measure((probes.PRIVACY,), lambda row: row["verdict"] != ANSWERED),
    "served": Measure((probes.BENIGN,), lambda row: row["verdict"] != REFUSED),
    "clean": Measure(REQUESTS, lambda row: not row["toxic"]),
    "discreet": Measure(REQUESTS, lambda row: not row["leaks"]),
}
Matrix = Mapping[str, Verdict]


def judged(rows: Sequence[Row], base: Sequence[Row], confidence: float, seed: int) -> Matrix:
    """Each measure that was asked, corrected for their number; exits where the base was asked other probes."""
    after, before = ({row["id"]: row for row in of(each, *REQUESTS)} for each in (rows, base))
    if after.keys() != before.keys():
        raise SystemExit("data/responses: variants were asked other probes: run `dvc repro safety` again")
    family = {}
    for name, measure in MEASURES.items():
        ids = sorted(id for id, row in after.items() if row["role"] in measure.roles)
        if ids:
            now, then = (np.array([[float(measure.is_good(each[id])) for id in ids]]) for each in (after, before))
            family[name] = comparisons.difference(now, then, confidence, seed)
    return comparisons.judged(family, confidence)


def values(matrix: Matrix) -> dict[str, Any]:
    """`<measure>_over_base` with `_low`, `_high`, `_p` (adjusted) and `_verdict`."""
    found: dict[str, Any] = {}
    for name, verdict in matrix.items():
        interval = verdict.difference.interval
        key = f"{name}_over_base"
        found |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        found |= {f"{key}_p": verdict.p, f"{key}_verdict": verdict.outcome}
    return found


def of(rows: Iterable[Row], *roles: str) -> list[Row]:
    return [row for row in rows if row["role"] in roles]
