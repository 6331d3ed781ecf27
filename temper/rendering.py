"""What evaluation and the server show the model for a chat: vLLM's own answer, from the environment that it lives in.

python -m temper.rendering MODEL     inside `serve`: a chat a line in, both prompts as JSON a line out
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from temper import envs, params, server, stage, vllm
from temper.records import Row

Messages = list[dict[str, str]]
LAST_LINES = 5


@dataclass(frozen=True)
class Prompt:
    """What a model reads before its answer."""

    text: str
    ids: list[int]


class Prompts:
    """The prompts of evaluation and of serving for the model in a folder, for the time of a block."""

    def __init__(self, model: Path) -> None:
        self._command = [str(envs.python("serve")), "-m", "temper.rendering", str(model)]

    def __enter__(self) -> "Prompts":
        self._said = tempfile.TemporaryFile("w+")
        # Nothing has been imported yet that starts threads, so a function between fork and exec is safe.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            preexec_fn=stage.die_with_parent,  # noqa: PLW1509
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def of(self, chat: Messages) -> dict[str, Prompt]:
        """By `evaluation` and `serving`, for a chat that ends with a request; exits when vLLM refuses the model."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(chat) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        line = self._process.stdout.readline() or self._fail()
        return {name: Prompt(**prompt) for name, prompt in json.loads(line).items()}

    def _fail(self) -> str:
        self._process.wait()
        self._said.seek(0)
        last = " / ".join(self._said.read().strip().splitlines()[-LAST_LINES:])
        raise SystemExit(f"audit: vLLM rendered no prompt (status {self._process.returncode}): {last}")


def _answer(model: Path) -> None:
    """Prompts for the chats on standard input, one at a time; what vLLM prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runtime = params.runtime()
    vllm.prepare(runtime)
    evaluation, serving = _evaluation(model), _serving(model, runtime)
    for line in sys.stdin:
        chat = json.loads(line)
        print(json.dumps({"evaluation": evaluation(chat), "serving": serving(chat)}), file=out, flush=True)


def _evaluation(model: Path) -> Callable[[Messages], Row]:
    tokenizer = vllm.Tokenizer(model)

    def prompt(chat: Messages) -> Row:
        text = tokenizer.render(chat)
        return {"text": text, "ids": tokenizer.encode(text)}

    return prompt


def _serving(model: Path, runtime: dict[str, Any]) -> Callable[[Messages], Row]:
    """The path of a request to /v1/chat/completions through a server with the command line of temper/server.py."""
    from dataclasses import replace

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.registry import renderer_from_config
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = server.arguments(model, "bfloat16", 0, runtime)
    options = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    config = AsyncEngineArgs.from_cli_args(options).create_engine_config()
    renderer = renderer_from_config(config)

    def prompt(chat: Messages) -> Row:
        request = ChatCompletionRequest(model=model.name, messages=chat)
        chosen = request.build_chat_params(options.chat_template, options.chat_template_content_format)
        as_text = replace(chosen, chat_template_kwargs=chosen.chat_template_kwargs | {"tokenize": False})
        _, text = renderer.render_messages(request.messages, as_text)
        _, made = renderer.render_messages(request.messages, chosen)
        ids = renderer.tokenize_prompt(made, request.build_tok_params(config.model_config))["prompt_token_ids"]
        return {"text": text["prompt"], "ids": list(ids)}

    return prompt


if __name__ == "__main__":
    stage.die_with_parent()
    _answer(Path(sys.argv[1]))
