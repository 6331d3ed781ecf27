"""Importance matrix: how much each input of a weight matrix carries, by which llama.cpp weighs its rounding errors.

An error in a weight costs in proportion to the square of what it is multiplied with, so the importance of an input is the mean of
its squares over all calibration tokens: `in_sum2 / counts` of llama.cpp's tools/imatrix (I. Kawrakow,
https://github.com/ggml-org/llama.cpp/pull/4861). No binding of llama.cpp carries that tool; transformers' hooks see the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def mean_squares(model: Any, rows: list[list[int]]) -> "dict[str, Tensor]":
    """(inputs,) float32 by the name of each linear module of `model`: the mean square of every input over all tokens of `rows`."""
    import torch

    with watched(model) as sums, torch.inference_mode():
        for ids in rows:
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    tokens = sum(map(len, rows))
    return {name: (total / tokens).float().cpu() for name, total in sums.items()}


@contextmanager
def watched(model: Any) -> "Iterator[dict[str, Tensor]]":
    """Sums of squares of what goes into each linear module, filled by the passes inside the block; the output layer is left out,
    as llama.cpp's tool leaves it."""
    import torch

    sums: dict[str, Tensor] = {}

    def add(name: str, inputs: "Tensor") -> None:
        squares = inputs.double().square().flatten(0, -2).sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    output = model.get_output_embeddings()
    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: add(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
