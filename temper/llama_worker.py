"""llama.cpp behind a pipe, in the environment that has it: a request a line on stdin, pieces of answers a line on stdout.

python -m temper.llama_worker MODEL.gguf THREADS CONTEXT

One answer at a time. `{"cancel": n}` ends the answer n, under way or waiting.
"""

import functools
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper import llama, stage

Request = dict[str, Any]
OPTIONS = ("temperature", "top_p", "seed", "stop", "max_tokens", "presence_penalty", "frequency_penalty")


def main(model: str, threads: str, context: str) -> None:
    stage.bind_to_parent()
    # llama.cpp prints to stdout what it has to say: the answers go elsewhere.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = llama.load(Path(model), int(threads), int(context))
    cancelled: set[int] = set()
    count, waiting = Counted(engine, cancelled), queue.Queue[Request | None]()
    threading.Thread(target=_read, args=(waiting, cancelled), daemon=True).start()
    print(json.dumps({"ready": True, "context": engine.n_ctx()}), file=out)
    while request := waiting.get():
        for piece in answered(engine, count, request):
            print(json.dumps({"id": request["id"]} | piece), file=out)
        cancelled.discard(request["id"])


def _read(waiting: queue.Queue[Request | None], cancelled: set[int]) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "cancel" in request:
            cancelled.add(request["cancel"])
        else:
            waiting.put(request)
    waiting.put(None)


class Ended(Exception):
    """The answer has as many tokens as were asked for, or nobody waits for it; the reason of its end."""


class Counted:
    """Counts what an engine samples, and ends it: llama.cpp's streamed answers say nothing about their tokens, and say nothing at
    all before the end of a letter, which need not come."""

    def __init__(self, engine: Any, cancelled: set[int]) -> None:
        self.prompt = self.tokens = 0
        self._request: Request = {}
        self._cancelled = cancelled
        self._sample = engine.sample
        engine.sample = self

    def begin(self, request: Request) -> None:
        self._request = request
        self._check()

    def __call__(self, *given: Any, **named: Any) -> int:
        self._check()
        if self.tokens >= (self._request.get("max_tokens") or math.inf):
            raise Ended("length")
        if self.tokens == 0:
            self.prompt = named["idx"] + 1
        self.tokens += 1
        return int(self._sample(*given, **named))

    def _check(self) -> None:
        if self._request["id"] in self._cancelled:
            raise Ended("cancelled")

    def usage(self) -> dict[str, int]:
        total = self.prompt + self.tokens
        found = {"prompt_tokens": self.prompt, "completion_tokens": self.tokens, "total_tokens": total}
        self.prompt = self.tokens = 0
        return found


def answered(engine: Any, count: Counted, request: Request) -> Iterator[dict[str, Any]]:
    """`begun`, `text` by and by, then `end` with the reason and the tokens of prompt and answer, or an `error` that is the
    request's."""
    reason = "stop"
    # llama.cpp's grammars of JSON leave room for a blank after its end, which would be the last of the answer.
    is_json, blank = form_of(request.get("response_format")) is not None, ""
    yield {"begun": True}
    try:
        count.begin(request)
        for chunk in _chunks(engine, request):
            choice = chunk["choices"][0]
            if text := (choice["delta"].get("content") if "delta" in choice else choice["text"]):
                said = text.rstrip() if is_json else text
                if said and blank:
                    yield {"text": blank}
                if said:
                    yield {"text": said}
                blank = ("" if said else blank) + text[len(said) :]
            reason = choice["finish_reason"] or reason
    except Ended as ended:
        reason = str(ended)
    except (ValueError, TypeError) as error:
        # What does not fit the context, or is no value of an option.
        count.usage()
        yield {"error": str(error), "status": 400}
        return
    except RuntimeError as error:
        count.usage()
        yield {"error": f"llama.cpp failed: {error}", "status": 500}
        return
    yield {"end": reason, "usage": count.usage()}


def _chunks(engine: Any, request: Request) -> Iterator[dict[str, Any]]:
    options = {key: request[key] for key in OPTIONS if request.get(key) is not None}
    if request.get("ignore_eos"):
        options["logit_bias"] = dict.fromkeys(_ends(engine), -math.inf)
    if "prompt" in request:
        found: Iterator[dict[str, Any]] = engine.create_completion(request["prompt"], stream=True, **options)
        return found
    if form := form_of(request.get("response_format")):
        options |= {"grammar": grammar(engine, form["schema"])} if "schema" in form else {"response_format": form}
    return engine.create_chat_completion(request["messages"], stream=True, **options)


@functools.cache
def _ends(engine: Any) -> list[int]:
    """Tokens that end an answer."""
    import llama_cpp

    vocabulary = engine._model.vocab
    return [token for token in range(engine.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]


def grammar(engine: Any, schema: Any) -> Any:
    """llama.cpp's grammar of a JSON schema; ValueError where it makes none.

    The package would take any JSON in its place, and llama.cpp would end at one that it cannot read.
    """
    import llama_cpp

    try:
        made = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"response_format: llama.cpp makes no grammar of its schema ({error})") from None
    sampler = llama_cpp.llama_sampler_init_grammar(engine._model.vocab, made._grammar.encode(), made._root.encode())
    if not sampler:
        raise ValueError("response_format: llama.cpp makes no grammar of its schema")
    llama_cpp.llama_sampler_free(sampler)
    return made


def form_of(wanted: Any) -> dict[str, Any] | None:
    """OpenAI's response_format as llama.cpp's, which takes a schema with `json_object`."""
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    schema = (wanted.get("json_schema") or {}).get("schema") or wanted.get("schema")
    return {"type": "json_object"} | ({"schema": schema} if schema else {})


if __name__ == "__main__":
    main(*sys.argv[1:])
