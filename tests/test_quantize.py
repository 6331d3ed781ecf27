"""What `quantize` refuses: an unknown type, a release without its chat template, one that answers nothing."""

from pathlib import Path

import pytest

from scripts import quantize
from temper import gguf


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with a template, and a quantized file that holds the same one and answers."""
    model = tmp_path / "dpo"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ messages }}\n")
    monkeypatch.setattr(quantize, "MODEL", model)
    monkeypatch.setattr(gguf, "template", lambda _path: "{{ messages }}")
    monkeypatch.setattr(gguf, "load", lambda *_, **__: None)
    monkeypatch.setattr(gguf, "reply", lambda *_, **__: iter(["Par", "is"]))
    return tmp_path / "model.gguf"


def test_an_unknown_type_is_named_with_the_valid_ones() -> None:
    with pytest.raises(SystemExit) as error:
        gguf.check_type("Q4_KM")
    message = str(error.value)
    assert "\n" not in message
    for word in ("'Q4_KM'", "Q4_K_M", "Q8_0", "conf/quantize"):
        assert word in message
    gguf.check_type("Q4_K_M")


def test_a_release_that_is_whole_passes(release: Path) -> None:
    quantize.check(release, threads=1)


def test_another_chat_template_inside_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "template", lambda _path: "")
    with pytest.raises(SystemExit, match=r"model\.gguf: its chat template is not .*make dpo quantize"):
        quantize.check(release, threads=1)


def test_a_release_without_an_answer_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "reply", lambda *_, **__: iter(["", " "]))
    with pytest.raises(SystemExit, match=r"model\.gguf: loads, but answers nothing"):
        quantize.check(release, threads=1)
