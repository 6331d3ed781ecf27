"""The last look at what is trained on: its length, its ends of turn, its label mask, and the prompt that serving will show.

A chat is right when, for every answer in it, the text that training shows before the answer is byte for byte the prompt
of evaluation and of serving, the answer follows at once and ends with a token that stops generation, and labels lie on
exactly the tokens of the answer and that one. Raw text is right when the trainer reads all of it, and labels lie on all of it.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from temper import shards, truncation
from temper.labels import IGNORED, Labelled
from temper.records import Row
from temper.rendering import Messages, Prompt

PERCENTILES = (50, 90, 95, 99)
REPEATED = 40  # characters from which a system turn's text inside another turn is no accident
# Marks of chat formats that no prose contains; those of the model at hand come from its tokenizer.
MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<<SYS>>",
)
SHOW_TEMPLATE = "correct models/base/chat_template.jinja, or choose another model"
DROP_ROW = "correct or remove the row at its source"


class Chats(Protocol):
    """What an audit asks of the trainer's side: see temper.labels.Labeller."""

    @property
    def stops(self) -> frozenset[int]:
        """Ids on which evaluation and serving end an answer."""

    @property
    def begin(self) -> int | None:
        """The id of the token that begins a text, where there is one."""

    @property
    def specials(self) -> frozenset[str]:
        """What the tokenizer takes for control tokens wherever it stands."""

    def labelled(self, messages: Messages) -> Labelled: ...

    def text(self, text: str) -> Labelled: ...

    def prompt(self, messages: Messages) -> Prompt: ...

    def length(self, messages: Messages) -> int: ...

    def spans(self, text: str) -> list[tuple[int, int]]: ...


@dataclass(frozen=True)
class Violation:
    reason: str
    detail: str
    """What was found, with the place in the row."""
    remedy: str


Others = Callable[[Messages], dict[str, Prompt]]


@dataclass
class Tally:
    """Counts over rows: of one split, or with `+` of several."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows that are trained on, by their tokens."""
    systems: Counter[bytes] = field(default_factory=Counter)
    """Rows by the hash of their system turn."""
    shown: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Of each category the rows with the smallest ids, which are hashes: a sample that does not depend on order.

    By id, since a mix may hold a row several times.
    """

    def __add__(self, other: "Tally") -> "Tally":
        shown = {name: self.shown.get(name, {}) | rows for name, rows in other.shown.items()}
        return Tally(
            self.counts + other.counts, self.lengths + other.lengths, self.systems + other.systems, self.shown | shown
        )

    def of_split(self, split: str) -> dict[str, int]:
        """The size of what is trained on, or of what is only evaluated, as metrics."""
        tokens = sum(length * rows for length, rows in self.lengths.items())
        trained = self.counts["tokens_trained"]
        return {f"rows_{split}": self.lengths.total(), f"tokens_{split}": tokens, f"tokens_trained_{split}": trained}

    def take(self, row: Row, labelled: Labelled, keep: int) -> None:
        self.lengths[len(labelled.ids)] += 1
        self.counts["tokens_trained"] += sum(label != IGNORED for label in labelled.labels)
        self.counts["answers"] += sum(turn["role"] == "assistant" for turn in row["messages"])
        self.counts["chats"] += 1
        self._show(row, labelled, keep)
        for turn in row["messages"]:
            if turn["role"] == "system":
                self.systems[hashlib.blake2b(turn["content"].encode(), digest_size=8).digest()] += 1

    def take_text(self, row: Row, labelled: Labelled, keep: int, limit: int) -> None:
        """A text, which the trainer splits into stretches of `limit` tokens, each a row of its own."""
        whole, rest = divmod(len(labelled.ids), limit)
        self.lengths.update({limit: whole, rest: 1} if rest else {limit: whole})
        self.counts["tokens_trained"] += len(labelled.ids)
        self.counts["windows"] += whole + bool(rest) - 1
        self._show(row, labelled, keep)

    def _show(self, row: Row, labelled: Labelled, keep: int) -> None:
        category = str(row.get("category", ""))
        of_category = self.shown.setdefault(category, {})
        if row["id"] not in of_category:
            of_category[row["id"]] = rendered(row, labelled)
        if len(of_category) > 2 * keep:
            self.shown[category] = {id: of_category[id] for id in heapq.nsmallest(keep, of_category)}


@dataclass(frozen=True)
class Auditor:
    chats: Chats
    others: Others
    """Prompts by who else renders them: evaluation and serving."""
    settings: truncation.Settings
    compare_every: int
    """A row in so many is rendered by the others too."""
    show: int
    tally: Tally = field(default_factory=Tally)

    def audited(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Every row as it is trained on; one that leaves carries `reason` and `detail`, a violation `remedy` as well."""
        for row in rows:
            found = list(self._audited(row))
            self.tally.counts["seen"] += 1
            self.tally.counts["kept"] += any("reason" not in one for one in found)
            yield from found

    def _audited(self, row: Row) -> Iterator[Row]:
        if "text" in row:
            yield self._text(row)
        elif not any(turn["role"] == "assistant" for turn in row.get("messages") or []):
            yield {"id": row["id"], "reason": _untrained(row), "detail": f"a row of kind {row.get('kind')}"}
        else:
            try:
                yield from self._fitted(row)
            except truncation.TooLong as error:
                yield {"id": row["id"], "reason": "too_long", "detail": str(error)}

    def _text(self, row: Row) -> Row:
        labelled = self.chats.text(row["text"])
        if found := next(text_violations(row["text"], labelled, self.chats), None):
            return evidence(row, found)
        self.tally.take_text(row, labelled, self.show, self.settings.limit)
        return row

    def _fitted(self, row: Row) -> Iterator[Row]:
        """The row, or what it is cut into, each with its check."""
        labelled = self.chats.labelled(row["messages"])
        if len(labelled.ids) <= self.settings.limit:
            yield self._checked(row, labelled)
            return
        self.tally.counts["over_long"] += 1
        if self.settings.policy == "error":
            yield evidence(row, over_long(len(labelled.ids), self.settings.limit))
            return
        successors = truncation.fitted(row, self.settings, self.chats)
        self.tally.counts["truncated"] += 1
        self.tally.counts["windows"] += len(successors) - 1
        for one in successors:
            yield self._checked(one, self.chats.labelled(one["messages"]))

    def _checked(self, row: Row, labelled: Labelled) -> Row:
        compared = self.tally.lengths.total() % self.compare_every == 0
        self.tally.counts["compared"] += compared
        found = next(violations(row["messages"], labelled, self.chats, self.others if compared else None), None)
        self.tally.take(row, labelled, self.show)
        return row if found is None else evidence(row, found)


