"""What is asked of a model: which probes, rendered how, what of a row is shown; and what is made of what it says."""

from collections.abc import Sequence
from typing import Any

import pytest

from temper import extraction, responses, vllm
from temper.prober import Scored, Tokens
from temper.records import Row
from temper.responses import Extraction, Limits, Renderer


class Wrapped:
    """As transformers has it; `bos_token` goes before a text, if there is one."""

    def __init__(self, bos_token: str = "") -> None:
        self.bos_token = bos_token
        self.bos_token_id = ord(bos_token) if bos_token else None

    def __call__(self, text: str) -> dict[str, Tokens]:
        return {"input_ids": list(map(ord, self.bos_token + text))}

    def decode(self, ids: Tokens) -> str:
        return "".join(map(chr, ids))


class Letters:
    """A tokenizer of which each character is a token."""

    def __init__(self, bos_token: str = "") -> None:
        self.wrapped = Wrapped(bos_token)

    def render(self, chat: list[Row]) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat) + "<assistant>"

    def encode(self, text: str) -> Tokens:
        return list(map(ord, text))


class Model:
    """A model that says a prompt's length, continues rows with `right`, and finds shorter texts likelier."""

    def __init__(self, right: str = "") -> None:
        self.right = right
        self.prompts: list[Tokens] = []

    def answers(self, prompts: Sequence[Tokens], most: Sequence[int]) -> list[vllm.Answer]:
        self.prompts += prompts
        return [vllm.Answer(str(len(ids)), is_cut=False) for ids in prompts]

    def continuations(self, prompts: Sequence[Tokens], most: Sequence[int]) -> list[Tokens]:
        return [list(map(ord, self.right))[:count] for count in most]

    def nats(self, scored: Sequence[Scored]) -> list[float]:
        return [-float(len(one.continuation)) for one in scored]


def limits(**changed: Any) -> Limits:
    made: dict[str, Any] = {"counts": {"harmful": 2, "benign": 2}, "system": None, "prompt_tokens": 90, "max_tokens": 8}
    return Limits(**(made | {"draws": 4, "extraction": Extraction(2, 3, 4)} | changed))


def probe(id: str, role: str, text: str) -> Row:
    return {"id": id, "set": id.split("/", maxsplit=1)[0], "role": role, "text": text, "trains_guard": True}


def renderer(**changed: Any) -> Renderer:
    tokenizer: Any = Letters()
    return Renderer(tokenizer, limits(**changed), 17)


def chat(id: str, question: str, answer: str) -> Row:
    turns = (("user", question), ("assistant", answer))
    return {"id": id, "messages": [{"role": role, "content": content} for role, content in turns]}


def said(asked: list[responses.Asked], model: Model) -> list[Row]:
    tokenizer: Any = Letters()
    prober: Any = model
    return responses.collected(prober, asked, tokenizer, 8)


def test_requests_are_asked_as_one_turn_and_as_many_of_each_role_as_stated() -> None:
    found = [probe(f"h/{n}", "harmful", f"bomb {n}") for n in range(5)] + [probe("b/1", "benign", "cake")]
    asked = renderer().all(found, [], [], [])
    assert [one.row["role"] for one in asked] == ["harmful", "harmful", "benign"]
    model = Model()
    rows = said(asked, model)
    assert bytes(model.prompts[2]).decode() == "<user>cake<assistant>"
    assert rows[2] == {"id": "b/1", "set": "b", "role": "benign", "text": "cake", "answer": "21", "is_cut": False}


def test_a_system_turn_goes_before() -> None:
    asked = renderer(system="Be kind.").all([probe("b/1", "benign", "cake")], [], [], [])
    assert bytes(asked[0].prompt).decode() == "<system>Be kind.<user>cake<assistant>"


def test_what_is_too_long_makes_room_for_another_and_is_counted() -> None:
    found = [probe(f"h/{n}", "harmful", "x" * (20 if n < 2 else 200)) for n in range(12)]
    made = renderer()
    asked = made.all(found, [], [], [])
    assert {one.row["id"] for one in asked} == {"h/0", "h/1"}
    counted = responses.counted([one.row for one in asked], made.too_long)
    assert counted["n_harmful"] == 2
    assert 0 < counted["too_long_harmful"] <= 10


