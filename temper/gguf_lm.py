"""A GGUF as a model of lm-evaluation-harness, which has one for servers that return a prompt's likelihoods alone."""

from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

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
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **turn))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **_: Any) -> list[Any]:
        found = []
        for _texts, context, continuation in tqdm(requests, desc="likelihoods", disable=disable_tqdm):
            # As lm_eval has it for other models: what does not fit is cut at its beginning.
            room = max(1, self._length - len(continuation))
            found.append(self._scores.likelihood(context[-room:], continuation))
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows = []
        for request in requests:
            text = self.tok_encode(request.args[0])
            if len(text) >= self._length:
                raise ValueError(f"a text of {len(text)} tokens in a context of {self._length}")
            windows.append((request.args, [self.prefix_token_id], text))
        return [nats for nats, _ in self._loglikelihood_tokens(windows, disable_tqdm)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in tqdm(requests, desc="answers", disable=disable_tqdm):
            prompt, given = request.args
            options = normalize_gen_kwargs(given, default_max_gen_toks=DEFAULT_TOKENS)
            if options["temperature"]:
                raise ValueError(f"temperature {options['temperature']}: a GGUF is asked for its likeliest answer")
            most = min(int(options["max_gen_toks"]), self._length - 1)
            ids = self._scores.answer(self.tok_encode(prompt)[most - self._length :], most)
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            answers.append(postprocess_generated_text(text, options["until"], None))
        return answers
