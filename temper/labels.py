"""Which tokens are trained on: text, ids and labels as the trainer makes them (Axolotl's strategies for chats and for raw text)."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from temper import axolotl, base_model
from temper.rendering import Messages, Prompt

IGNORED = -100  # the label that the loss leaves out


@dataclass(frozen=True)
class Labelled:
    """A chat or text as it is trained on: n tokens."""

    text: str
    ids: list[int]
    labels: list[int]
    """An id where the token is trained on, -100 elsewhere."""
    text_ids: list[int]
    """Of `text`, tokenized: equal to `ids`, or the spans mean nothing."""
    spans: list[tuple[int, int]]
    """Where each token of `text_ids` begins and ends in `text`."""


class Labeller:
    """The tokenizer, template and strategy with which Axolotl prepares chats for the model in a folder."""

    def __init__(self, model: Path, sequence_length: int, end_of_turn: str | None = None) -> None:
        from axolotl.loaders.tokenizer import load_tokenizer
        from axolotl.prompt_strategies import completion
        from axolotl.prompt_strategies.chat_template import load
        from axolotl.utils.dict import DictDefault

        names = dict.fromkeys(("base_model", "base_model_config", "tokenizer_config"), str(model))
        config = DictDefault(
            names
            | {"chat_template": axolotl.TEMPLATE, "sequence_len": sequence_length, "datasets": []}
            | axolotl.end_of_turn(end_of_turn)
        )
        self._tokenizer: Any = load_tokenizer(config)
        base_model.require_chat_template(self._tokenizer, str(model))
        self._strategy: Any = load(self._tokenizer, config, axolotl.CHATS)
        self._texts: Any = completion.load(self._tokenizer, config, axolotl.TEXTS)
        self.stops = self._stops(model)
        self.begin: int | None = self._tokenizer.bos_token_id
        self.specials = frozenset(
            token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special
        )

    def labelled(self, messages: Messages) -> Labelled:
        """The chat as it is trained on, whole: nothing is cut here."""
        made = self._strategy.tokenize_prompt({"messages": messages})
        text = str(self._render(messages, generate=False))
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Labelled(text, made["input_ids"], made["labels"], encoded["input_ids"], encoded["offset_mapping"])

    def text(self, text: str) -> Labelled:
        """Raw text as it is trained on, its stretches one after the other; Axolotl leaves out what is beyond 64 of them."""
        made = self._texts.tokenize_prompt({"text": [text]})
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if ids[-1] != self._tokenizer.eos_token_id:
            ids, spans = [*ids, self._tokenizer.eos_token_id], [*spans, (len(text), len(text))]
        read, labels = (list(chain.from_iterable(made[key])) for key in ("input_ids", "labels"))
        return Labelled(text, read, labels, ids, spans)

    def prompt(self, messages: Messages) -> Prompt:
        """What the model reads before its answer to `messages`, by the tokenizer that training uses."""
        text = str(self._render(messages, generate=True))
        return Prompt(text, self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, messages: Messages) -> int:
        return len(self._tokenizer(str(self._render(messages, generate=False)), add_special_tokens=False)["input_ids"])

    def spans(self, text: str) -> list[tuple[int, int]]:
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [(start, end) for start, end in found]

    def _render(self, messages: Messages, *, generate: bool) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    def _stops(self, model: Path) -> frozenset[int]:
        """The tokens on which evaluation and serving end an answer: the tokenizer's and those of generation_config.json."""
        file = model / "generation_config.json"
        listed = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ends = listed if isinstance(listed, list) else [listed]
        return frozenset(end for end in [*ends, self._tokenizer.eos_token_id] if end is not None)
