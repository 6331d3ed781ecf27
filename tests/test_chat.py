"""Chat in the terminal: one answer a request, each on its own; mistakes end in one line."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import chat
from temper import calls, llama, metrics

TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[dict[str, str]]]:
    """The chats that a stand-in model was asked; it answers `null` in two pieces."""
    seen: list[list[dict[str, str]]] = []

    def reply(_model: Any, messages: list[dict[str, str]], _max_tokens: int) -> Iterator[str]:
        seen.append(messages)
        yield from ("nu", "ll")

    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setattr(chat, "MODEL", model)
    monkeypatch.setattr(chat.retention, "require_released", lambda _: None)
    monkeypatch.setattr(llama, "load", lambda *_: None)
    monkeypatch.setattr(llama, "reply", reply)
    return seen


def talk(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    chat.main(list(arguments))


def test_each_line_is_a_request_of_its_own(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, "first\n\nsecond\n")
    assert capsys.readouterr().out == "null\nnull\n"
    assert [[turn["role"] for turn in messages] for messages in asked] == [["system", "user"]] * 2
    assert asked[1][1]["content"] == "second"


def test_the_tools_of_a_file_reach_the_model_as_in_training(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"type": "function", "function": TOOL}]))
    talk(monkeypatch, "add 1\n", str(file))
    assert asked[0][0]["content"] == calls.system_prompt([TOOL])


def test_commands_list_tools_and_quit(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, "/tools\n/quit\nnever asked\n")
    assert "get_weather(city: string" in capsys.readouterr().out
    assert asked == []


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]", '[{"name": "x"}]', '[{"function": 3}]'])
def test_a_file_that_lists_no_tools_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tools.json"
    file.write_text(text)
    with pytest.raises(SystemExit) as error:
        chat.read_tools(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quant_that_lost_too_much_is_not_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat, "MODEL", tmp_path / "model.gguf")
    chat.MODEL.touch()
    metrics.write("reports/retention/gguf.json", {"released": False, "withheld": "kl 0.3 > 0.1"})
    with pytest.raises(SystemExit, match=r"^models/gguf is not released \(kl 0\.3 > 0\.1\): .*conf/retention$"):
        chat.main([])


def test_without_a_release_it_names_make_repro(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chat, "MODEL", tmp_path / "model.gguf")
    with pytest.raises(SystemExit, match="make repro"):
        chat.main([])
