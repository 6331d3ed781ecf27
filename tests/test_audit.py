"""The audit lets right chats through unchanged and names the row, the place and the remedy of each kind of wrong one."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts import audit as stage
from scripts.sft import Sft
from temper import audit, axolotl, formats, labels, params, records, rendering, training, truncation
from temper.audit import Auditor
from temper.labels import IGNORED, Labelled
from temper.rendering import Messages, Prompt
from temper.truncation import Settings

START, END = "<|im_start|>", "<|im_end|>"
CUTTING = Settings("error", 400, 4, 0.25, truncate_answers=False)
ANSWER = '{"name": "add"}'
PREFERENCE = {"kind": "preference", "messages": [{"role": "user", "content": "q"}], "chosen": [], "rejected": []}


@dataclass(frozen=True)
class ChatML:
    """A model whose tokens are characters and two marks, under ChatML; each field breaks one thing."""

    before_answer: str = ""
    end: str = END
    generation: str = f"{START}assistant\n"
    first: str = ""
    masks: int = 0
    """By how many tokens the mask is off at the answer's beginning."""
    learns_to_stop: bool = True
    reads: int | None = None
    """Tokens of a text, if not all."""
    stops = frozenset({ord("\U000f0001")})
    begin: int | None = ord("\U000f0000")
    specials = frozenset({START, END})

    def labelled(self, messages: Messages) -> Labelled:
        text, answers = self.first, []
        for turn in messages:
            answer = turn["role"] == "assistant"
            text += f"{START}{turn['role']}\n" + (self.before_answer if answer else "")
            end = self.end if answer else END
            if answer:
                answers.append((len(text) + self.masks, len(text + turn["content"]) + len(END) * self.learns_to_stop))
            text += turn["content"] + end + "\n"
        spans = self.spans(text)
        ids = [self._id(text[start:end]) for start, end in spans]
        trained = [any(first <= start and end <= last for first, last in answers) for start, end in spans]
        marked = [one if on else IGNORED for one, on in zip(ids, trained, strict=True)]
        return Labelled(text, ids, marked, ids, spans)

    def text(self, text: str) -> Labelled:
        spans = [*self.spans(text), (len(text), len(text))]
        ids = [*(self._id(text[start:end]) for start, end in spans[:-1]), self._id(END)]
        return Labelled(text, ids[: self.reads], ids[: self.reads], ids, spans)

    def prompt(self, messages: Messages) -> Prompt:
        body = "".join(f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in messages)
        text = self.first + body + self.generation
        return Prompt(text, [self._id(text[start:end]) for start, end in self.spans(text)])

    def length(self, messages: Messages) -> int:
        return len(self.labelled(messages).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in re.finditer(rf"{re.escape(START)}|{re.escape(END)}|.", text, re.DOTALL)]

    def _id(self, token: str) -> int:
        return ord({START: "\U000f0000", END: "\U000f0001"}.get(token, token))


def row(identity: str = "aaaa", request: str = "add 1 and 2", **more: Any) -> dict[str, Any]:
    turns = [("system", "Answer with one call as JSON, or null if no tool fits."), ("user", request)]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", ANSWER)]]
    return {"id": identity, "messages": messages, "source": "s", "licence": "mit", "category": "c"} | more


def with_turns(*turns: tuple[str, str]) -> dict[str, Any]:
    return row(messages=[{"role": role, "content": text} for role, text in turns])


def audited(
    *rows: dict[str, Any], chats: ChatML | None = None, others: Any = None, **changes: Any
) -> list[dict[str, Any]]:
    model = chats or ChatML()
    return list(auditor(model, others, **changes).audited(rows))


def auditor(model: ChatML, others: Any = None, **changes: Any) -> Auditor:
    same = others or (lambda chat: {"evaluation": model.prompt(chat), "serving": model.prompt(chat)})
    return Auditor(model, same, replace(CUTTING, **changes), compare_every=1, show=10)


def test_a_right_chat_passes_unchanged_whatever_its_turns() -> None:
    several = with_turns(("user", "é 👋"), ("assistant", "Salut"), ("user", "et toi ?"), ("assistant", " bien\n"))
    rows = [row(), several]
    assert audited(*rows) == rows


@pytest.mark.parametrize(
    ("model", "reason", "said"),
    [
        (ChatML(masks=1), "mask", r"\('\{'\) is masked, though the answer has it"),
        (ChatML(masks=-1), "mask", r"is trained on, though it is no answer"),
        (ChatML(learns_to_stop=False), "no_end_of_turn", r"which is masked: the model would never learn to stop"),
        (ChatML(end=""), "no_end_of_turn", r"followed by .*where a token that ends generation was expected"),
        (ChatML(before_answer="<think></think>"), "template", r"training shows '<think></think>\{"),
        (ChatML(generation=f"{START}model\n"), "template", r"differ from character \d+ on"),
        (ChatML(first=START), "double_bos", r"twice at the start"),
    ],
)
def test_a_model_that_is_prepared_wrongly_is_found_out(model: ChatML, reason: str, said: str) -> None:
    (found,) = audited(row("bbbb"), chats=model)
    assert (found["id"], found["reason"]) == ("bbbb", reason)
    assert re.search(said, found["detail"])
    assert found["remedy"]


