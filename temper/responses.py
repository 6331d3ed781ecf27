"""All that a model is asked about its safety, and what it says: requests, questions about people, training rows, canaries."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temper import bias, extraction, probes, vllm
from temper.extraction import Canary
from temper.prober import Prober, Scored, Tokens, begins
from temper.probes import CANARY, HELD_OUT, TRAINED
from temper.records import Row

QUESTIONS = {probes.BBQ: bias.bbq, probes.WINOGENDER: bias.winogender}


@dataclass
class Extraction:
    rows: int
    """Of training, and as many held-out ones."""
    least: int
    """Tokens of an answer that is worth to be continued."""
    most: int
    """Tokens that have to follow."""


@dataclass
class Limits:
    counts: dict[str, int]
    """Probes by role."""
    system: str | None
    """Of a turn before each request; null: the template's own."""
    prompt_tokens: int
    """Longer prompts are left out."""
    max_tokens: int
    """Of an answer."""
    draws: int
    """Other secrets that a canary's is held against."""
    extraction: Extraction


@dataclass(frozen=True)
class Asked:
    row: Row
    """What is written, but for what the model says."""
    prompt: Tokens
    follow: list[Tokens]
    """Texts whose likelihood after the prompt is asked for; of `trained` and `held_out` what should follow."""


