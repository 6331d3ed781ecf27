"""Answers to conversations of one turn or several, by vLLM in a process of its own: its end leaves the memory to a judge's model.

All conversations of a model go through one engine, turn by turn, each at the temperature that its question asks for.
"""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from temper import answers, base_model, params, records, stage, vllm
from temper.human_labels import Chat

MARGIN = 16  # tokens that a template may write around a turn


@dataclass(frozen=True)
class Conversation:
    id: str
    opening: Chat
    """Up to the user's first turn that is answered."""
    further: list[str]
    """The user's turns after that, each asked once the one before is answered."""
    temperature: float

    def after(self, said: list[str]) -> Chat:
        """What the model reads before its next answer."""
        chat = list(self.opening)
        for answer, request in zip(said, self.further, strict=False):
            chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]
        return chat


def answered(
    model: Path, conversations: list[Conversation], max_tokens: int, dtype: str, seed: int, file: Path
) -> list[list[str]]:
    """The answers to each conversation's turns; from `file` where an earlier try left them."""
    if not file.is_file():
        with ProcessPoolExecutor(1, get_context("spawn"), stage.bind_to_parent) as apart:
            try:
                found = apart.submit(_answered, model, conversations, max_tokens, dtype, seed).result()
            except BrokenProcessPool:
                raise SystemExit(
                    f"{model}: vLLM was killed while it answered, mostly for want of memory: "
                    "lower hardware.runtime.serve_memory_gb in conf/hardware"
                ) from None
        records.write(file, ({"answers": of} for of in found))
    return [row["answers"] for row in records.read(file)]


def _answered(
    model: Path, conversations: list[Conversation], max_tokens: int, dtype: str, seed: int
) -> list[list[str]]:
    runtime = params.runtime()
    vllm.prepare(runtime)
    from vllm import LLM, SamplingParams, TokensPrompt

    tokenizer = vllm.Tokenizer(model)
    longest = max(length(one, max_tokens, tokenizer) for one in conversations)
    if longest > (context := base_model.context(model)):
        raise SystemExit(
            f"{model}: a conversation may take {longest} tokens, the model reads {context}: lower max_tokens, or the number of "
            "examples (conf/judge, conf/compare)"
        )
    engine = LLM(model=str(model), **vllm.engine(dtype, longest, seed, runtime))
    said: list[list[str]] = [[] for _ in conversations]
    for turn in range(max(len(one.further) for one in conversations) + 1):
        asked = [number for number, one in enumerate(conversations) if turn <= len(one.further)]
        chats = [conversations[number].after(said[number]) for number in asked]
        prompts = [TokensPrompt(prompt_token_ids=tokenizer.encode(tokenizer.render(chat))) for chat in chats]
        options = [
            SamplingParams(
                temperature=conversations[number].temperature,
                max_tokens=max_tokens,
                seed=answers.seed(f"{conversations[number].id}/{turn}", seed),
            )
            for number in asked
        ]
        for number, output in zip(asked, engine.generate(prompts, options, use_tqdm=False), strict=True):
            said[number].append(output.outputs[0].text)
    return said


def length(conversation: Conversation, max_tokens: int, tokenizer: vllm.Tokenizer) -> int:
    """Tokens of the whole conversation at most."""
    turns = len(conversation.further) + 1
    further = sum(len(tokenizer.encode(text)) + MARGIN for text in conversation.further)
    return len(tokenizer.encode(tokenizer.render(conversation.opening))) + further + turns * (max_tokens + MARGIN)
