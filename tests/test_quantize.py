"""What `quantize` and `retention` refuse and decide, without their engines: tests/test_quants.py runs those."""

import json
import sys
from contextlib import nullcontext
from ctypes import c_int
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands.compose import composed
from scripts import quantize
from scripts import retention as stage
from temper import calibration, gguf, gptq, llama, params, recipe, records, retention
from temper.calibration import Calibration


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with a template, and a quantized file that holds the same one and answers."""
    model = tmp_path / "dpo"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ messages }}\n")
    monkeypatch.setattr(gguf, "template", lambda _path: "{{ messages }}")
    monkeypatch.setattr(llama, "load", lambda *_, **__: None)
    monkeypatch.setattr(llama, "reply", lambda *_, **__: iter(["Par", "is"]))
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
    library = SimpleNamespace(
        llama_model_quantize_default_params=c_int,
        llama_model_quantize=lambda *_: 1,
        LLAMA_FTYPE_MOSTLY_Q4_K_M=15,
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    monkeypatch.setattr(llama, "captured_log", lambda: nullcontext([f"failed to quantize: {said}"]))
    with pytest.raises(SystemExit, match=remedy):
        gguf.quantize(tmp_path / "bf16.gguf", tmp_path / "out.gguf", "Q4_K_M", threads=1, weighed={})


def test_llama_cpp_runs_with_the_attention_that_it_would_choose_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=lambda _path, **options: asked.update(options)))
    llama.load(Path("model.gguf"), threads=3, context=64, all_logits=True)
    assert (asked["flash_attn"], asked["n_threads"], asked["n_ctx"], asked["logits_all"]) == (True, 3, 64, True)


def test_a_release_that_is_whole_passes(release: Path) -> None:
    gguf.check(release, release.with_name("dpo"), threads=1)


def test_another_chat_template_inside_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "template", lambda _path: "")
    with pytest.raises(SystemExit, match=r"model\.gguf: its chat template is not .*make dpo quantize"):
        gguf.check(release, release.with_name("dpo"), threads=1)


def test_a_release_without_an_answer_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "reply", lambda *_, **__: iter(["", " "]))
    with pytest.raises(SystemExit, match=r"model\.gguf: loads, but answers nothing"):
        gguf.check(release, release.with_name("dpo"), threads=1)


class Letters:
    """A tokenizer with a token a character, whose template is the contents."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens, "the template names its own"
        return {"input_ids": list(map(ord, text))}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        assert not tokenize
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in messages)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    chats = ({"messages": [{"role": "user", "content": f"{number:03}"}]} for number in range(99))
    records.write(tmp_path / "train.jsonl", [*chats, {"text": "plain"}])
    return tmp_path / "train.jsonl"


def drawn(rows: Path, count: int, seed: int, tokens: int = 100) -> list[str]:
    settings = Calibration(rows=count, tokens=tokens, seed=seed)
    found = calibration.token_ids(rows, Letters(), settings, "quantize.gptq")
    return ["".join(map(chr, ids)) for ids in found]


def test_calibration_rows_are_drawn_by_seed_and_rendered_as_in_training(rows: Path) -> None:
    assert drawn(rows, 8, 17) == drawn(rows, 8, 17) != drawn(rows, 8, 18)
    assert len(set(drawn(rows, 8, 17))) == 8
    everything = drawn(rows, 1000, 17)
    assert everything == [*(f"<user>{number:03}" for number in range(99)), "plain"]
    assert drawn(rows, 1000, 17, tokens=3)[0] == "<us"


@pytest.mark.parametrize(("count", "tokens"), [(0, 10), (1, 1)])
def test_a_calibration_of_nothing_is_one_line(rows: Path, count: int, tokens: int) -> None:
    with pytest.raises(
        SystemExit, match=rf"^quantize\.gptq\.calibration: {count} rows of {tokens} tokens, .*conf/quantize$"
    ):
        drawn(rows, count, 17, tokens)


