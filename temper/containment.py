"""Which benchmark items are in which training rows: every pass over every row, streaming, with evidence."""

import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from temper import embeddings, minhash, nearcopies, ngrams, paraphrase, record
from temper.ngrams import Hit, Item
from temper.records import Row

CHUNK = 20_000  # rows in memory: enough to make up for the start of the process that embeds them
BATCH = 4_000  # texts that are hashed at once: a few megabytes
SHOWN = 1_000  # characters of evidence
FEWEST_WORDS = 5  # of our own requests: what has fewer ("Why?", "Tell me a joke") is in many rows that never saw it
FEWEST_ANSWER_WORDS = 13  # of our own answers: many a question has the same short one
UNSPACED = re.compile(f"[{minhash.UNSPACED}]")


class Gate:
    """The passes over the items, built once: to hand it to workers, `save` it, so that they `load` it or, forked, share it."""

    def __init__(
        self,
        items: Sequence[Item],
        runs: ngrams.Rules,
        copies: nearcopies.Rules | None,
        rewordings: paraphrase.Rules | None,
        verbatim: Sequence[Item] = (),
    ) -> None:
        """`items` are looked for by every pass that is not None, `verbatim` by n-grams only, which take the least memory."""
        self.items, self.verbatim = [*items, *verbatim], len(verbatim)
        self.index = ngrams.Index(self.items, runs)
        self.copies = nearcopies.Copies(items, copies) if copies else None
        # Of an item in several layouts, the first says what it is about.
        first = {(item.benchmark, item.id): item for item in reversed(items)}
        self.search = (
            paraphrase.Search(list(reversed(first.values())), rewordings, embeddings.embed) if rewordings else None
        )

    def hits(self, rows: Sequence[Row]) -> list[list[Hit]]:
        """For each row all that was found, by any pass: n-grams in all that is said, near copies in what each role says.

        Rewordings are looked for in the request (in a text row, its text): an answer repeats its question's words anyway.
        """
        setups, requests, answers = ([said(row) for row in rows] for said in (_setup, record.request, _answers))
        found: list[list[Hit]] = []
        for start in range(0, len(rows), BATCH):
            chosen = slice(start, start + BATCH)
            parts = zip(setups[chosen], requests[chosen], answers[chosen], strict=True)
            found += self.index.batch(["\n".join(filter(None, of)) for of in parts])
            copied = (self.copies.batch(side[chosen]) for side in (setups, requests, answers)) if self.copies else ()
            for of_side in copied:
                for row, hits in enumerate(of_side, start=start):
                    found[row] += hits
        if self.search:
            questions = [request or answer for request, answer in zip(requests, answers, strict=True)]
            for row, hits in enumerate(self.search.batch(questions)):
                found[row] += hits
        return found


def own_items(rows: Iterable[Row]) -> tuple[list[Item], int]:
    """Held-out rows as items of the benchmark that their split is, and how many requests are too short to be one.

    A row's request (of a text row its text) is an item, and its answer another of the same name if no other held-out row
    gives it. The answer of a call row is none: other requests rightly have it too.
    """
    requests: list[Item] = []
    answers: list[Item] = []
    for row in rows:
        requests.append(Item(row["split"], row["id"], record.subject(row)))
        if record.kind(row) in ("chat", "preference"):
            answers.append(Item(row["split"], row["id"], record.response(row)))
    times = Counter(item.text for item in answers)
    telling = [item for item in requests if is_telling(item.text)]
    alone = [item for item in answers if times[item.text] == 1 and is_telling(item.text, FEWEST_ANSWER_WORDS)]
    return telling + alone, len(requests) - len(telling)


def is_telling(text: str, fewest: int = FEWEST_WORDS) -> bool:
    """Whether a text that holds `text` as a whole probably has it from there; two signs of UNSPACED count as a word."""
    return len(ngrams.words(text)) - len(UNSPACED.findall(text)) / 2 >= fewest


_loaded: dict[Path, Gate] = {}
"""The one gate in use: what a process forks has it too."""


def save(gate: Gate, path: Path) -> None:
    with path.open("wb") as out:
        pickle.dump(gate, out)
    _loaded.clear()
    _loaded[path] = gate


def load(path: Path) -> Gate:
    if path not in _loaded:
        _loaded.clear()
        with path.open("rb") as saved:
            _loaded[path] = pickle.load(saved)
    return _loaded[path]


def checked_by(path: Path, own: Collection[str], rows: Iterator[Row]) -> Iterator[Row]:
    """`checked` by the gate that was saved in `path`."""
    return checked(load(path), own, rows)


def checked(gate: Gate, own: Collection[str], rows: Iterator[Row]) -> Iterator[Row]:
    """Every row in its order; a contaminated one carries `reason`, its first hit's benchmark, and the evidence.

    First is the hit with the benchmark that comes first in the gate. `own` are our own held-out splits, each a benchmark of
    that name: they are no evidence against rows that are held out themselves.
    """
    order = {name: place for place, name in enumerate(dict.fromkeys(item.benchmark for item in gate.items))}
    while chunk := list(islice(rows, CHUNK)):
        for row, hits in zip(chunk, gate.hits(chunk), strict=True):
            telling = [hit for hit in hits if not (row["split"] in own and hit.item.benchmark in own)]
            yield row | _evidence(_ordered(telling, order)) if telling else row


def _ordered(hits: list[Hit], order: dict[str, int]) -> list[Hit]:
    """By benchmark; of an item that was found in several layouts by one rule only the first."""
    first: dict[tuple[str, str, str], Hit] = {}
    for hit in hits:
        first.setdefault((hit.item.benchmark, hit.item.id, hit.rule), hit)
    return sorted(first.values(), key=lambda hit: order[hit.item.benchmark])


def _setup(row: Row) -> str:
    """What neither the user nor the assistant says: system turns."""
    turns = row.get("messages", [])
    return "\n".join(turn["content"] for turn in turns if turn["role"] not in ("user", "assistant"))


def _answers(row: Row) -> str:
    """What is trained on of the assistant's side: the rejected answer of a preference row too."""
    rejected = (turn["content"] for turn in row.get("rejected", []))
    return "\n".join([record.response(row), *rejected])


def _evidence(hits: list[Hit]) -> Row:
    first, *others = hits
    return {
        "reason": first.item.benchmark,
        **_shown(first),
        "item_text": first.item.text[:SHOWN],
        "other_hits": [_shown(hit) for hit in others],
    }


def _shown(hit: Hit) -> Row:
    """A hit in plain data. Two decimals: the last bits of a cosine differ between machines, and an out must not."""
    return {
        "benchmark": hit.item.benchmark,
        "item": hit.item.id,
        "rule": hit.rule,
        "matched": hit.matched[:SHOWN],
        "score": round(hit.score, 2),
    }
