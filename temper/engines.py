"""What a model says and how likely it finds text, by whichever engine runs it: transformers here, llama.cpp in temper/llama.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32  # prompts that are answered together


class Engine(Protocol):
    def log_probs(self, ids: list[int], count: int) -> "Tensor":
        """(count, vocabulary): float32 log-probabilities of each of the last `count` of `ids`, given those before it."""

    def answers(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """The greedy answer to each prompt, without its end of turn."""


class Transformers:
    """A model of transformers."""

    def __init__(self, model: Any, ends: set[int]) -> None:
        self.model, self.ends = model.eval(), ends

    def log_probs(self, ids: list[int], count: int) -> "Tensor":
        import torch

        with torch.inference_mode():
            inputs = torch.tensor([ids], device=self.model.device)
            logits = self.model(input_ids=inputs, logits_to_keep=count + 1, use_cache=False).logits
            return logits[0, :-1].float().log_softmax(-1).cpu()

    def answers(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            found |= zip(places, self._batch([prompts[place] for place in places], max_tokens), strict=True)
        return [found[place] for place in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        import torch

        width, padding = max(map(len, prompts)), min(self.ends)
        ids = torch.tensor([[padding] * (width - len(one)) + one for one in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=self.model.device)
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=None,
            eos_token_id=sorted(self.ends),
            pad_token_id=padding,
        )
        return [until(answer.tolist(), self.ends) for answer in made[:, width:]]


def load(folder: Path, dtype: str, threads: int) -> Transformers:
    """The model in `folder` as trained."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return Transformers(model.to(device()), ends(folder))


def ends(folder: Path) -> set[int]:
    """Token ids that end an answer of the model in `folder`."""
    from transformers import AutoConfig, GenerationConfig

    has_own = (folder / "generation_config.json").is_file()
    found = (GenerationConfig if has_own else AutoConfig).from_pretrained(folder).eos_token_id
    return set(found) if isinstance(found, list) else {found}


def until(ids: list[int], ends: set[int]) -> list[int]:
    """`ids` before the first of `ends`."""
    return ids[: next((place for place, one in enumerate(ids) if one in ends), len(ids))]


def device() -> str:
    """Where models run: the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