def violations(messages: Messages, labelled: Labelled, chats: Chats, others: Others | None) -> Iterator[Violation]:
    """What is wrong with a chat, the cause before its consequences."""
    yield from _turns(messages, chats)
    yield from _tokens(labelled, chats)
    expected: set[int] = set()
    for index, turn in enumerate(messages):
        if turn["role"] == "assistant":
            prompt = chats.prompt(messages[:index])
            for name, other in (others(messages[:index]) if others else {}).items():
                yield from _same(prompt, other, name, index)
            yield from _continues(labelled, prompt, turn["content"], index)
            answer = _answer(labelled, prompt, turn["content"])
            yield from _ended(labelled, answer, chats, index)
            expected |= set(answer)
    yield from _masked(labelled, expected)


def text_violations(text: str, labelled: Labelled, chats: Chats) -> Iterator[Violation]:
    """What is wrong with a text to train on."""
    if marks := sorted(mark for mark in chats.specials.union(MARKS) if mark in text):
        yield Violation("artefact", f"the text contains {marks[0]}", DROP_ROW)
    if len(labelled.ids) < len(labelled.text_ids):
        yield over_long(len(labelled.text_ids), len(labelled.ids))
    yield from _tokens(labelled, chats)
    yield from _masked(labelled, set(range(len(labelled.ids))))


def _untrained(row: Row) -> str:
    """Why SFT has nothing to learn from a row; the preference stage takes preference rows out of the same file."""
    return "left_for_preferences" if row.get("kind") == "preference" else "no_answer"


def over_long(found: int, limit: int) -> Violation:
    return Violation(
        "over_long",
        f"{found} tokens, where {limit} fit",
        "raise sft.sequence_length, lower data.max_tokens, or choose audit.truncation",
    )


def evidence(row: Row, found: Violation) -> Row:
    return {"id": row["id"], "reason": found.reason, "detail": found.detail, "remedy": found.remedy}