def weights(folder: Path, *widths: int) -> Path:
    """A model folder whose layers have matrices of these inputs."""
    shapes = {f"model.layers.{number}.mlp.up_proj.weight": [8, width] for number, width in enumerate(widths)}
    shapes |= {"model.embed_tokens.weight": [100, 7], "model.layers.0.input_layernorm.weight": [7]}
    header = json.dumps({name: {"shape": shape, "data_offsets": [0, 2]} for name, shape in shapes.items()}).encode()
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


@pytest.mark.parametrize(
    ("size", "widths", "said"),
    [
        (128, (576, 1536), r"128 does not divide 576, a width of .*: set model\.group_size to 64 in conf/model$"),
        (64, (96,), r"64 does not divide 96, .* to 32 in conf/model$"),
        (32, (40,), r"32 does not divide 40, .*: leave awq out of recipe\.formats$"),
        (100, (100,), r"100, expected 128, 64, 32: correct model\.group_size in conf/model$"),
    ],
)
def test_a_group_that_does_not_fit_is_one_line(tmp_path: Path, size: int, widths: tuple[int, ...], said: str) -> None:
    with pytest.raises(SystemExit, match=rf"^quantize\.awq\.group_size: {said}"):
        gptq.check_groups(weights(tmp_path, *widths), size, "awq")
    gptq.check_groups(weights(tmp_path, 576, 1536), 64, "awq")


@pytest.mark.parametrize("name", sorted(file.stem for file in Path("conf/model").glob("*.yaml")))
def test_every_model_has_the_largest_group_that_divides_its_widths_and_a_small_one_the_finest(name: str) -> None:
    settings = OmegaConf.create(composed([f"model={name}"]))
    shape = settings.model.shape
    widths = [shape.hidden_size, shape.intermediate_size, shape.num_attention_heads * shape.head_dim]
    largest = next(size for size in gptq.GROUPS if not any(width % size for width in widths))
    wanted = largest if shape.hidden_size >= 1024 else gptq.GROUPS[-1]
    assert not any(width % wanted for width in widths)
    assert settings.quantize.gptq.group_size == settings.quantize.awq.group_size == wanted


FIGURES = {"perplexity_ratio": 1.05, "kl": 0.05, "kl_p99": 0.9, "unchanged": 0.8, "exact_kept": 0.98}
NONE = retention.Limits(None, None, None, None, None)


@pytest.mark.parametrize(
    ("limit", "withheld"),
    [
        ({"perplexity": 1.05}, ""),
        ({"perplexity": 1.04}, "perplexity_ratio 1.05 > 1.04"),
        ({"kl": 0.04}, "kl 0.05 > 0.04"),
        ({"kl_p99": 0.5}, "kl_p99 0.9 > 0.5"),
        ({"unchanged": 0.9}, "unchanged 0.8 < 0.9"),
        ({"exact": 0.98}, ""),
        ({"exact": 0.99, "kl": 0.01}, "kl 0.05 > 0.01, exact_kept 0.98 < 0.99"),
        ({}, ""),
    ],
)
def test_a_quant_is_released_within_its_limits_alone(limit: dict[str, float], withheld: str) -> None:
    found = retention.verdict(FIGURES, replace(NONE, **limit))
    assert found == {"released": not withheld, "withheld": withheld}


def test_what_cannot_be_judged_is_held_to_what_can() -> None:
    left = {key: value for key, value in FIGURES.items() if key != "exact_kept"} | {"unjudged": "exact_kept: no gold"}
    assert retention.verdict(left, replace(NONE, exact=0.97, kl=0.1)) == {"released": True, "withheld": ""}
    assert retention.verdict(left, replace(NONE, exact=0.97, kl=0.01))["withheld"] == "kl 0.05 > 0.01"
    alone = retention.verdict(left, replace(NONE, exact=0.97))
    assert alone == {"released": False, "withheld": "not judged (exact_kept: no gold)"}


