"""How likely a GGUF finds tokens, and how it goes on after them: llama.cpp's own sums, from the environment that has it.

python -m temper.gguf_scores FILE THREADS CONTEXT ENDS     inside `quantize`; ENDS are token ids with commas between them
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from temper import llama, piped
from temper.piped import Piped
from temper.records import Row

Tokens = list[int]
BYTES = 4  # of a letter at most


class GgufScores(Piped):
    """For sequences of at most `length` tokens, the prompt's and the answer's together; one of `ends` ends an answer."""

    def __init__(self, file: Path, threads: int, length: int, ends: Iterable[int]) -> None:
        of = ",".join(map(str, sorted(ends)))
        super().__init__("quantize", "temper.gguf_scores", str(file), str(threads), str(length), of)

    def likelihood(self, context: Tokens, continuation: Tokens) -> tuple[float, bool]:
        """Nats of the continuation after a context of one token or more, and whether each of its tokens is the likeliest."""
        if not continuation:
            return 0.0, True
        found = self.ask({"ids": context + continuation, "count": len(continuation)})
        return found["nats"], found["is_greedy"]

    def answer(self, prompt: Tokens, most: int, until: Sequence[str]) -> Tokens:
        """The likeliest next token again and again, up to `most`, without the one that ends it; where one of the texts `until`
        comes, to its end."""
        answer: Tokens = self.ask({"prompt": prompt, "most": most, "until": list(until)})["ids"]
        return answer


def _begin() -> tuple[Row, Callable[[Row], Row]]:
    import torch

    file, threads, length, ends = sys.argv[1:]
    torch.set_num_threads(int(threads))
    engine = llama.Llama(Path(file), int(threads), int(length), {int(end) for end in ends.split(",")})

    def answer(asked: Row) -> Row:
        if "prompt" in asked:
            return {"ids": _answer(engine, asked["prompt"], asked["most"], [one for one in asked["until"] if one])}
        found = engine.log_probs(asked["ids"], asked["count"])
        wanted = torch.tensor(asked["ids"][-asked["count"] :])
        nats = found.gather(1, wanted.unsqueeze(1)).double().sum()
        return {"nats": float(nats), "is_greedy": bool((found.argmax(-1) == wanted).all())}

    return {"version": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"}, answer


def _answer(engine: llama.Llama, prompt: Tokens, most: int, until: Sequence[str]) -> Tokens:
    made: Tokens = []
    engine.model.reset()
    # Temperature 0 is llama.cpp's greedy sampler.
    for token in islice(engine.model.generate(prompt, temp=0.0, repeat_penalty=1.0), most):
        if token in engine.ends:
            break
        made.append(token)
        # No token is shorter than a byte, but for special ones, which nothing is to end at.
        tail = engine.model.detokenize(made[-max(map(len, until)) * BYTES :]).decode(errors="ignore") if until else ""
        if any(text in tail for text in until):
            break
    return made


if __name__ == "__main__":
    piped.serve(_begin)