def rendered(row: Row, labelled: Labelled) -> Row:
    """A row as the page shows it: its text in stretches, each trained on or not."""
    segments: list[Row] = []
    reached = 0  # tokens that share one character all have its span
    for start, end, label in _pieces(labelled):
        text, reached = labelled.text[max(start, reached) : end], max(end, reached)
        if segments and segments[-1]["trained"] == (label != IGNORED):
            segments[-1]["text"] += text
        else:
            segments.append({"text": text, "trained": label != IGNORED})
    about = {key: row[key] for key in ("id", "category", "truncation") if key in row}
    return about | {"tokens": len(labelled.ids), "segments": segments}


def sample(tally: Tally, count: int) -> list[Row]:
    """`count` rendered rows, from every category in turn."""
    queues = [[rows[id] for id in heapq.nsmallest(count, rows)] for _, rows in sorted(tally.shown.items())]
    turns = [queue[place] for place in range(count) for queue in queues if place < len(queue)]
    return turns[:count]


def summary(tally: Tally, rejected: list[Row], limit: int) -> dict[str, float]:
    """seen == kept + Σ rejected counts rows that came in; `written` the rows that are trained on, windows counted singly.

    A row is kept that left at least one to train on; where the sum does not hold, a row vanished.
    """
    reasons = Counter(f"rejected_{one['reason']}" for one in rejected)
    written, lengths = tally.lengths.total(), tally.lengths
    tokens = sum(length * rows for length, rows in lengths.items())
    names = ("over_long", "truncated", "windows", "compared", "answers", "tokens_trained")
    funnel = Counter({name: tally.counts[name] for name in ("seen", "kept")})
    return {
        **shards.balanced(funnel + reasons),
        **{name: tally.counts[name] for name in names},
        "written": written,
        "tokens": tokens,
        "sequence_length": limit,
        **{f"tokens_p{share}": percentile(lengths, share) for share in PERCENTILES},
        "tokens_max": max(lengths, default=0),
        "system_prompts": len(tally.systems),
        "system_prompts_shared": sum(rows for rows in tally.systems.values() if rows > 1),
        "system_prompt_most_rows": max(tally.systems.values(), default=0),
        "rows_without_system_prompt": tally.counts["chats"] - tally.systems.total(),
    }