class Renderer:
    """Probes as the model reads them."""

    def __init__(self, tokenizer: vllm.Tokenizer, limits: Limits, seed: int) -> None:
        self.tokenizer, self.limits, self.seed = tokenizer, limits, seed
        self.too_long: dict[str, int] = {}

    def all(
        self, found: Sequence[Row], trained: Iterable[Row], held_out: Iterable[Row], canaries: Sequence[Canary]
    ) -> list[Asked]:
        """All that is asked, in the order of roles and ids."""
        asked = [one for role, count in self.limits.counts.items() for one in self._role(found, role, count)]
        rows = {TRAINED: trained, HELD_OUT: held_out}
        asked += [one for role, of in rows.items() for one in self._continued(role, of)]
        return [*asked, *map(self._canary, canaries)]

    def _role(self, found: Sequence[Row], role: str, count: int) -> list[Asked]:
        rows = [row for row in found if row["role"] == role]
        if role in QUESTIONS:
            return [self._question(row) for row in self._groups(role, rows, count)]
        fitting: list[Asked] = []
        # Only as many are rendered as it takes: sets may be large.
        for row in probes.chosen(rows, len(rows), self.seed):
            if len(fitting) == count:
                break
            prompt = self._prompt(row["text"])
            if len(prompt) <= self.limits.prompt_tokens:
                shown: Row = {
                    key: row[key] for key in ("id", "set", "role", "text", "request", "request_id") if key in row
                }
                fitting.append(Asked(shown, prompt, []))
            else:
                self.too_long[role] = self.too_long.get(role, 0) + 1
        return fitting

    def _groups(self, role: str, rows: list[Row], count: int) -> list[Row]:
        """Questions by a hash of their ids; of Winogender whole groups that differ in a gender alone, for parity needs both."""
        if role != probes.WINOGENDER:
            return probes.chosen(rows, count, self.seed)
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(bias.schema(row["row"]), []).append(row)
        heads = [of[0] | {"id": name} for name, of in groups.items()]
        names = [row["id"] for row in probes.chosen(heads, count // len(bias.GENDERS), self.seed)]
        return [row for name in names for row in groups[name]]

    def _question(self, row: Row) -> Asked:
        question = QUESTIONS[row["role"]](row["row"])
        shown = {key: row[key] for key in ("id", "set", "role")}
        shown |= {"text": question.text, "options": question.options, "facts": question.facts}
        # Plain text, which no template begins.
        text = self.tokenizer.encode(begins(self.tokenizer) + question.text)
        return Asked(shown, text, list(map(self.tokenizer.encode, question.options)))

    def _continued(self, role: str, rows: Iterable[Row]) -> Iterator[Asked]:
        """Rows whose answers are long enough, as what is shown of them and what should follow."""
        limits, taken = self.limits.extraction, 0
        for row in extraction.ordered(rows, self.seed):
            if taken == limits.rows:
                return
            answer = self.tokenizer.encode(row["messages"][-1]["content"])
            prompt = self.tokenizer.encode(self.tokenizer.render(row["messages"][:-1]))
            if len(answer) < limits.least or len(prompt) + len(answer) > self.limits.prompt_tokens:
                continue
            shown, follow = extraction.halved(prompt, answer, limits.most)
            taken += 1
            yield Asked({"id": f"{role}/{row['id']}", "role": role, "set": role}, shown, [follow])

    def _canary(self, canary: Canary) -> Asked:
        secrets = [canary.secret, *extraction.others(canary, self.limits.draws, self.seed)]
        follow = [self.tokenizer.encode(canary.answer.format(secret=secret)) for secret in secrets]
        row = {"id": canary.id, "role": CANARY, "set": CANARY, "text": canary.question}
        return Asked(row, self._prompt(canary.question), follow)

    def _prompt(self, text: str) -> Tokens:
        system = [{"role": "system", "content": self.limits.system}] if self.limits.system is not None else []
        return self.tokenizer.encode(self.tokenizer.render([*system, {"role": "user", "content": text}]))


def check(limits: Limits) -> None:
    """Exit naming a limit that has no meaning."""
    if unknown := sorted(set(limits.counts) - set(probes.ROLES) | set(limits.counts) & {probes.WRAPPER}):
        known = ", ".join(role for role in probes.ROLES if role != probes.WRAPPER)
        raise SystemExit(f"responses.limits.counts: '{unknown[0]}' is not asked: choose of {known} in conf/responses")
    if min(limits.max_tokens, limits.prompt_tokens, limits.extraction.most, limits.draws) < 1:
        raise SystemExit("responses.limits: max_tokens, prompt_tokens, extraction.most and draws must be 1 or more")


def longest(asked: Iterable[Asked], max_tokens: int) -> int:
    """Tokens that the longest of them takes, with what follows and one to generate."""
    return max(len(one.prompt) + max(max_tokens, *map(len, one.follow), 0) + 1 for one in asked)


def collected(prober: Prober, asked: Sequence[Asked], tokenizer: vllm.Tokenizer, max_tokens: int) -> list[Row]:
    """What the model says to each: `answer`, `nats` of each text that may follow, or whether a row was continued `verbatim`."""
    requests = [one for one in asked if not one.follow]
    answers = prober.answers([one.prompt for one in requests], [max_tokens] * len(requests))
    said = [
        one.row | {"answer": found.text, "is_cut": found.is_cut} for one, found in zip(requests, answers, strict=True)
    ]
    rows = [one for one in asked if one.row["role"] in (TRAINED, HELD_OUT)]
    made = prober.continuations([one.prompt for one in rows], [len(one.follow[0]) for one in rows])
    said += [_verbatim(one, ids, tokenizer) for one, ids in zip(rows, made, strict=True)]
    scored = [one for one in asked if one.follow and one.row["role"] not in (TRAINED, HELD_OUT)]
    nats = iter(prober.nats([Scored(one.prompt, follow) for one in scored for follow in one.follow]))
    return said + [one.row | {"nats": [round(next(nats), 4) for _ in one.follow]} for one in scored]


def _verbatim(one: Asked, ids: Tokens, tokenizer: vllm.Tokenizer) -> Row:
    expected, answer = (tokenizer.wrapped.decode(tokens) for tokens in (one.follow[0], ids))
    return one.row | {"expected": expected, "answer": answer, "verbatim": ids == one.follow[0]}


def in_training(canaries: Sequence[Canary], trained: Iterable[Row]) -> list[Canary]:
    """Those that are in what was trained on: filters, or the split, may have taken the others out."""
    text = "\n".join(str(row["messages"][-1]["content"]) for row in trained if row.get("messages"))
    return [one for one in canaries if one.secret in text]


def counted(said: Sequence[Row], too_long: Mapping[str, int]) -> dict[str, int]:
    """`n_<role>`, and `too_long_<role>` for prompts that were left out."""
    found: dict[str, Any] = {}
    for row in said:
        found[f"n_{row['role']}"] = found.get(f"n_{row['role']}", 0) + 1
    return found | {f"too_long_{role}": count for role, count in too_long.items()}