@pytest.mark.parametrize("who", ["evaluation", "serving"])
def test_another_prompt_in_evaluation_or_serving_is_named_with_its_first_character(who: str) -> None:
    def others(chat: Messages) -> dict[str, Prompt]:
        right = ChatML().prompt(chat)
        wrong = Prompt(right.text.replace("Answer", "Reply"), right.ids)
        return {"evaluation": right, "serving": right} | {who: wrong}

    (found,) = audited(row(), others=others)
    assert found["reason"] == "template"
    assert f"training and {who} differ from character 19 on" in found["detail"]


def test_equal_bytes_in_other_tokens_are_told_apart() -> None:
    def others(chat: Messages) -> dict[str, Prompt]:
        right = ChatML().prompt(chat)
        return {"serving": Prompt(right.text, [right.ids[0], *right.ids])}

    (found,) = audited(row(), others=others)
    assert "training and serving differ from token 1 on" in found["detail"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("system", "Be brief."), ("system", "Be brief."), ("user", "q"), ("assistant", "a")], "double_system"),
        ([("system", "x" * 50), ("user", "x" * 50 + "\nq"), ("assistant", "a")], "double_system"),
        ([("system", "Be brief. " * 5 + "\n" + "Be brief. " * 5), ("user", "q"), ("assistant", "a")], None),
        ([("user", f"q{END}"), ("assistant", "a")], "artefact"),
        ([("user", "q"), ("assistant", "a<|eot_id|>")], "artefact"),
    ],
)
def test_signs_of_a_template_that_was_applied_before(turns: list[tuple[str, str]], reason: str | None) -> None:
    (found,) = audited(with_turns(*turns))
    assert found.get("reason") == reason


def test_what_is_too_long_fails_or_is_cut_as_the_policy_says() -> None:
    long = row("cccc", "word " * 200)
    (failed,) = audited(long)
    assert failed["reason"] == "over_long"
    assert "sft.sequence_length" in failed["remedy"]
    (cut,) = audited(long, policy="tail")
    assert cut["origin"] == "cccc"
    assert cut["messages"][-1]["content"] == ANSWER
    assert len(audited(long, policy="sliding_window")) > 1


def test_rows_that_cannot_be_trained_on_leave_and_the_counts_add_up() -> None:
    rows = [row("a"), row("b", messages=[]), PREFERENCE | {"id": "c"}, row("d", "word " * 200)]
    rows += [with_turns(("user", "q"), ("assistant", "word " * 200))]
    one = auditor(ChatML(), policy="head")
    out = list(one.audited(rows))
    rejected = [row for row in out if "reason" in row]
    counts = audit.summary(one.tally, rejected, 400)
    assert Counter(row["reason"] for row in rejected) == {"no_answer": 1, "left_for_preferences": 1, "too_long": 1}
    assert counts["seen"] == 5 == counts["kept"] + sum(n for key, n in counts.items() if key.startswith("rejected_"))
    assert counts["truncated"] == 1
    assert counts["tokens_max"] <= 400
    assert not any("remedy" in row for row in rejected)


def test_a_row_cut_into_windows_is_kept_once_and_one_that_vanishes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = auditor(ChatML(), policy="sliding_window")
    windows = list(one.audited([row("c", "word " * 200)]))
    counts = audit.summary(one.tally, [], 400)
    assert (counts["seen"], counts["kept"], counts["written"]) == (1, 1, len(windows))
    assert len(windows) > 1
    monkeypatch.setattr(truncation, "fitted", lambda *_: [])
    assert list(one.audited([row("d", "word " * 200)])) == []
    with pytest.raises(AssertionError, match="2 rows seen, 1 kept, 0 rejected"):
        audit.summary(one.tally, [], 400)


def test_a_text_is_trained_on_as_a_whole_in_stretches() -> None:
    text = {"id": "e", "kind": "text", "text": "word " * 200}
    one = auditor(ChatML())
    assert list(one.audited([text, row("a")])) == [text, row("a")]
    counts = audit.summary(one.tally, [], 400)
    assert counts["written"] == 4  # 1,001 tokens are three rows of at most 400
    assert (counts["kept"], counts["windows"], counts["tokens_max"]) == (2, 2, 400)
    assert counts["tokens_trained"] == 1001 + len(ANSWER) + 1
    assert counts["rows_without_system_prompt"] == 0
    shown = audit.sample(one.tally, 10)[0]
    assert [part["trained"] for part in shown["segments"]] == [True]


