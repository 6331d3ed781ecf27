"""What evaluation and the server show the model for a chat: vLLM's own answer, from the environment that it lives in.

python -m temper.rendering MODEL     inside `serve`
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import params, piped, server, vllm
from temper.piped import Piped
from temper.records import Row

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """What a model reads before its answer."""

    text: str
    ids: list[int]


class Prompts(Piped):
    """The prompts of evaluation and of serving for the model in a folder, for the time of a block."""

    def __init__(self, model: Path) -> None:
        super().__init__("serve", "temper.rendering", str(model))

    def of(self, chat: Messages) -> dict[str, Prompt]:
        """By `evaluation` and `serving`, for a chat that ends with a request; exits when vLLM refuses the model."""
        return {name: Prompt(**prompt) for name, prompt in self.ask({"chat": chat}).items()}


def _begin() -> tuple[Row, Callable[[Row], Row]]:
    model, runtime = Path(sys.argv[1]), params.runtime()
    vllm.prepare(runtime)
    evaluation, serving = _evaluation(model), _serving(model, runtime)
    return {}, lambda asked: {"evaluation": evaluation(asked["chat"]), "serving": serving(asked["chat"])}


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
    piped.serve(_begin)
