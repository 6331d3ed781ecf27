"""MT-Bench: 80 questions of two turns, whose answers a judge rates from 1 to 10 by the benchmark's own prompts.

Zheng et al. 2023 (arXiv:2306.05685), single-answer grading, as lm-sys/FastChat does it (llm_judge/gen_judgment.py, common.py): the
first turn by itself and the second with the first before it, questions of maths, reasoning and code beside a reference answer, the
score the mean over turns and questions. The three files are the project's: question.jsonl, judge_prompts.jsonl and
reference_answer/gpt-4.jsonl.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from temper import intervals, published
from temper.conversations import Conversation
from temper.human_labels import Chat
from temper.published import Published
from temper.records import Row

REFERENCED = (
    "math",
    "reasoning",
    "coding",
)  # categories that are judged beside a reference answer: FastChat's NEED_REF_CATS
# By category, FastChat's temperature_config; 0.7 for one that it does not know.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
DEFAULT_TEMPERATURE = 0.7
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
LEAST, MOST = 1.0, 10.0
PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


@dataclass
class Files:
    questions: Published
    prompts: Published
    references: Published


@dataclass(frozen=True)
class Question:
    id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None
    """Of both turns, where the category wants one."""

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, DEFAULT_TEMPERATURE)

    def conversation(self) -> Conversation:
        """What a model is asked: the second turn once it answered the first."""
        first, second = self.turns
        return Conversation(self.id, [{"role": "user", "content": first}], [second], self.temperature)


@dataclass(frozen=True)
class Rating:
    question: Question
    turn: int
    """1 or 2."""
    value: float | None
    """1 to 10; None for a reply without one."""


def questions(files: Files) -> list[Question]:
    """All questions with their references; exits naming one that lacks what it needs."""
    references = {
        str(row["question_id"]): _turns(row["choices"][0]["turns"]) for row in published.rows(files.references)
    }
    found = [_question(row, references) for row in published.rows(files.questions)]
    for one in found:
        if one.category in REFERENCED and one.references is None:
            raise SystemExit(
                f"conf/judge: '{files.references.name}': no answer to question {one.id} ({one.category}): name FastChat's "
                "reference_answer/gpt-4.jsonl"
            )
    return found


def prompts(files: Files) -> dict[str, Row]:
    """The judge's prompts by name; exits where one that is needed is not among them."""
    found = {str(row.get("name")): row for row in published.rows(files.prompts)}
    if lacking := [name for name in PROMPTS if name not in found]:
        raise SystemExit(
            f"conf/judge: '{files.prompts.name}': no prompt '{lacking[0]}': name FastChat's judge_prompts.jsonl"
        )
    return found


def asked(question: Question, answers: Sequence[str], turn: int, known: Mapping[str, Row]) -> Chat:
    """What the judge is asked about the answer of a turn."""
    kind = "single-math-v1" if question.references else "single-v1"
    prompt = known[kind if turn == 1 else f"{kind}-multi-turn"]
    references = dict(zip(("ref_answer_1", "ref_answer_2"), question.references or (), strict=False))
    if turn == 1:
        parts = {"question": question.turns[0], "answer": answers[0]}
    else:
        parts = {f"question_{number}": text for number, text in enumerate(question.turns, start=1)}
        parts |= {f"answer_{number}": text for number, text in enumerate(answers, start=1)}
    text = prompt["prompt_template"].format(**parts, **references)
    return [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": text}]


def rating(reply: str) -> float | None:
    """The number in the first `[[5]]` of a reply, else in the first `[5]`; None without one from 1 to 10."""
    found = next((match for pattern in RATINGS if (match := pattern.search(reply))), None)
    value = float(found[1]) if found else None
    return value if value is not None and LEAST <= value <= MOST else None


def summary(name: str, ratings: Sequence[Rating], confidence: float, seed: int) -> dict[str, float]:
    """Mean rating with its interval (bootstrap over questions, whose turns belong together), by turn and by category."""
    valid = [one for one in ratings if one.value is not None]
    values: dict[str, float] = {f"{name}_ratings": len(ratings), f"{name}_ratings_invalid": len(ratings) - len(valid)}
    if not valid:
        return values
    questions: dict[str, list[float]] = {}
    for one in valid:
        questions.setdefault(one.question.id, []).append(one.value or 0.0)
    sums, sizes = [sum(of) for of in questions.values()], [len(of) for of in questions.values()]
    values |= {f"{name}_questions": len(questions)} | intervals.ratio(name, sums, sizes, confidence, seed)
    return values | dict(_parts(name, valid))


def _parts(name: str, valid: Sequence[Rating]) -> Iterator[tuple[str, float]]:
    for turn in sorted({one.turn for one in valid}):
        yield f"{name}_turn_{turn}", fmean(one.value or 0.0 for one in valid if one.turn == turn)
    for category in sorted({one.question.category for one in valid}):
        yield f"{name}_{category}", fmean(one.value or 0.0 for one in valid if one.question.category == category)


def _question(row: Row, references: Mapping[str, tuple[str, str]]) -> Question:
    name, category = str(row["question_id"]), str(row["category"])
    return Question(name, category, _turns(row["turns"]), references.get(name) if category in REFERENCED else None)


def _turns(found: Sequence[str]) -> tuple[str, str]:
    first, second = found
    return first, second