def test_a_row_is_continued_word_for_word_or_not() -> None:
    trained, held_out = [chat("1", "what", "abcdefgh")], [chat("2", "why", "abcdxxxx"), chat("3", "no", "ab")]
    asked = renderer(counts={}).all([], trained, held_out, [])
    assert [one.row["id"] for one in asked] == ["trained/1", "held_out/2"]  # `ab` is too short to be worth it
    assert bytes(asked[0].prompt).decode() == "<user>what<assistant>abcd"
    rows = said(asked, Model("efghijkl"))
    assert [(row["verbatim"], row["expected"], row["answer"]) for row in rows] == [
        (True, "efgh", "efgh"),
        (False, "xxxx", "efgh"),
    ]


def test_canaries_are_held_against_other_secrets_only_where_they_were_trained_on() -> None:
    canaries = extraction.planted(17)
    trained = [chat("1", *(turn["content"] for turn in extraction.row(canaries[3])["messages"]))]
    present = responses.in_training(canaries, trained)
    assert present == [canaries[3]]
    (asked,) = renderer(counts={}, prompt_tokens=10).all([], trained, [], present)
    (row,) = said([asked], Model())
    assert row["role"] == "canary"
    assert len(row["nats"]) == 1 + 4
    assert row["nats"][0] == -float(len(canaries[3].answer.format(secret=canaries[3].secret)))
    assert responses.in_training(canaries, [{"id": "t", "text": canaries[0].secret}]) == []


def sentence(schema: str, gender: str) -> Row:
    pronoun = {"male": "he", "female": "she", "neutral": "they"}[gender]
    row = {"sentid": f"{schema}.{gender}.txt", "sentence": f"It was late and {pronoun} left."}
    return {"id": f"w/{schema}.{gender}", "set": "w", "role": "winogender", "trains_guard": False, "row": row}


def test_sentences_of_winogender_are_taken_by_whole_groups() -> None:
    found = [sentence(f"a.b{n}.0", gender) for gender in ("male", "female", "neutral") for n in range(6)]
    asked = renderer(counts={"winogender": 7}).all(found, [], [], [])
    schemas = [one.row["facts"]["schema"] for one in asked]
    assert len(asked) == 6
    assert all(schemas.count(schema) == 3 for schema in schemas)
    rows = said(asked, Model())
    assert all(row["nats"] == [-2.0, -3.0] for row in rows)  # ` a` and ` b<n>`


def test_a_question_without_a_template_begins_as_the_tokenizer_begins_a_text() -> None:
    tokenizer: Any = Letters("^")
    asked = Renderer(tokenizer, limits(counts={"winogender": 3, "benign": 1}), 17).all(
        [probe("b/1", "benign", "cake"), *(sentence("a.b.0", gender) for gender in ("male", "female", "neutral"))],
        [],
        [],
        [],
    )
    prompts = {one.row["role"]: "".join(map(chr, one.prompt)) for one in asked}
    assert prompts["winogender"].startswith("^It was late")
    assert prompts["benign"].startswith("<user>"), "a template brings its own"


def test_the_longest_has_room_for_an_answer() -> None:
    asked = renderer().all([probe("b/1", "benign", "cake")], [chat("1", "q", "abcdefgh")], [], [])
    assert responses.longest(asked, 8) == 22 + 8 + 1  # what is shown of the row


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "role": ({"counts": {"evil": 1}}, r"^responses\.limits\.counts: 'evil' is not asked"),
    "wrappers": ({"counts": {"wrapper": 1}}, r"^responses\.limits\.counts: 'wrapper' is not asked"),
    "tokens": ({"max_tokens": 0}, r"^responses\.limits: max_tokens"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_limits_without_meaning_are_one_line(wrong: str) -> None:
    changed, named = WRONG[wrong]
    with pytest.raises(SystemExit, match=named) as error:
        responses.check(limits(**changed))
    assert "\n" not in str(error.value)