def test_a_figure_that_is_no_number_releases_nothing() -> None:
    for name in ("kl", "exact"):
        broken = FIGURES | {retention.MEASURES[name]: float("nan")}
        assert not retention.verdict(broken, replace(NONE, **{name: 0.5}))["released"]


def test_what_was_never_measured_is_not_released(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make repro"):
        retention.require_released("awq", tmp_path)


def test_every_format_has_its_settings_its_writer_and_its_limits() -> None:
    assert set(quantize.SCHEMAS) == set(quantize.WRITERS) == set(recipe.FORMATS)
    limits = params.load("retention", stage.Retention).limits
    assert limits.exact == 0.97, "the share of bf16's task score that a released quant keeps"
    assert set(asdict(limits)) == set(retention.MEASURES)


def test_answers_are_scored_as_evaluate_scores_them() -> None:
    tool = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    rows = [{"tools": [tool], "gold": {"name": "add", "arguments": {"a": [number]}}} for number in range(4)]
    right = [json.dumps({"name": "add", "arguments": {"a": number}}) for number in range(4)]

    class Decoder:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(map(chr, ids))

    def seen(texts: list[str]) -> retention.Seen:
        return retention.Seen([], [list(map(ord, text)) for text in texts])

    asked = retention.Asked([], 1, [], rows, 8)
    whole, quant = seen([*right[:3], "null"]), seen([right[0], " null ", right[2], "null"])
    found = retention.answered(asked, whole, quant, Decoder(), 0.95, 17)
    assert (found["exact_bf16"], found["exact"], found["exact_kept"]) == (0.75, 0.5, pytest.approx(2 / 3))
    assert found["unchanged"] == 0.75
    assert found["exact_change"] == -0.25
    assert found["exact_change_low"] < -0.25 < found["exact_change_high"] + 1e-9
    assert found["unjudged"] == ""
    none = retention.answered(asked, seen(["x"] * 4), whole, Decoder(), 0.95, 17)
    assert "exact_kept" not in none, "it had none to lose"
    assert none["unjudged"] == "exact_kept: the model answers none of 4 rows right"
    assert (none["exact_bf16"], none["unchanged"]) == (0.0, 0.0)
    # Chats without a gold call count for what they are: the same text or not.
    chat: dict[str, Any] = {"messages": []}
    mixed = replace(asked, rows=[rows[0], chat, rows[2], chat])
    found = retention.answered(mixed, whole, quant, Decoder(), 0.95, 17)
    assert (found["answers"], found["unchanged"], found["exact_kept"]) == (4, 0.75, 1.0)
    found = retention.answered(replace(asked, rows=[chat] * 4), whole, quant, Decoder(), 0.95, 17)
    assert (found["unchanged"], found["unjudged"]) == (0.75, "exact_kept: no answered row has a gold call")
    assert "exact" not in found
    found = retention.answered(replace(asked, rows=[]), seen([]), seen([]), Decoder(), 0.95, 17)
    assert found == {"answers": 0, "unjudged": "unchanged and exact_kept: no row is a chat"}


def test_chats_and_texts_are_asked_about_whatever_they_have_of_a_gold_call() -> None:
    class Tokenizer:
        def apply_chat_template(self, messages: list[str], tokenize: bool, add_generation_prompt: bool = False) -> str:
            return "".join(messages) + (">" if add_generation_prompt else "")

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": list(map(ord, text))}

    chats: list[dict[str, Any]] = [{"messages": ["ask", "say"]}, {"messages": ["a", "b"], "gold": None, "tools": []}]
    rows = [chats[0], {"text": "prose"}, chats[1]]
    asked = retention.asked(rows, Tokenizer(), 3, 4, 3, 8)
    assert ["".join(map(chr, ids)) for ids in asked.texts] == ["asksay", "prose", "ab"]
    assert ["".join(map(chr, ids)) for ids in asked.prompts] == ["ask>", "a>"]
    assert asked.longest() == 8 + len("ask>")
    only_text = retention.asked(rows[1:2], Tokenizer(), 3, 4, 3, 8)
    assert (only_text.prompts, only_text.longest()) == ([], 8)
