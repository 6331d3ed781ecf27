"""How likely a GGUF finds tokens, and how it goes on after them: llama.cpp's own sums, from the environment that has it.

python -m temper.gguf_scores FILE THREADS CONTEXT ENDS     inside `quantize`; ENDS are token ids with commas between them
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from temper import gguf, piped
from temper.piped import Piped
from temper.records import Row

Tokens = list[int]


class GgufScores(Piped):
    """For sequences of at most `length` tokens, the prompt's and the answer's together; one of `ends` ends an answer."""

    def __init__(self, file: Path, threads: int, length: int, ends: Iterable[int]) -> None:
        of = ",".join(map(str, sorted(ends)))
        super().__init__("quantize", "temper.gguf_scores", str(file), str(threads), str(length), of)

    def likelihood(self, context: Tokens, continuation: Tokens) -> tuple[float, bool]:
        """Nats of the continuation, and whether each of its tokens is the likeliest."""
        found = self.ask({"ids": context + continuation, "count": len(continuation)})
        return found["nats"], found["is_greedy"]

    def answer(self, prompt: Tokens, most: int) -> Tokens:
        """The likeliest next token again and again, up to `most`, without what ends it."""
        answer: Tokens = self.ask({"prompt": prompt, "most": most})["ids"]
        return answer


def _begin() -> tuple[Row, Callable[[Row], Row]]:
    import torch

    file, threads, length, ends = sys.argv[1:]
    torch.set_num_threads(int(threads))
    engine = gguf.Llama(Path(file), int(threads), int(length), {int(end) for end in ends.split(",")})

    def answer(asked: Row) -> Row:
        if "prompt" in asked:
            return {"ids": engine.answers([asked["prompt"]], asked["most"])[0]}
        found = engine.log_probs(asked["ids"], asked["count"])
        wanted = torch.tensor(asked["ids"][-asked["count"] :])
        nats = found.gather(1, wanted.unsqueeze(1)).double().sum()
        return {"nats": float(nats), "is_greedy": bool((found.argmax(-1) == wanted).all())}

    return {"version": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"}, answer


if __name__ == "__main__":
    piped.serve(_begin)
