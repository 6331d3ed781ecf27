"""Labels back into data: files of rows that `ingest` takes, failures apart, so that the mix can repeat them, and answers that were
right, so that what a model does well is not unlearnt.

A label is the right answer as text (`null` as text where no tool fits), true where the suggested answer is right, or false for a
row that has no right answer. A row whose label is null is not labelled yet.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import formats, metrics, mining, record, records, wheels
from temper.mining import FAILURE, UNCERTAIN, UNLIKE
from temper.record import BadRow
from temper.records import Row

FAILURES, OTHERS, POSITIVES = "failures", "others", "positives"
METHOD = "mine"


@dataclass
class Positives:
    share: float
    """Of all that trains of this source, copies counted."""
    least: float
    most: float


@dataclass
class Settings:
    folder: str
    """Below raw/."""
    licence: str
    """Of what users asked and people labelled."""
    copies: int
    """How often a failure trains (conf/mix/mined.yaml repeats them): the positives' share counts them so."""
    positives: Positives


@dataclass(frozen=True)
class Labelled:
    rows: dict[str, list[Row]]
    """By reason of the queue."""
    dropped: int
    waiting: int


def read(path: Path) -> Labelled:
    """The queue with its labels; exits at a label that is none, or that `ingest` would refuse."""
    found: dict[str, list[Row]] = {FAILURE: [], UNCERTAIN: [], UNLIKE: []}
    dropped = waiting = 0
    for number, row in enumerate(records.read(path), start=1):
        place = f"{path}:{number}"
        if row.get("reason") not in found or "label" not in row:
            raise SystemExit(f"{place}: no row of a queue (reason, label): give the file that `make mine LOGS=…` wrote")
        if row["label"] is None:
            waiting += 1
        elif row["label"] is False:
            dropped += 1
        else:
            found[row["reason"]].append(trained(row, answer(row, place), place))
    return Labelled(found, dropped, waiting)


def answer(row: Row, place: str) -> str:
    label, suggested = row["label"], row.get("suggested")
    if label is True and not isinstance(suggested, str):
        raise SystemExit(f"{place}: label is true, and nothing was suggested: write the right answer as text")
    if label is not True and (not isinstance(label, str) or not label.strip()):
        raise SystemExit(
            f"{place}: label is {json.dumps(label)[:60]}: expected the right answer as text, or "
            "true for the suggested one, or false for none"
        )
    return str(suggested) if label is True else label


def trained(row: Row, said: str, place: str) -> Row:
    """A row of raw/ in the format `messages`, with where it comes from."""
    content = mining.row(row["messages"], row.get("tools") or [], said)
    origin = {"method": METHOD, "request": row["id"], "reasons": row.get("reasons", []), "model": row.get("model", "")}
    made = content | {"category": f"mined_{row['reason']}", "provenance": origin}
    try:
        record.make(formats.converted(made, "messages", ""), METHOD, "", METHOD)
    except BadRow as error:
        raise SystemExit(
            f"{place}: its label makes no row to train on: {error}: correct it, or set it to false"
        ) from None
    return made


def chosen(positives: Sequence[Row], labelled: Labelled, settings: Settings, seed: int) -> list[Row]:
    """As many of `positives` as make their share; exits where there are too few for the least share.

    Which ones is decided by a hash of seed and id. None asks what a labelled row asks.
    """
    kept = settings.positives
    weight = settings.copies * len(labelled.rows[FAILURE]) + sum(len(labelled.rows[one]) for one in (UNCERTAIN, UNLIKE))
    asked = {_asked(row) for rows in labelled.rows.values() for row in rows}
    free = [row for row in positives if _asked(row) not in asked]
    wanted = round(kept.share * weight / (1 - kept.share))
    ranked = sorted(free, key=lambda row: hashlib.blake2b(f"{seed}/{row['provenance']['request']}".encode()).digest())
    taken = ranked[:wanted]
    share = len(taken) / (len(taken) + weight)
    if share < kept.least:
        raise SystemExit(
            f"{len(free)} answers that were liked, and {weight} rows of labels with their copies: {share:.0%} of the "
            f"source, where mine.source.positives.least is {kept.least:.0%}: mine a longer log (mine.days), or lower it"
        )
    return taken


def checked(settings: Settings) -> Settings:
    """The settings, if their values make sense; exits naming the one that does not."""
    kept = settings.positives
    if not 0 < kept.least <= kept.share <= kept.most < 1:
        found = f"least {kept.least}, share {kept.share}, most {kept.most}"
        raise SystemExit(f"mine.source.positives: {found}: expected 0 < least ≤ share ≤ most < 1 in conf/mine")
    if settings.copies < 1:
        raise SystemExit(f"mine.source.copies is {settings.copies}: choose 1 or more in conf/mine")
    if Path(settings.folder).parts[:1] != ("raw",):
        raise SystemExit(f"mine.source.folder is '{settings.folder}': choose a folder below raw/, which `ingest` reads")
    return settings


def write(labelled: Labelled, positives: Iterable[Row], settings: Settings) -> dict[str, Any]:
    """raw/…/{failures,others,positives}.jsonl and what the manifest says of them."""
    parts = {
        FAILURES: labelled.rows[FAILURE],
        OTHERS: labelled.rows[UNCERTAIN] + labelled.rows[UNLIKE],
        POSITIVES: list(positives),
    }
    folder = Path(settings.folder)
    counts: dict[str, Any] = {}
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        counts[name] = len(rows)
        if rows:
            records.write(path, rows)
            counts[f"{name}_sha256"] = wheels.digest(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier round
    weight = settings.copies * counts[FAILURES] + counts[OTHERS] + counts[POSITIVES]
    values = {
        **counts,
        "copies_of_failures": settings.copies,
        "positives_share": counts[POSITIVES] / weight if weight else 0.0,
        "labels_dropped": labelled.dropped,
        "labels_waiting": labelled.waiting,
        "licence": settings.licence,
    }
    metrics.write(folder / "manifest.json", values)
    return values


def _asked(row: Row) -> str:
    turns = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    return json.dumps([turns, row.get("tools")], sort_keys=True)
