"""Rules of quality: each finds its defect, names it, and lets sound rows of the same kind pass."""

import json
import socket
from functools import cache
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from omegaconf import OmegaConf

from temper import calls, endings, rules
from temper.records import Row
from temper.rules import Rules

SOUND = "Take the second train from platform four. It leaves at nine and arrives before noon."
TOOL: dict[str, Any] = {"name": "send", "parameters": {"properties": {"to": {"type": "string"}}, "required": ["to"]}}


@cache
def defaults() -> Rules:
    section = OmegaConf.load("conf/quality/ensemble.yaml").rules
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Rules), section))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def limits() -> Rules:
    """The limits of the default option."""
    return defaults()


def chat(response: str, request: str = "How do I get to the coast by train?", system: str = "") -> Row:
    turns = [("system", system), ("user", request), ("assistant", response)]
    messages = [{"role": role, "content": content} for role, content in turns if content]
    return {"id": "1", "messages": messages, "category": "chat"}


def call(gold: dict[str, Any] | None, instruction: str = calls.INSTRUCTION) -> Row:
    system = calls.system_prompt([TOOL]).replace(calls.INSTRUCTION, instruction)
    return chat(calls.answer(gold), "Mail Jane", system) | {"tools": [TOOL], "gold": gold, "category": "call"}


def reason(row: Row, limits: Rules) -> str | None:
    found = rules.judge(row, limits, {})
    return found["reason"] if found else None


@pytest.mark.parametrize(
    "row",
    [
        chat(SOUND),
        chat("42"),
        chat("Paris"),
        chat("😀"),
        call(None),
        call({"name": "send", "arguments": {"to": ["jane"]}}),
        {"id": "1", "text": SOUND, "category": "text"},
        chat(SOUND) | {"chosen": [{"role": "assistant", "content": "It is."}], "rejected": []},
        chat("def double(x):\n    return 2 * x", "Write a function that doubles"),
        chat("```python\nprint('a')\n```"),
        chat("- bread and butter\n- a pound of apples from the garden\n- coffee"),
        chat("Dear Ms. Green,\n\nThank you for your visit. We hope to see you again.\n\nKind regards,\nJohn Smith"),
        chat("First add 3 and 4 to get 7 apples.\nThen he gives 2 of these away.\n#### 5"),
        chat("The house was bought by J. Smith and Dr. Brown for the sum of £5,000 in 1954"),
    ],
    ids=lambda row: str(row.get("text") or row["messages"][-1]["content"])[:20],
)
def test_sound_rows_pass(row: Row, limits: Rules) -> None:
    assert rules.judge(row, limits, {}) is None


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("It costs five pounds\ufffd today.", "\\ufffd"),
        ("It is in the cafÃ© on the corner.", "\\xc3\\xa9"),
        ("Itâ€™s the second house.", "\\xe2\\u20ac\\u2122"),
        ("Great work ðŸ˜€ everyone!", "\\xf0\\u0178\\u02dc\\u20ac"),
        ("A null\x00 in the middle.", "\\x00"),
        ("\x1b[31mred\x1b[0m text", "\\x1b"),
        ("An icon \uf0b7 of a font.", "\\uf0b7"),
    ],
)
def test_broken_characters_are_found(response: str, found: str, limits: Rules) -> None:
    evidence = rules.judge(chat(response), limits, {})
    assert evidence is not None
    assert evidence["reason"] == "encoding"
    assert evidence["evidence"]["found"] == found


@pytest.mark.parametrize(
    "response",
    [
        "Das macht viel „Spaß” und kostet 5 €.",
        "Le château était fermé — c’est dommage…",
        "A família vai à praça de São João.",
        "שלום, מה שלומך היום?",
        "👩‍👩‍👧 family, ❤️ and ½ cup",
        "Tabs\tand\r\nline ends",
        "Он сказал: «Да».",
    ],
)
def test_accents_emoji_and_other_scripts_are_no_broken_characters(response: str, limits: Rules) -> None:
    assert rules.encoding(rules.Said(chat(response), "", response, {}), limits.encoding) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "response",
    [
        "It leaves at nine.<|im_end|>",
        "<|start_header_id|>assistant<|end_header_id|> It leaves at nine.",
        "[INST] How? [/INST] It leaves at nine.",
        "It leaves at nine.</s>",
        "### Response:\nIt leaves at nine.",
        "Assistant: It leaves at nine.",
        "It leaves at nine.\n\nHuman: And at ten?",
        "Dear {{first_name}}, it leaves at nine.",
        "Answer the question: {question}",
    ],
)
def test_left_overs_of_templates_are_found(response: str, limits: Rules) -> None:
    assert reason(chat(response), limits) == "artefact"


