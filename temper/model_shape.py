"""The shape of a decoder-only transformer, from a Hugging Face config: what its parameters, adapters and KV cache amount to."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# RMSNorms over the hidden state in a layer; what transformers builds for each model_type.
NORMS = {"llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 2, "gemma3_text": 4}
NORMED_HEADS = ("qwen3", "gemma3_text")  # a norm each over the heads of queries and of keys
BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Shape:
    """Widths and counts; a width is a number of channels."""

    family: str
    """transformers' model_type."""
    vocabulary: int
    hidden: int
    intermediate: int
    """Of the gated MLP."""
    layers: int
    heads: int
    kv_heads: int
    head: int
    tied: bool
    """Whether the output head is the embedding."""

    @property
    def norms(self) -> int:
        """Of a layer's hidden state."""
        return NORMS[self.family]

    @property
    def normed_heads(self) -> bool:
        """Whether queries and keys have a norm each."""
        return self.family in NORMED_HEADS

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head

    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear map of a layer, by the name that LoRA targets it by."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def linear(self) -> int:
        """Weights of all linear maps of all layers: what QLoRA quantizes, and what a token is multiplied with."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    def rest(self) -> int:
        """Parameters beside them: embedding, head, norms, biases."""
        return self.parameters() - self.linear()

    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    def parameters(self) -> int:
        """All of them, as the checkpoint on the Hub counts."""
        biases = sum(self.linears()[name][1] for name in BIASED.get(self.family, ()))
        norms = self.norms * self.hidden + 2 * self.head * self.normed_heads
        embeddings = self.embedding() * (1 if self.tied else 2)
        return embeddings + self.linear() + self.layers * (biases + norms) + self.hidden

    def lora(self, rank: int, targets: Collection[str]) -> int:
        """r·(inputs + outputs) a target: Hu et al. 2021, arXiv:2106.09685, section 4.1."""
        linears = self.linears()
        if unknown := sorted(set(targets) - linears.keys()):
            raise SystemExit(f"lora.targets: no linear map '{unknown[0]}', expected of {', '.join(linears)}")
        return self.layers * sum(rank * sum(linears[name]) for name in targets)

    def kv_bytes(self, width: int) -> int:
        """Of one token's keys and values in all layers, `width` bytes an element."""
        return 2 * self.layers * self.keys * width


def of(config: dict[str, Any], place: str) -> Shape:
    """The shape that a Hugging Face config (a config.json, or `shape` of conf/model) describes; `place` names it in errors."""
    text = config.get("text_config", config)
    family = text.get("model_type")
    if family not in NORMS:
        raise SystemExit(f"{place}: model_type is '{family}': plan knows dense models of {', '.join(NORMS)}")
    try:
        return Shape(
            family=family,
            vocabulary=text["vocab_size"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head=text["head_dim"],
            tied=text["tie_word_embeddings"],
        )
    except KeyError as error:
        raise SystemExit(f"{place}: no {error}: run `make base`, whose config.json has it, or add it") from None
