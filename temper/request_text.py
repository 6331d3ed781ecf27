"""All the text that a caller sends with a request for an answer, as guards read it: whoever a turn is said to be by."""

from collections.abc import Iterator
from typing import Any

Request = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")  # others are text of the caller's own
# Fields that no engine shows the model. What is not named here is taken for something that it reads.
UNSHOWN = {
    *("model", "user", "metadata", "stop", "bad_words", "stream_options", "tool_choice", "reasoning_effort"),
    *("request_id", "session_id", "cache_salt"),
}
# What the log keeps of a request. The rest may name a person (user, metadata) or changes no answer.
KEPT = {
    *("messages", "prompt", "tools", "tool_choice", "response_format", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "n", "seed", "stop", "stream", "presence_penalty", "frequency_penalty"),
}
UNREADABLE = ("prompt_embeds", "prompt_token_ids")
# Of a part of a turn, by vLLM's renderers/chat_utils.py.
TEXTS = ("text", "input_text", "output_text", "refusal", "thinking", "tool_reference")
MEDIA = {
    *("input_image", "image_url", "image_pil", "image_embeds", "input_audio", "audio_url", "audio_embeds"),
    *("video_url", "video_embeds", "prompt_embeds"),
}


def strings(value: Any) -> Iterator[str]:
    """Every string in a value, keys too: whatever reaches the model is among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def readings(request: Request) -> Iterator[str]:
    """Every string, and every turn whose parts the engine joins: what is blocked may be split over them."""
    yield from strings(request)
    yield from (turn(message) for message in request.get("messages", ()) if isinstance(message.get("content"), list))


def passages(request: Request) -> list[str]:
    """Each turn and each prompt as one text, then what stands beside them (tools, documents, the form of an answer) as another."""
    beside = {key: value for key, value in request.items() if key not in ("messages", "prompt", *UNSHOWN)}
    found = [turn(message) for message in request.get("messages", ())]
    found += [*strings(request.get("prompt")), "\n".join(said for value in beside.values() for said in strings(value))]
    return [text for text in found if text]


def question(request: Request) -> dict[str, str]:
    """All of a request as the one turn that a guard model is asked about.

    Such a model judges the last turn alone, and wants users and assistants in alternation: what stood in another turn, or under
    another role, it would not judge, or not take.
    """
    return {"role": "user", "content": "\n\n".join(passages(request))}


def turn(message: dict[str, Any]) -> str:
    """The text of a turn, whose parts the engine joins by line ends, and what else it has: a name, calls, a role of its own."""
    beside = [message[key] for key in message if key not in ("role", "content")]
    beside += [message["role"]] if message.get("role", ROLES[0]) not in ROLES else []
    return "\n".join([*_content(message.get("content")), *strings(beside)])


def _content(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else [content]:
        shown = [part[key] for key in part if key != "type"] if isinstance(part, dict) else part
        yield from strings(shown)


def is_read(request: Request) -> bool:
    """Whether a guard of text can read all of it: no token ids, no embeddings, no pictures, no sound."""
    contents = (message.get("content") for message in request.get("messages", ()))
    parts = (part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict))
    are_texts = all(part.get("type", TEXTS[0]) in TEXTS and not part.keys() & MEDIA for part in parts)
    return are_texts and all(request.get(name) is None for name in UNREADABLE) and not has_ids(request.get("prompt"))


def has_ids(prompt: Any) -> bool:
    """Whether a prompt is token ids."""
    if isinstance(prompt, list):
        return any(has_ids(one) for one in prompt)
    return isinstance(prompt, int)
