"""Rewards that a program verifies: each scores one answer to one prompt, or gives None where the prompt is of another task.

Three tasks, told apart by what a row holds: `call` (a gold call), `code` (`test` and `entry_point`, as in HumanEval) and
`arithmetic` (a reference answer that ends in `#### number`, as in GSM8K).
"""

import ast
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from temper import calls, record, sandbox
from temper.records import Row

Reward = Callable[[str, Row], float | None]
# Cobbe et al. 2021 (arXiv:2110.14168) write the result after four of these.
RESULT = "####"
# A minus between two terms is no sign; commas group digits.
NUMBER = re.compile(r"(?:(?<![\w.)])[-−])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
# Which task's answers each reward verifies. The others shape answers, and by themselves teach nothing true.
VERIFIERS = {"exact": "call", "argument_f1": "call", "arithmetic": "arithmetic", "code": "code"}
SHAPERS = ("format", "length")
NAMES = (*VERIFIERS, *SHAPERS)


def require(weights: dict[str, float]) -> None:
    """Exit naming the key when the list of rewards is empty, names one that does not exist, or has none that verifies."""
    remedy = f"choose among {', '.join(NAMES)} (conf/grpo)"
    if not weights:
        raise SystemExit(f"grpo.rewards is empty, so that no answer is better than another: {remedy}")
    if unknown := sorted(weights.keys() - set(NAMES)):
        raise SystemExit(f"grpo.rewards: there is no reward '{unknown[0]}': {remedy}")
    if not weights.keys() & VERIFIERS.keys():
        raise SystemExit(
            f"grpo.rewards: {', '.join(weights)} verify nothing: add one of {', '.join(VERIFIERS)} (conf/grpo)"
        )


def task(row: Row) -> str | None:
    """`call`, `code`, `arithmetic`, or None for a row whose answers nothing here verifies."""
    kind = record.kind(row)
    if kind == "call":
        return "call"
    if record.has_tests(row):
        return "code"
    return "arithmetic" if kind == "chat" and _result(row) is not None else None


def verifiable(rows: list[Row], weights: dict[str, float]) -> list[Row]:
    """The rows whose task one of the rewards verifies."""
    verified = {VERIFIERS[name] for name in weights if name in VERIFIERS}
    return [row for row in rows if task(row) in verified]


def prompt(row: Row) -> list[dict[str, str]]:
    """The turns up to the answer."""
    turns: list[dict[str, str]] = row["messages"]
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def applicable(rows: list[Row], weights: dict[str, float]) -> dict[str, float]:
    """The rewards, with their weights, that apply to at least one row."""
    found = {task(row) for row in rows}
    return {name: weight for name, weight in weights.items() if VERIFIERS.get(name) in {None, *found}}


def functions(pattern: str, limits: sandbox.Limits) -> dict[str, Reward]:
    """The rewards of text by name (`length`, of tokens, is TRL's); `pattern` is what an answer that is no call should match."""
    return {
        "exact": exact,
        "argument_f1": argument_f1,
        "arithmetic": arithmetic,
        "code": lambda answer, row: code(answer, row, limits),
        "format": lambda answer, row: form(answer, row, re.compile(pattern)),
    }


def exact(answer: str, row: Row) -> float | None:
    """1 for a right answer by the task's verifier, else 0."""
    return float(_score(answer, row).exact) if task(row) == "call" else None


def argument_f1(answer: str, row: Row) -> float | None:
    """Partial credit: F1 over (argument, value) pairs, 0 for another function."""
    return _score(answer, row).argument_f1 if task(row) == "call" else None


def form(answer: str, row: Row, pattern: re.Pattern[str]) -> float | None:
    """1 for what a reader can parse: JSON of a call or null, Python, or text that matches `pattern` as a whole; else 0."""
    kind = task(row)
    if kind == "call":
        return float(_score(answer, row).valid_json)
    if kind == "code":
        return float(_parses(program(answer, row)))
    return None if kind is None else float(bool(pattern.fullmatch(answer.strip())))


def arithmetic(answer: str, row: Row) -> float | None:
    """1 where the last number of the answer is the reference's result, by value; else 0.

    What lm-evaluation-harness calls flexible extraction in its gsm8k task.
    """
    if task(row) != "arithmetic":
        return None
    numbers = NUMBER.findall(answer)
    return float(bool(numbers) and _value(numbers[-1]) == _result(row))


def code(answer: str, row: Row, limits: sandbox.Limits) -> float | None:
    """1 where the program passes the row's tests in a sandbox, else 0."""
    if task(row) != "code":
        return None
    tested = f"{program(answer, row)}\n\n{row['test']}\n\ncheck({row['entry_point']})\n"
    return float(sandbox.run(tested, limits).passed)


def program(answer: str, row: Row) -> str:
    """The Python in an answer: its last fenced block, or all of it; what lacks the function goes on from the prompt."""
    blocks: list[str] = FENCED.findall(answer)
    text = blocks[-1] if blocks else answer
    if re.search(rf"^def {re.escape(row['entry_point'])}\b", text, re.MULTILINE):
        return text
    return f"{prompt(row)[-1]['content']}{text}"


def _score(answer: str, row: Row) -> calls.Score:
    return calls.score(answer, row["tools"], row["gold"])


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _result(row: Row) -> Decimal | None:
    """The number after the last `####` of the reference answer."""
    _, mark, after = row["messages"][-1]["content"].rpartition(RESULT)
    found = NUMBER.search(after) if mark else None
    return _value(found.group()) if found else None


def _value(number: str) -> Decimal | None:
    try:
        return Decimal(number.replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
