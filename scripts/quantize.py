"""Quantize the release.

Reads   models/<release>
Writes  models/<format>/model.gguf, reports/quantize/<format>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import calls, gguf, metrics, params, stage

TOOL = {"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]}}
# A question of the task: a model tuned for calls may well answer nothing to any other.
QUESTION = [
    {"role": "system", "content": calls.system_prompt([TOOL])},
    {"role": "user", "content": "What is the weather in Paris?"},
]


@dataclass
class Quantize:
    type: str
    name: str


def main() -> None:
    cfg = params.load("quantize.gguf", Quantize)
    gguf.check_type(cfg.type)
    model = Path("models", sys.argv[2])
    if not (model / "config.json").is_file():
        raise SystemExit(f"{model}: no model: run `make {model.name}`, which writes it")
    threads = int(params.runtime()["threads"])
    target = Path("models/gguf/model.gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Inside the out, so that DVC removes it with the rest when a run was cut short.
    whole = target.with_name("bf16.gguf")
    try:
        gguf.convert(model, whole, cfg.name)
        fell_back = gguf.quantize(whole, target, cfg.type, threads)
        whole_bytes = whole.stat().st_size
    finally:
        whole.unlink(missing_ok=True)
    check(target, model, threads)
    found = gguf.contents(target) | {"type": cfg.type, "fell_back": fell_back, "bf16_bytes": whole_bytes}
    metrics.write("reports/quantize/gguf.json", found | {"ratio": found["bytes"] / whole_bytes})


def check(path: Path, model: Path, threads: int) -> None:
    """Exit unless the file carries the model's own chat template, loads, and answers."""
    if gguf.template(path).strip() != (model / "chat_template.jinja").read_text().strip():
        raise SystemExit(
            f"{path}: its chat template is not {model}/chat_template.jinja: write both again with `make {model.name} quantize`"
        )
    if not "".join(gguf.reply(gguf.load(path, threads, context=256), QUESTION, max_tokens=16)).strip():
        raise SystemExit(f"{path}: loads, but answers nothing: choose a wider quantize.gguf.type")


if __name__ == "__main__":
    stage.run(main, f"quantize/{sys.argv[1]}")
