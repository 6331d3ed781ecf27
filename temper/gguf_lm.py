"""A GGUF as a model of lm-evaluation-harness, whose own asks a server for a prompt's likelihoods. Else it does as vLLM's."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from temper import progress
from temper.gguf_scores import GgufScores

DEFAULT_TOKENS = 256  # of an answer, where a task does not say: as of lm_eval's other models


class GgufLM(TemplateLM):
    """`tokenizer` is that of the model which the file was made of: the ids are the same, and so is the template."""

    def __init__(self, scores: GgufScores, tokenizer: Any, length: int) -> None:
        super().__init__()
        self._scores, self.tokenizer, self._length = scores, tokenizer, length

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turn = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        options = {"tokenize": False, "enable_thinking": None} | turn
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except TemplateError:  # of a template without a system turn
            rest = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, **options))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any) -> list[Any]:
        return list(paced("likelihoods", requests, self._likelihood))

    def _likelihood(self, request: tuple[Any, list[int], list[int]]) -> tuple[float, bool]:
        """Of what does not fit, the beginning of the context is left out."""
        _, context, continuation = request
        room = self._length - 1 - len(continuation)
        if room < 1:
            raise SystemExit(
                f"{len(continuation)} tokens of one answer in a context of {self._length}: raise evaluate.length"
            )
        return self._scores.likelihood((context or [self.prefix_token_id])[-room:], continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [list(self._windows(request.args[0])) for request in requests]
        found = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(found)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> Iterator[tuple[None, list[int], list[int]]]:
        tokens, most = self.tok_encode(text), self._length - 2
        for pair in get_rolling_token_windows(tokens, self.prefix_token_id, most, context_len=1):
            yield None, *make_disjoint_window(pair)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return list(paced("answers", [request.args for request in requests], self._answer))

    def _answer(self, asked: tuple[str, dict[str, Any]]) -> str:
        prompt, given = asked
        options = normalize_gen_kwargs(given, default_max_gen_toks=DEFAULT_TOKENS)
        if options.get("temperature"):
            raise SystemExit(
                f"temperature {options['temperature']}: a GGUF gives its likeliest answer: name no such task in evaluate.benchmarks"
            )
        most = min(int(options["max_gen_toks"]), self._length - 1)
        ids = self._scores.answer(self.tok_encode(prompt)[most - self._length :], most, options["until"])
        text = self.tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
        return str(postprocess_generated_text(text, options["until"], None))


def paced(what: str, asked: Sequence[Any], answer: Callable[[Any], Any]) -> Iterator[Any]:
    """An answer to each, and a line a minute on how far it is: one after the other on a CPU, they may take an hour."""
    clock = progress.Clock()
    for number, one in enumerate(asked, 1):
        yield answer(one)
        if line := clock.line(number, len(asked)):
            print(f"{what}: {line}", flush=True)
