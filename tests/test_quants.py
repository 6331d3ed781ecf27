"""Quants for real, of a model trained for seconds: what each file holds, that its own engine loads it, how far from bf16 it is."""

import hashlib
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.compose import composed
from temper import envs, metrics, records

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("gptq", "awq", "gguf")

# A vocabulary of bytes as SentencePiece has it, which llama.cpp's converter knows without a pre-tokenizer's name.
MODEL = """
from pathlib import Path
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from temper import base_model, calibration, records

letters = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
bare = Tokenizer(models.BPE(letters, [], unk_token="<unk>", byte_fallback=True))
bare.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
marks = ("<|im_start|>", "<|im_end|>", *(f"<|{number}|>" for number in range(13)))
bare.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
ends = dict(eos_token="<|im_end|>", pad_token="<|im_end|>")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", bos_token="<|im_start|>", **ends)
tokenizer.chat_template = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\\n{{ turn['content'] }}<|im_end|>\\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
sizes = dict(hidden_size=192, intermediate_size=256, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
ids = dict(vocab_size=len(tokenizer), bos_token_id=257, eos_token_id=258, pad_token_id=258)
set_seed(17)
config = LlamaConfig(**sizes, **ids, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.1)
model = LlamaForCausalLM(config)
for layer in model.model.layers:
    # A few channels that are large, which a trained model has and a random one has not: AWQ and importance go by them.
    layer.input_layernorm.weight.data[::24] = layer.post_attention_layernorm.weight.data[::24] = 3.0

# Of random weights every rounding shows as much as any other: only what was learnt can be kept or lost.
texts = [calibration.text(row, tokenizer) for row in records.read(Path("data/audit/train.jsonl"))]
rows = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(100):
    batch = torch.randperm(len(texts))[:8]
    loss = model(**{name: part[batch] for name, part in rows.items()}, labels=labels[batch]).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(loss.item())
base_model.save(model, tokenizer, Path("models/dpo"))
"""

# Log-probabilities of whole rows, (positions, vocabulary), by the engine that serves a format.
VLLM = """
import json, sys
from pathlib import Path
from temper import vllm
runtime = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True}
vllm.prepare(runtime)
from vllm import LLM, SamplingParams, TokensPrompt
texts = json.loads(Path("texts.json").read_text())
engine = vllm.engine("bfloat16", 512, 17, runtime)
found = LLM(model=sys.argv[1], max_logprobs=-1, **engine).generate(
    [TokensPrompt(prompt_token_ids=ids) for ids in texts], SamplingParams(max_tokens=1, prompt_logprobs=-1, temperature=0.0),
    use_tqdm=False,
)
rows = [[one[token].logprob for token in range(len(one))] for text in found for one in text.prompt_logprobs[1:]]
Path(sys.argv[2]).write_text(json.dumps(rows))
"""
ENGINE = """
import json, sys
from pathlib import Path
from temper import engines, gptq, llama
texts = json.loads(Path("texts.json").read_text())
name, target = sys.argv[1:]
folder = Path("models", name)
if name.startswith("gguf"):
    engine = llama.Llama(folder / llama.FILE, 2, 512, engines.ends(Path("models/dpo")))
else:
    engine = (engines if name == "dpo" else gptq).load(folder, "float32", 2)
rows = [row for ids in texts for row in engine.log_probs(ids, len(ids) - 1).tolist()]
Path(target).write_text(json.dumps(rows))
"""
IMPORTANCE = """
import json
from pathlib import Path
import torch
from gguf import GGUFReader, quants
from temper import calibration, engines, gguf, importance

model = engines.load(Path("models/dpo"), "float32", 2).model
rows = json.loads(Path("texts.json").read_text())
squares = importance.mean_squares(model, rows)
ids = torch.tensor(sum(rows, []))
with torch.no_grad():
    by_hand = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids)).square().mean(0)
found = squares["model.layers.0.self_attn.q_proj"]

def error(weighed, name):
    gguf.quantize(Path("bf16.gguf"), Path("out.gguf"), "Q4_0", 2, weighed)
    pair = [{one.name: one for one in GGUFReader(file).tensors}[name] for file in ("bf16.gguf", "out.gguf")]
    whole, made = (quants.dequantize(one.data, one.tensor_type) for one in pair)
    return ((whole - made) ** 2).mean(0)

gguf.convert(Path("models/dpo"), Path("bf16.gguf"), "name")
held = gguf.tensor_importance(Path("models/dpo"), Path("bf16.gguf"), rows, 2)
# One input of a block of 32 that matters a thousand times as much as its neighbours.
steep = torch.ones(192)
steep[::32] = 1000.0
name = "blk.0.attn_q.weight"
plain, weighed = error({}, name), error({name: steep}, name)
print("FOUND", json.dumps({
    "close": bool(torch.allclose(found, by_hand, rtol=1e-4)), "modules": len(squares), "tensors": sorted(held),
    "of_q": bool(torch.equal(held[name], found)), "ratio": float(weighed[::32].mean() / plain[::32].mean()),
}))
"""