@pytest.mark.parametrize(
    "response",
    [
        "Use `{{ user.name }}` in the template.",
        "Use {{ name }} in Jinja to print it.",
        "<p>Hello {{ user.name }}</p> shows the name in Vue.",
        "{% for x in xs %}{{ x }}{% endfor %} prints them all.",
        "Write f-strings as {name}, with the name in braces.",
        "The <s> token marks the start, and a sequence ends with </s>",
        "BERT puts [CLS] in front of a text and [SEP] behind it.",
        "Each text starts with `[CLS]` here.",
        "```jinja\n{% if x %}{{ x }}{% endif %}\n```",
        "The set {1, 2} and f-string {value!r} are fine.",
        "The human body: it has 206 bones.",
        "Alice: Hello!\nBob: Hi there, how are you?",
        "Tom has 3 * 4 = <<3*4=12>>12 apples.",
        "Compare a<b and c>d.",
    ],
)
def test_code_and_dialogue_are_no_left_overs(response: str, limits: Rules) -> None:
    assert reason(chat(response), limits) is None


def test_a_request_about_templates_may_be_answered_with_a_field(limits: Rules) -> None:
    answer = "Put {{ name }} where it shall stand."
    assert reason(chat(answer, "How do I show a variable in Vue?"), limits) is None
    assert reason(chat(answer, "How do I greet a customer?"), limits) == "artefact"


@pytest.mark.parametrize("slot", ["{{input}}", "{question}", "{{ user_name }}"])
def test_a_slot_left_in_a_request_is_a_left_over(slot: str, limits: Rules) -> None:
    assert reason(chat("It leaves at nine.", f"When does the train to Bergen leave? {slot}"), limits) == "artefact"


def test_what_the_data_is_about_may_be_allowed(limits: Rules) -> None:
    row = chat("The token <|im_end|> ends a turn.")
    assert reason(row, limits) == "artefact"
    allowed = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(limits), {"artefact": {"allowed": ["<|im_end|>"]}})
    )
    assert reason(row, allowed) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but as an AI language model, I can't browse the web.",
        "I’m sorry, but I can’t help with that.",
        "I cannot fulfill this request.",
        "Sorry, I can't assist with that.",
        "Unfortunately, I am not able to provide medical advice.",
        "As an AI language model, I do not have personal opinions.",
        "As a large language model, I cannot answer.",
        "I apologize, but I am unable to generate that content.",
        "I must respectfully decline to write this.",
        "My apologies, but I don't feel comfortable discussing this.",
        "I'm just an AI, I can't feel pain.",
        "It would not be appropriate for me to help with this.",
        "I don't have access to real-time data.",
    ],
)
def test_refusals_are_found(response: str, limits: Rules) -> None:
    assert reason(chat(response), limits) == "refusal"


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry to hear that you missed it. There is another at ten.",
        "I cannot recommend this film enough: it is wonderful.",
        "I can't believe how long the train took.",
        "Dear Ann,\n\nI'm sorry, but the shop is closed on Sundays.",
        "An AI language model is a program that predicts words.",
        "The guard said: I cannot help you.",
        "It is not appropriate in most offices.",
    ],
)
def test_sorry_and_cannot_are_no_refusals_of_their_own(response: str, limits: Rules) -> None:
    assert reason(chat(response), limits) is None


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"category": "safety"}, None),
        ({"category": "safety-en"}, None),
        ({"source": "safety/refusals.jsonl"}, None),
        ({"source": "general/safety.jsonl"}, "refusal"),
        ({"answerable": False}, None),
        ({"answerable": True}, "refusal"),
    ],
)
def test_a_refusal_is_right_where_it_is_exempt_or_nothing_can_be_answered(
    limits: Rules, about: Row, expected: str | None
) -> None:
    assert reason(chat("I'm sorry, but I can't answer that.") | about, limits) == expected