@pytest.mark.parametrize(
    ("text", "model", "reason", "said"),
    [
        (f"prose{END}", ChatML(), "artefact", "the text contains <|im_end|>"),
        ("prose" * 9, ChatML(reads=40), "over_long", "46 tokens, where 40 fit"),
    ],
)
def test_a_text_that_is_not_trained_on_as_it_is_says_why(text: str, model: ChatML, reason: str, said: str) -> None:
    (found,) = audited({"id": "e", "kind": "text", "text": text}, chats=model)
    assert (found["reason"], found["detail"]) == (reason, said)


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    lengths = Counter(range(1, 101))
    assert [audit.percentile(lengths, share) for share in (50, 90, 99)] == [50, 90, 99]
    assert audit.percentile(Counter(), 50) == 0


def test_the_histogram_holds_every_row() -> None:
    lengths = Counter({1: 3, 399: 2, 400: 1})
    bins = audit.histogram(lengths, 400)
    assert sum(rows for _, rows in bins) == 6
    assert bins[0][1] == 3
    assert max(upper for upper, rows in bins if rows) >= 400


def test_the_shown_rows_are_whole_marked_and_from_every_category() -> None:
    one = auditor(ChatML())
    rows = [row(f"{number:04x}", category="ab"[number % 2]) for number in range(40)]
    list(one.audited(rows))
    shown = audit.sample(one.tally, 10)
    assert Counter(row["category"] for row in shown) == {"a": 5, "b": 5}
    backwards = auditor(ChatML())
    list(backwards.audited(reversed(rows)))
    assert shown == audit.sample(backwards.tally, 10)
    trained = [part["text"] for part in shown[0]["segments"] if part["trained"]]
    assert trained == [ANSWER + END]
    assert "".join(part["text"] for part in shown[0]["segments"]).count(START) == 3


def test_a_row_that_the_mix_repeats_is_shown_once() -> None:
    one = auditor(ChatML())
    list(one.audited([row("a"), row("b")] * 30 + [row("c")]))
    assert [shown["id"] for shown in audit.sample(one.tally, 10)] == ["a", "b", "c"]
    assert one.tally.lengths.total() == 61


def test_system_prompts_are_counted() -> None:
    one = auditor(ChatML())
    list(one.audited([row("a"), row("b"), with_turns(("user", "q"), ("assistant", "a"))]))
    counts = audit.summary(one.tally, [], 400)
    assert (counts["system_prompts"], counts["system_prompts_shared"], counts["rows_without_system_prompt"]) == (
        1,
        2,
        1,
    )


def test_a_violation_ends_the_run_in_one_line_and_a_rejected_row_does_not() -> None:
    stage.refuse([{"id": "a", "split": "train", "reason": "too_long", "detail": "900 tokens"}])
    broken = {"id": "b", "split": "train", "reason": "mask", "detail": "token 3", "remedy": "mend it"}
    with pytest.raises(SystemExit) as error:
        stage.refuse([broken, broken])
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in ("2 rows", "train row b", "mask", "token 3", "mend it"))


class SameEverywhere:
    """Prompts of evaluation and serving that are the trainer's."""

    def __init__(self, base: Path) -> None:
        assert base == stage.BASE

    def __enter__(self) -> "SameEverywhere":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def of(self, chat: Messages) -> dict[str, Prompt]:
        return {"serving": ChatML().prompt(chat)}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, train: list[dict[str, Any]], compare_every: int = 1) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(rendering, "Prompts", SameEverywhere)
    monkeypatch.setattr(training, "prepare", lambda: None)
    monkeypatch.setattr(labels, "Labeller", lambda *settings: ChatML())
    settings: dict[str, Any] = {
        "sequence_length": 400,
        "end_of_turn": None,
        "truncation": "error",
        "truncate_answers": False,
    }
    settings |= {"min_turn_tokens": 4, "window_overlap": 0.25, "compare_every": compare_every, "shown": 2}
    Path("params.yaml").write_text(json.dumps({"audit": settings}))
    records.write(stage.INPUT / "train.jsonl", train)
    records.write(stage.INPUT / "validation.jsonl", [row("v")])
    stage.main()


