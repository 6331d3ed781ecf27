"""Merged against unmerged: whether summing an adapter into its base left the model that was trained, on rows of training.

Two things can go wrong: the algebra (a scale, a layer left out), which shows in float32, and what rounding to bf16 costs. An
adapter that was trained beside a 4-bit base (QLoRA) also made up for that base's errors, which the 16-bit base has not.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper import records
from temper.records import Row

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8
TOKENS = 256  # of a row, its last ones
POSITIONS = 64  # at a row's end, where distributions are compared: 8 × 64 over 49k tokens take 100 MB
# Float32 sums in another order, in nats: a share of what the adapter changes, of which a scale wrong by 1% makes ten times as
# much, and what 30 layers have as noise (9e-5 on SmolLM2-135M), six times over.
SUM_SHARE, SUM_NOISE = 1e-3, 5e-4
# bf16 has 8 significant bits: a weight moves by up to 1 part in 512. In nats a token; SmolLM2-135M: 7e-5 after SFT, 3e-3 after DPO.
ROUNDING = 2e-2


def prompts(rows: Path, tokenizer: Any) -> list[list[int]]:
    """Token ids of the first ROWS rows, answers included, as training renders them."""
    texts = [_text(row, tokenizer) for row in islice(records.read(rows), ROWS)]
    if not texts:
        raise SystemExit(f"{rows}: no rows to compare the merged model with the trained one on: see data/rejected/")
    return [tokenizer(text, add_special_tokens=False)["input_ids"][-TOKENS:] for text in texts]


class Check:
    """The next-token distributions of an adapter beside its base, and how far others are from them."""

    def __init__(self, adapted: Any, prompts: list[list[int]]) -> None:
        self.prompts = prompts
        self.trained = log_probs(adapted, prompts)
        self.figures: dict[str, float] = {"merge_positions": len(self.trained)}
        with adapted.disable_adapter():
            self.compare("adapter", adapted)

    def compare(self, name: str, model: Any, trained: Any = None) -> None:
        """Add merge_<name>_{max,kl,greedy} of `model`, against `trained` if that is another than the first: see `distance`."""
        reference = self.trained if trained is None else log_probs(trained, self.prompts)
        found = distance(reference, log_probs(model, self.prompts))
        self.figures |= {f"merge_{name}_{key}": value for key, value in found.items()}

    def passed(self, target: Path) -> dict[str, float]:
        """The figures; exits where the float32 `sum`, or the `bf16` weights in `target`, are not what was trained."""
        require(self.figures, target)
        return self.figures


def log_probs(model: Any, prompts: list[list[int]]) -> "Tensor":
    """(positions, vocabulary): float32 log-probabilities of what follows each of the last POSITIONS places of each prompt."""
    import torch

    def one(ids: list[int]) -> "Tensor":
        inputs = torch.tensor([ids], device=model.device)  # a 4-bit model is on the GPU where there is one
        logits = model(input_ids=inputs, logits_to_keep=POSITIONS, use_cache=False).logits
        return logits[0].float().log_softmax(-1).cpu()

    with torch.inference_mode():
        return torch.cat([one(ids) for ids in prompts])


def distance(reference: "Tensor", other: "Tensor") -> dict[str, float]:
    """Between log-probabilities: `max`, the largest difference, and `kl`, the mean of KL(reference ‖ other), in nats;
    `greedy`, the share of positions with the same likeliest token."""
    kl = (reference.exp() * (reference - other)).sum(-1).mean()
    same = reference.argmax(-1) == other.argmax(-1)
    values = {"max": (reference - other).abs().max(), "kl": kl.clamp(min=0), "greedy": same.float().mean()}
    return {key: float(value) for key, value in values.items()}


def require(found: dict[str, float], target: Path) -> None:
    """Exit where figures of a Check are beyond what float32 and bf16 explain."""
    allowed = SUM_NOISE + SUM_SHARE * found["merge_adapter_max"]
    if not found["merge_sum_max"] <= allowed:
        raise SystemExit(
            f"{target}: summed in float32, its log-probabilities differ from base + adapter by up to "
            f"{found['merge_sum_max']:.2g} nats, expected at most {allowed:.2g}: PEFT merges a layer otherwise than it runs "
            "it: leave the option of `lora` out that does so"
        )
    if not found["merge_bf16_kl"] <= ROUNDING:
        raise SystemExit(
            f"{target}: as written in bf16 it is {found['merge_bf16_kl']:.2g} nats a token from base + adapter (KL), expected "
            f"at most {ROUNDING}: the weights do not bear rounding to bf16: lower the learning rate"
        )


def _text(row: Row, tokenizer: Any) -> str:
    return row["text"] if "text" in row else tokenizer.apply_chat_template(list(_turns(row)), tokenize=False)


def _turns(row: Row) -> Iterator[dict[str, str]]:
    """The turns of a chat, or of a prompt and the answer to learn, if it has one."""
    for key in ("messages", "prompt", "chosen", "completion"):
        yield from row.get(key, ())