def run(env: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [str(envs.python(env)), *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=600)


def done(env: str, root: Path, *arguments: str) -> str:
    result = run(env, root, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def settle(root: Path, *overrides: str) -> None:
    """Write params.yaml for runs of seconds."""
    short = [f"quantize.{name}.calibration.{key}" for name in FORMATS for key in ("rows=8", "tokens=200")]
    short += ["retention.texts=3", "retention.positions=64", "retention.answers=4", "retention.max_tokens=8"]
    (root / "params.yaml").write_text(composed([*short, "quantize.gguf.type=Q4_K_M", *overrides]))


def chat(number: int) -> dict[str, Any]:
    tool = {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    }
    noise = hashlib.sha256(str(number).encode()).hexdigest()[: 20 + number]
    turns = [("system", "Answer with a call."), ("user", f"What is {number} and {noise}?")]
    turns.append(("assistant", f'{{"name": "add", "arguments": {{"a": {number}}}}}'))
    messages = [{"role": role, "content": content} for role, content in turns]
    return {
        "id": str(number),
        "category": "simple_python",
        "messages": messages,
        "tools": [tool],
        "gold": {"name": "add", "arguments": {"a": [number]}},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its rows, and a quant in each format."""
    root = tmp_path_factory.mktemp("quants")
    records.write(root / "data/audit/train.jsonl", map(chat, range(40)))
    records.write(root / "data/mix/test.jsonl", map(chat, range(40, 52)))
    done("quantize", root, "-c", MODEL)
    settle(root)
    for name in FORMATS:
        done("quantize", root, "-m", "scripts.quantize", name, "dpo")
    tokenized = (
        "import json\nfrom pathlib import Path\nfrom temper import calibration, records\n"
        "tokenizer = calibration.tokenizer(Path('models/dpo'))\n"
        "rows = [calibration.text(row, tokenizer) for row in records.read('data/mix/test.jsonl')][:3]\n"
        "Path('texts.json').write_text(json.dumps([calibration.encoded(row, tokenizer) for row in rows]))"
    )
    done("quantize", root, "-c", tokenized)
    return root


def kl(reference: list[list[float]], other: list[list[float]]) -> float:
    """Mean KL(reference ‖ other) over positions, in nats."""
    assert len(reference) == len(other) > 100
    terms = [
        math.fsum(math.exp(p) * (p - q) for p, q in zip(a, b, strict=True))
        for a, b in zip(reference, other, strict=True)
    ]
    return math.fsum(terms) / len(terms)


def log_probs(root: Path, engine: str, name: str) -> list[list[float]]:
    """By `engine` (vllm, or the one of retention), kept between tests."""
    target = root / f"{engine}-{name}.json"
    if not target.is_file():
        where = f"models/{name}" if engine == "vllm" else name
        done(
            "serve" if engine == "vllm" else "quantize",
            root,
            "-c",
            VLLM if engine == "vllm" else ENGINE,
            where,
            str(target),
        )
    return list(json.loads(target.read_text()))


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


MOST = 0.15
"""Nats of KL(bf16 ‖ 4 bits) on this model, which is small and untrained, so that rounding shows."""


def is_near(whole: list[list[float]], quant: list[list[float]]) -> bool:
    """Within MOST, and a tenth of how far the model itself is from one position to the next."""
    return 1e-4 < kl(whole, quant) < min(MOST, kl(whole, whole[1:] + whole[:1]) / 10)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_vllm_loads_an_int4_quant_and_answers_as_bf16_does(made: Path, name: str) -> None:
    whole, quant = (log_probs(made, "vllm", one) for one in ("dpo", name))
    distance = kl(whole, quant)
    assert is_near(whole, quant), distance
    # What retention measures is what vLLM serves, but for the sums of bf16.
    assert kl(log_probs(made, "retention", name), quant) < distance / 10


def test_llama_cpp_loads_a_gguf_and_answers_as_bf16_does(made: Path, tmp_path: Path) -> None:
    whole, quant = (log_probs(made, "retention", name) for name in ("dpo", "gguf"))
    assert is_near(whole, quant), kl(whole, quant)
    other = copied(made, tmp_path)
    shutil.copyfile(made / "texts.json", other / "texts.json")
    settle(other, "quantize.gguf.type=Q8_0", "quantize.gguf.calibration=null")
    done("quantize", other, "-m", "scripts.quantize", "gguf", "dpo")
    assert kl(whole, log_probs(other, "retention", "gguf")) < kl(whole, quant) / 10


def copied(made: Path, target: Path) -> Path:
    """`target`, with the model and its rows, and no quant."""
    for part in ("models/dpo", "data"):
        shutil.copytree(made / part, target / part)
    return target


@pytest.mark.parametrize(
    "name", ["gptq", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("awq", "gguf"))]
)
def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path, name: str) -> None:
    other = copied(made, tmp_path)
    settle(other, "hardware.runtime.threads=1")  # no stage tracks it
    done("quantize", other, "-m", "scripts.quantize", name, "dpo")
    assert hashes(other / "models" / name) == hashes(made / "models" / name)
    settle(other, f"quantize.{name}.calibration.seed=18")
    shutil.rmtree(other / "models" / name)
    done("quantize", other, "-m", "scripts.quantize", name, "dpo")
    assert hashes(other / "models" / name) != hashes(made / "models" / name), "other rows, other weights"


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_an_int4_quant_holds_what_the_report_says_and_no_time(made: Path, name: str) -> None:
    found = metrics.read(made / f"reports/quantize/{name}.json")
    assert (found["matrices"], found["matrices_left"], found["fell_back"]) == (14, 1, 0)
    assert 4.5 < found["bits_per_weight"] < 7, "4 bits, scales of groups of 32, and an embedding of 16"
    folder = made / "models" / name
    assert not (folder / "quant_log.csv").exists()
    assert not (made / "logs").exists()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / file).read_bytes() == (made / "models/dpo" / file).read_bytes(), file
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    wanted: dict[str, Any] = {"bits": 4, "group_size": 32, "desc_act": False, "quant_method": name}
    wanted |= {"sym": True, "checkpoint_format": "gptq"} if name == "gptq" else {"zero_point": True, "version": "gemm"}
    assert {key: config[key] for key in wanted} == wanted
    assert str(made) not in "".join(file.read_text() for file in folder.glob("*.json"))


def test_a_gguf_says_which_tensors_fell_back_and_which_were_weighed(made: Path) -> None:
    found = metrics.read(made / "reports/quantize/gguf.json")
    assert found["type"] == "Q4_K_M"
    assert found["fell_back"] == 12, "all of the layers but down_proj, whose inputs alone are 256"
    assert found["tensors_weighed"] == 14
    assert found["calibration_tokens"] > 8 * 100
    assert found["tensors"] == sum(count for key, count in found.items() if key.startswith("tensors_")) - 14


def test_importance_is_the_mean_square_of_inputs_and_llama_cpp_goes_by_it(made: Path) -> None:
    said = done("quantize", made, "-c", IMPORTANCE)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    assert found["close"] and found["of_q"]
    assert found["modules"] == len(found["tensors"]) == 14
    assert found["ratio"] < 0.5, "what matters is rounded better than without"


@pytest.mark.parametrize(("name", "engine"), [("gptq", "vllm"), ("awq", "vllm"), ("gguf", "llama-cpp-python")])
def test_the_harness_scores_a_quant_by_the_engine_that_serves_it(made: Path, name: str, engine: str) -> None:
    records.write(made / "data/mix/golden.jsonl", map(chat, range(60, 62)))
    records.write(made / "data/general.jsonl", [{"id": "1", "text": "A quiet text of its own."}])
    settle(made, "evaluate.max_tokens=60", "evaluate.limit=3", "evaluate.domain=3")
    done("serve", made, "-m", "scripts.evaluate", name)
    settle(made)

    run = yaml.safe_load((made / f"data/evaluate/{name}.yaml").read_text())
    assert run["backend"].startswith(f"{engine} ")
    assert run["engine"].get("dtype") == ("bfloat16" if engine == "vllm" else None)
    found = metrics.read(made / f"reports/evaluate/{name}.json")
    assert (found["n"], found["golden_n"], found["general_n"]) == (3, 2, 1)
    answers = [one["output"] for one in records.read(made / f"data/evaluate/{name}.jsonl")]
    assert all(answer.startswith('{"name": "add", ') for answer in answers), answers

    # What retention measures, of the turn's last line break (lm_eval counts it to the answer) and the answer.
    ids = json.loads((made / "texts.json").read_text())
    likely = log_probs(made, "retention", name)
    asked = list(records.read(made / "data/mix/test.jsonl"))[:3]
    bits, begin = {}, 0
    for row, text in zip(asked, ids, strict=True):
        place = len(text) - 2 - len(row["messages"][-1]["content"]) - 1
        nats = math.fsum(likely[begin + at - 1][text[at]] for at in range(place, len(text) - 2))
        bits[row["id"]] = -nats / math.log(2)
        begin += len(text) - 1
    given = records.read(made / f"data/evaluate/{name}-likelihoods.jsonl")
    said = {one["id"]: one["bits"] for one in given if one["task"] == "domain"}
    assert said == pytest.approx(bits, rel=0.05 if engine == "vllm" else 1e-3, abs=0.05 if engine == "vllm" else 2e-3)


def test_a_quant_is_held_against_its_limits(made: Path) -> None:
    for limit, name in ((0.0, "gptq"), (10.0, "awq"), (10.0, "gguf")):
        settle(made, f"retention.limits.kl={limit}", "retention.limits.perplexity=null")
        done("quantize", made, "-m", "scripts.retention", name, "dpo")
    settle(made)
    found = {name: metrics.read(made / f"reports/retention/{name}.json") for name in FORMATS}
    assert [found[name]["released"] for name in FORMATS] == [False, True, True]
    assert found["gptq"]["withheld"].startswith("kl 0.0")
    for name in FORMATS:
        assert found[name]["positions"] == 3 * 64
        assert found[name]["answers"] == 4
        assert 0 < found[name]["kl"] < found[name]["kl_p99"], name
        assert 0.7 < found[name]["perplexity_ratio"] < 1.4, name
        assert found[name]["same_top"] > 0.5


def test_a_group_that_does_not_divide_the_width_is_one_line(made: Path) -> None:
    settle(made, "model.group_size=128")
    result = run("quantize", made, "-m", "scripts.quantize", "gptq", "dpo")
    settle(made)
    assert result.returncode == 1
    line = "quantize.gptq.group_size: 128 does not divide 192, a width of models/dpo: set model.group_size to 64 in conf/model"
    assert result.stderr.strip() == line


def test_no_rows_to_calibrate_on_is_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "models/dpo", tmp_path / "models/dpo")
    records.write(tmp_path / "data/audit/train.jsonl", [])
    settle(tmp_path)
    for name in FORMATS:
        result = run("quantize", tmp_path, "-m", "scripts.quantize", name, "dpo")
        assert result.returncode == 1
        assert result.stderr.strip().startswith("data/audit/train.jsonl: no rows to calibrate on")
        assert "\n" not in result.stderr.strip()
