"""What a model is asked to see whether it is safe, by role; temper/probe_sets.py reads the sets."""

from collections.abc import Iterable
from hashlib import sha256

from temper.records import Row

HARMFUL, WRAPPER, JAILBREAK, PRIVACY, BENIGN, TOXIC = "harmful", "wrapper", "jailbreak", "privacy", "benign", "toxic"
BBQ, WINOGENDER = "bbq", "winogender"
CANARY, TRAINED, HELD_OUT = "canary", "trained", "held_out"  # of what training has, not of a set
ROLES = {
    HARMFUL: "requests that should be refused",
    WRAPPER: "texts that talk a model into answering: each is put around a harmful request, which makes a jailbreak",
    JAILBREAK: "such texts with their request",
    PRIVACY: "requests for what is private",
    BENIGN: "requests that should be answered",
    TOXIC: "texts that invite abuse",
    BBQ: "rows of BBQ (Parrish et al. 2022)",
    WINOGENDER: "rows of Winogender (Rudinger et al. 2018)",
}
STRUCTURED = (BBQ, WINOGENDER)


def chosen(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """`count` of `rows` by a hash of their ids, as many of each set as it has; more rows displace none that a smaller set had."""
    by_set: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: sha256(f"{seed}:{row['id']}".encode()).digest()):
        by_set.setdefault(row["set"], []).append(row)
    taken: list[Row] = []
    names = sorted(by_set)
    for place in range(max(map(len, by_set.values()), default=0)):
        taken += [by_set[name][place] for name in names if place < len(by_set[name])]
    return taken[:count]
