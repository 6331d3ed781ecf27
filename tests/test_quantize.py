"""What `quantize` refuses: an unknown type, a release without its chat template, one that answers nothing."""

import sys
from contextlib import nullcontext
from ctypes import c_int
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import quantize
from temper import gguf


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with a template, and a quantized file that holds the same one and answers."""
    model = tmp_path / "dpo"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ messages }}\n")
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


def test_a_full_disk_is_not_taken_for_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = "import sys\nprint('converting')\nopen('/dev/full', 'w').write('x' * 100_000)\n"
    (tmp_path / "convert_hf_to_gguf.py").write_text(converter)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"out\.gguf: No space left on device: free space") as error:
        gguf.convert(tmp_path, tmp_path / "out.gguf", "name")
    assert "\n" not in str(error.value)
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('Model Foo is not supported')")
    with pytest.raises(SystemExit, match=r"Foo is not supported\): choose an architecture"):
        gguf.convert(tmp_path, tmp_path / "out.gguf", "name")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [("basic_ios::clear: iostream error", "free space"), ("unknown type", "choose another quantize.gguf.type")],
)
def test_a_failed_quantization_has_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
) -> None:
    llama = SimpleNamespace(
        llama_model_quantize_default_params=c_int,
        llama_model_quantize=lambda *_: 1,
        LLAMA_FTYPE_MOSTLY_Q4_K_M=15,
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", llama)
    monkeypatch.setattr(gguf, "captured_log", lambda: nullcontext([f"failed to quantize: {said}"]))
    with pytest.raises(SystemExit, match=remedy):
        gguf.quantize(tmp_path / "bf16.gguf", tmp_path / "out.gguf", "Q4_K_M", threads=1)


def test_a_release_that_is_whole_passes(release: Path) -> None:
    quantize.check(release, release.with_name("dpo"), threads=1)


def test_another_chat_template_inside_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "template", lambda _path: "")
    with pytest.raises(SystemExit, match=r"model\.gguf: its chat template is not .*make dpo quantize"):
        quantize.check(release, release.with_name("dpo"), threads=1)


def test_a_release_without_an_answer_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "reply", lambda *_, **__: iter(["", " "]))
    with pytest.raises(SystemExit, match=r"model\.gguf: loads, but answers nothing"):
        quantize.check(release, release.with_name("dpo"), threads=1)