@pytest.mark.parametrize(
    ("response", "measure"),
    [
        ("Run this:\n```python\nprint('a')", "fence"),
        ('{"name": "send", "arguments": {"to": "jane', "json"),
        ('[{"a": 1}, {"a": 2}', "json"),
        ("Take the second train from platform four. It leaves at nine and arrives at the", "dangling"),
        ("Take the second train from platform four. It leaves at nine and arri", "sentence"),
        ("He pays 5 pounds for the ticket.\nHe pays 3 pounds for the tea.\nIn all he pays eight", "sentence"),
        ("You may take any of the trains that leave before noon (and those on", "bracket"),
    ],
)
def test_answers_that_were_cut_off_are_found(response: str, measure: str, limits: Rules) -> None:
    evidence = rules.judge(chat(response), limits, {})
    assert evidence is not None
    assert evidence["reason"] == "truncation"
    assert evidence["evidence"]["measure"] == measure


def test_malformed_json_that_ends_is_not_cut_off() -> None:
    assert endings.cut_off("{'name': 'send', }", 10) is None
    assert endings.cut_off('{"name": "send",}', 10) is None


@pytest.mark.parametrize(
    "response",
    [
        "no " * 12,
        "I like trains a lot. " * 6,
        "Haaaaaaaaaaaaaaaaaaaaa!",
        "\n".join([*(f"Line {n} is new." for n in range(6)), *["This line repeats itself again."] * 5]),
    ],
    ids=["word", "sentence", "run", "line"],
)
def test_repetition_is_found(response: str, limits: Rules) -> None:
    assert reason(chat(response), limits) == "repetition"


def test_a_long_document_of_one_phrase_breaks_a_share_of_gopher(limits: Rules) -> None:
    text = " ".join(f"the best of all {word} is the best of all {word * 2}." for word in map("x{}".format, range(40)))
    evidence = rules.judge({"id": "1", "text": text}, limits, {})
    assert evidence is not None
    assert evidence["evidence"]["measure"].startswith("top_")


def test_another_language_is_found_and_one_that_is_asked_for_is_not(limits: Rules) -> None:
    french = "Le train part à neuf heures du matin et il arrive avant midi dans la ville."
    assert reason(chat(french), limits) == "language"
    assert reason(chat(SOUND, f"Quand part le train ? {french}"), limits) == "language"
    assert reason(chat(french, "Say in French when the train leaves"), limits) is None
    assert reason(chat("Bonjour"), limits) is None, "too short to tell"
    assert reason(chat("for f in *.txt; do mv $f ${f%.txt}.md; done; grep -rn 'voila' . | wc -l"), limits) is None