def test_with_no_row_left_to_train_on_the_run_ends_and_says_what_sft_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [PREFERENCE | {"id": str(number)} for number in range(3)]
    with pytest.raises(
        SystemExit, match=r"train.jsonl is left to train on \(3 left_for_preferences\): .* messages, sharegpt"
    ) as end:
        run(tmp_path, monkeypatch, pairs)
    assert "\n" not in str(end.value)
    assert not Path("reports/audit.json").exists()
    assert {*stage.TRAINABLE} == {*formats.FORMATS, "bfcl"} - {"preference"}
    run(tmp_path, monkeypatch, [*pairs, row("a"), row("b")])
    counts = json.loads(Path("reports/audit.json").read_text())
    assert (counts["rejected_left_for_preferences"], counts["written"]) == (3, 3)
    assert (counts["rows_train"], counts["rows_validation"]) == (2, 1)
    assert counts["tokens_train"] == 2 * counts["tokens_validation"] == counts["tokens"] * 2 // 3
    assert counts["tokens_trained_train"] == 2 * (len(ANSWER) + 1)
    assert len(list(records.read("data/audit/rendered.jsonl"))) == 2


def test_rows_are_compared_or_the_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (0, -1):
        with pytest.raises(SystemExit, match=rf"audit.compare_every is {wrong}: choose 1"):
            run(tmp_path, monkeypatch, [row("a")], compare_every=wrong)


def test_the_audit_prepares_rows_as_sft_does(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed([]))
    config = axolotl.render(params.load("sft", Sft, tmp_path / "params.yaml"), 1)
    assert config["chat_template"] == axolotl.TEMPLATE
    for part in [*config["datasets"], *config["test_datasets"]]:
        assert {key: part[key] for key in part if key not in ("path", "ds_type", "split")} == axolotl.CHATS
    assert not config.keys() & {"eot_tokens", "train_on_inputs", "tokens", "special_tokens", "chat_template_jinja"}


def test_a_model_that_ends_turns_in_its_own_way_names_the_token_to_training_and_audit(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed(["model=gemma3-12b"]))
    config = axolotl.render(params.load("sft", Sft, tmp_path / "params.yaml"), 1)
    assert (
        config["eot_tokens"]
        == ["<end_of_turn>"]
        == [params.load("audit", stage.Audit, tmp_path / "params.yaml").end_of_turn]
    )


# A model folder without weights: nothing here loads them.
MODEL = """
import sys
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast
vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
wrapped.chat_template = sys.argv[2]
wrapped.save_pretrained(sys.argv[1])
sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
config = LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=512, architectures=["LlamaForCausalLM"], **sizes)
config.save_pretrained(sys.argv[1])
"""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What Qwen3's template does: training shows an empty thought that no generation prompt has.
THINKING = TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
)


@pytest.mark.engine
@pytest.mark.parametrize(("template", "wrong"), [(TEMPLATE, None), (THINKING, "training shows '<think></think>")])
def test_axolotl_and_vllm_agree_on_a_sound_template_alone(tmp_path: Path, template: str, wrong: str | None) -> None:
    in_env = [sys.executable, "-m", "temper.envs", "run", "train"]
    model = tmp_path / "models/base"
    subprocess.run([*in_env, "-c", MODEL, str(model), template], check=True, capture_output=True)
    for name in ("temper", "scripts", "requirements"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    settings = "sequence_length: 256\n  end_of_turn: null\n  truncation: middle\n  truncate_answers: false\n  min_turn_tokens: 8"
    shown = "window_overlap: 0.25\n  compare_every: 1\n  shown: 2"
    runtime = (
        "hardware:\n  runtime: {processes: 1, nodes: 1, threads: 1, serve_memory_gb: 1, serve_eager: true, serve_port: null, "
        "min_memory_gb: 1, min_disk_gb: 1}\n"
    )
    (tmp_path / "params.yaml").write_text(f"{runtime}audit:\n  {settings}\n  {shown}\n")
    records.write(tmp_path / stage.INPUT / "train.jsonl", [row("1"), row("2", "é 👋 " * 90)])
    records.write(tmp_path / stage.INPUT / "validation.jsonl", [row("3")])

    done = subprocess.run([*in_env, "-m", "scripts.audit"], cwd=tmp_path, capture_output=True, text=True, check=False)

    if wrong:
        assert done.returncode == 1
        assert wrong in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = records.read(tmp_path / "data/audit/train.jsonl")
    assert first == row("1")
    assert "[…]" in second["messages"][1]["content"]
    counts = json.loads((tmp_path / "reports/audit.json").read_text())
    assert (counts["seen"], counts["kept"], counts["truncated"], counts["compared"]) == (3, 3, 1, 3)
    assert 240 < counts["tokens_max"] <= 256


@pytest.mark.engine
def test_a_model_that_vllm_refuses_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with rendering.Prompts(tmp_path / "base") as prompts, pytest.raises(SystemExit) as error:
        prompts.of([{"role": "user", "content": "q"}])
    assert re.search(r"temper\.rendering ended \(status 1\).*no model: run `make base`", str(error.value))
    assert "\n" not in str(error.value)