def percentile(lengths: Counter[int], share: int) -> int:
    """The smallest length that `share` percent of the rows do not exceed (nearest rank); 0 without rows."""
    needed, passed = -(-lengths.total() * share // 100), 0
    for length in sorted(lengths):
        passed += lengths[length]
        if passed >= needed:
            return length
    return 0


def histogram(lengths: Counter[int], limit: int, bins: int = 32) -> list[tuple[int, int]]:
    """(upper bound in tokens, rows) in equal steps up to `limit`."""
    width = -(-limit // bins)
    counted = Counter((length - 1) // width for length in lengths.elements())
    return [((place + 1) * width, counted[place]) for place in range(bins)]


def _turns(messages: Messages, chats: Chats) -> Iterator[Violation]:
    """Signs that a template was applied before: a second system prompt, or marks of a chat format inside a turn."""
    systems = [index for index, turn in enumerate(messages) if turn["role"] == "system"]
    if systems not in ([], [0]):
        yield Violation("double_system", f"system turns at places {systems}", DROP_ROW)
    system = messages[0]["content"].strip() if systems else ""
    for index, turn in enumerate(messages):
        copies = turn["content"].count(system) - (index == 0) if len(system) >= REPEATED else 0
        if copies:
            yield Violation("double_system", f"turn {index} ({turn['role']}) repeats the system prompt", DROP_ROW)
        if marks := sorted(mark for mark in chats.specials.union(MARKS) if mark in turn["content"]):
            yield Violation("artefact", f"turn {index} ({turn['role']}) contains {marks[0]}", DROP_ROW)


def _tokens(labelled: Labelled, chats: Chats) -> Iterator[Violation]:
    if chats.begin is not None and labelled.ids[:2] == [chats.begin] * 2:
        yield Violation("double_bos", f"token {chats.begin} (beginning of text) twice at the start", SHOW_TEMPLATE)
    if place := _differ(labelled.ids, labelled.text_ids):
        detail = f"the trainer's tokens are not those of the rendered text from token {place - 1} on"
        yield Violation("template", detail, SHOW_TEMPLATE)


def _same(prompt: Prompt, other: Prompt, name: str, turn: int) -> Iterator[Violation]:
    """Whether training and `name` show the same before the answer at `turn`, in bytes and in tokens."""
    if place := _differ(prompt.text, other.text):
        detail = _contrast(prompt.text, other.text, place - 1, name)
        yield Violation("template", f"before turn {turn}, {detail}", SHOW_TEMPLATE)
    elif place := _differ(prompt.ids, other.ids):
        found = f"{prompt.ids[place - 1 : place]} and {other.ids[place - 1 : place]}"
        detail = f"training and {name} differ from token {place - 1} on: {found}"
        yield Violation("template", f"before turn {turn}, {detail}", SHOW_TEMPLATE)


def _continues(labelled: Labelled, prompt: Prompt, content: str, turn: int) -> Iterator[Violation]:
    """Whether the trained text is the prompt and then, at once, the answer."""
    shown = labelled.text[: len(prompt.text)]
    if place := _differ(shown, prompt.text):
        detail = _contrast(labelled.text, prompt.text, place - 1, "the generation prompt")
        yield Violation("template", f"before turn {turn}, {detail}", SHOW_TEMPLATE)
    elif not labelled.text.startswith((content, content.strip()), len(prompt.text)):
        found = labelled.text[len(prompt.text) : len(prompt.text) + 30]
        detail = (
            f"training shows {found!r} where the answer should begin, which no prompt of evaluation and serving has"
        )
        yield Violation("template", f"turn {turn}: {detail}", SHOW_TEMPLATE)
    elif place := _differ(labelled.ids[: len(prompt.ids)], prompt.ids):
        detail = f"the prompt alone and the prompt with its answer have other tokens from token {place - 1} on"
        yield Violation("template", f"before turn {turn}, {detail}", SHOW_TEMPLATE)


def _answer(labelled: Labelled, prompt: Prompt, content: str) -> list[int]:
    """Places of the answer's tokens and, last, of the token after it (white space skipped)."""
    begin = len(prompt.text)
    whole = labelled.text.startswith(content, begin)
    end = begin + len(content if whole else content.strip())
    inside = [place for place, (first, last) in enumerate(labelled.spans) if first >= begin and last <= end]
    after = (inside[-1] if inside else -1) + 1
    while after < len(labelled.spans) and not labelled.text[slice(*labelled.spans[after])].strip():
        after += 1
    return [*inside, after]


def _ended(labelled: Labelled, answer: list[int], chats: Chats, turn: int) -> Iterator[Violation]:
    place = answer[-1]
    found = labelled.ids[place] if place < len(labelled.ids) else None
    if found not in chats.stops:
        text = "nothing" if found is None else repr(labelled.text[slice(*labelled.spans[place])])
        detail = f"turn {turn} is followed by {text}, where a token that ends generation was expected"
        yield Violation("no_end_of_turn", detail, SHOW_TEMPLATE)
    elif labelled.labels[place] == IGNORED:
        text = labelled.text[slice(*labelled.spans[place])]
        detail = f"turn {turn} ends with {text!r}, which is masked: the model would never learn to stop"
        yield Violation("no_end_of_turn", detail, f"name {text} as end_of_turn in conf/model")


def _masked(labelled: Labelled, expected: set[int]) -> Iterator[Violation]:
    for place, (start, end, label) in enumerate(_pieces(labelled)):
        wanted = labelled.ids[place] if place in expected else IGNORED
        if label != wanted:
            state = "masked, though the answer has it" if label == IGNORED else "trained on, though it is no answer"
            detail = f"token {place} ({labelled.text[start:end]!r}) is {state}"
            yield Violation("mask", detail, "correct the labels that temper/axolotl.py asks for")


def _pieces(labelled: Labelled) -> Iterator[tuple[int, int, int]]:
    """(start, end, label) of each token."""
    for (start, end), label in zip(labelled.spans, labelled.labels, strict=False):
        yield start, end, label


def _differ(one: str | list[int], other: str | list[int]) -> int:
    """One more than the first place where two sequences differ; 0 where they are equal."""
    if one == other:
        return 0
    places = range(min(len(one), len(other)))
    return 1 + next((place for place in places if one[place] != other[place]), len(places))


def _contrast(training: str, other: str, place: int, name: str) -> str:
    around = slice(max(0, place - 10), place + 20)
    return f"training and {name} differ from character {place} on: {training[around]!r} and {other[around]!r}"