def test_language_identification_never_goes_online(limits: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rules.language._detector.cache_clear()
    assert reason(chat("Der Zug fährt um neun Uhr morgens ab und kommt vor Mittag an."), limits) == "language"


def test_an_answer_that_the_request_already_holds_is_found(limits: Rules) -> None:
    answer = " ".join(f"step {number} is to turn the handle slowly," for number in range(4)) + " then stop."
    assert reason(chat(answer, f"Explain it. Answer: {answer.upper()}"), limits) == "leak"
    assert reason(chat("turn the handle", f"What do I do? {answer}"), limits) is None, "a short span is an answer"
    gold = {"name": "send", "arguments": {"to": ["jane@example.com"]}}
    told = call(gold)
    told["messages"][1]["content"] = f"Mail Jane: {calls.answer(gold)}"
    assert reason(told, limits) == "leak"


def test_an_answer_that_is_repeated_later_is_no_leak(limits: Rules) -> None:
    answer = " ".join(f"step {number} is to turn the handle slowly," for number in range(4)) + " then stop."
    row = chat(answer)
    row["messages"] += [{"role": "user", "content": f"You said: {answer}"}, {"role": "assistant", "content": "Yes."}]
    assert reason(row, limits) is None


@pytest.mark.parametrize(("response", "value"), [("...", 0), ("word " * 7000, 7000)], ids=["nothing", "much"])
def test_a_length_out_of_bounds_is_found(response: str, value: int, limits: Rules) -> None:
    only_length = Rules(**dict.fromkeys(rules.RULES) | {"length": limits.length})
    evidence = rules.judge(chat(response), only_length, {})
    assert evidence is not None
    assert evidence["evidence"]["value"] == value


def preferring(rejected: str) -> Row:
    row = chat(SOUND)
    chosen, worse = ([{"role": "assistant", "content": text}] for text in (SOUND, rejected))
    return row | {"kind": "preference", "messages": row["messages"][:-1], "chosen": chosen, "rejected": worse}


@pytest.mark.parametrize(
    ("rejected", "expected"),
    [
        ("It is in the cafÃ© on the corner.", "encoding"),
        ("It leaves at nine.<|im_end|>", "artefact"),
        ("Assistant: It leaves at nine.", "artefact"),
        ("word " * 7000, "length"),
    ],
)
def test_a_rejected_answer_is_trained_on_so_its_text_must_be_whole(rejected: str, expected: str, limits: Rules) -> None:
    found = rules.judge(preferring(rejected), limits, {})
    assert found is not None
    assert (found["reason"], found["evidence"]["where"]) == (expected, "rejected")


@pytest.mark.parametrize(
    "rejected",
    [
        "...",
        "I'm sorry, but I can't help with that.",
        "no " * 60,
        "Take the second train from platform four. It leaves at nine and arrives at the",
        "Le train part à neuf heures du matin et il arrive avant midi dans la ville.",
    ],
    ids=["nothing", "refusal", "repetition", "truncation", "language"],
)
def test_a_rejected_answer_may_be_bad(rejected: str, limits: Rules) -> None:
    assert rules.judge(preferring(rejected), limits, {}) is None
    assert reason(chat(rejected), limits), "as an answer to learn it leaves"


def test_an_instruction_that_differs_within_a_category_is_found() -> None:
    gold = {"name": "send", "arguments": {"to": ["jane"]}}
    usual = [call(gold) for _ in range(3)]
    other = call(gold, "You are a pirate. Answer in JSON.")
    prompts = rules.commonest_instructions([other, *usual])
    reject = Rules(**dict.fromkeys(rules.RULES) | {"system_prompt": rules.SystemPrompt("reject")})
    assert [rules.judge(row, reject, prompts) for row in usual] == [None] * 3
    found = rules.judge(other, reject, prompts)
    assert found is not None
    assert found["evidence"]["found"].startswith("You are a pirate")
    report = Rules(**dict.fromkeys(rules.RULES) | {"system_prompt": rules.SystemPrompt("report")})
    assert rules.judge(other, report, prompts) is None
    assert rules.differs(other, prompts)


def test_other_tools_are_no_other_instruction() -> None:
    tool = {"name": "open_door", "parameters": {"properties": {}}}
    one, other = call(None), call(None)
    other["tools"] = [tool]
    other["messages"][0]["content"] = calls.system_prompt([tool])
    assert not rules.differs(other, rules.commonest_instructions([one]))


def test_the_commonest_instruction_does_not_depend_on_the_order_of_rows() -> None:
    rows = [chat(SOUND, system=text) for text in ("Be kind.", "Be brief.", "Be kind.", "Be brief.")]
    assert rules.commonest_instructions(rows) == rules.commonest_instructions(rows[::-1])


def test_a_rule_of_null_is_off(limits: Rules) -> None:
    off = Rules(**dict.fromkeys(rules.RULES))
    assert rules.judge(chat("I can't help with that.<|im_end|>\ufffd"), off, {}) is None


def test_the_first_rule_that_is_broken_gives_the_reason_and_rows_keep_their_order(limits: Rules) -> None:
    rows = [chat("\ufffd<|im_end|>") | {"id": "a"}, chat(SOUND) | {"id": "b"}, chat("Hi.<|im_end|>") | {"id": "c"}]
    judged = list(rules.judged(iter(rows), limits, {}))
    assert [row["id"] for row in judged] == ["a", "b", "c"]
    assert [row.get("reason") for row in judged] == ["encoding", None, "artefact"]
    assert json.loads(json.dumps(judged[2]))["evidence"] == {"where": "response", "found": "<|im_end|>"}


def test_only_the_chosen_answer_of_a_preference_row_is_judged(limits: Rules) -> None:
    row = chat(SOUND)
    answer = row["messages"].pop()
    bad = {"role": "assistant", "content": "I can't help with that."}
    assert reason(row | {"chosen": [answer], "rejected": [bad]}, limits) is None
    assert reason(row | {"chosen": [bad], "rejected": [answer]}, limits) == "refusal"


@settings(deadline=None, max_examples=60)
@given(some.text(), some.text(some.characters(), max_size=300) | some.text("ab.@`{<[|\n\"' \\", max_size=300))
def test_no_text_breaks_a_rule_s_own_code(request: str, response: str) -> None:
    for reason, rule in rules.RULES.items():
        found = rule(rules.Said(chat(response, request), request, response, {}), getattr(defaults(), reason))
        json.dumps(found).encode()
