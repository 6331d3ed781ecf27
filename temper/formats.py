"""What the rows of a file mean: instructions, chats, tool calls, preferences, passages with questions, text, pages.

Each format turns a row as it was found into the content that `record.make` checks; BadRow says what does not fit.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from temper import html_text, licences, record, tool_calls
from temper.record import BadRow
from temper.records import Row

AUTO = "auto"
UNDECIDED = "messages"  # of a file without one readable row: whichever is taken, all its rows are rejected
PAIRS = [("prompt", "completion"), ("prompt", "response"), ("question", "answer")]
ANSWERS = {"answer", "answers", "answerable", "is_impossible"}
# Anthropic's HH-RLHF keeps a whole conversation in one string.
SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \n]?")
NO = (False, 0, "false", "no", "0")


@dataclass(frozen=True)
class Format:
    keys: str
    """What its rows have, for errors."""
    fits: Callable[[Row], bool]
    """Whether a row has those keys."""
    convert: Callable[[Row], Row]


def detect(rows: Sequence[Row]) -> str | None:
    """The format whose keys most of `rows` have, of two the earlier in FORMATS; None when no row has any's."""
    if not rows:
        return UNDECIDED
    fitting = {name: sum(form.fits(row) for row in rows) for name, form in FORMATS.items()}
    best = max(FORMATS, key=lambda name: fitting[name])
    return best if fitting[best] else None


def converted(row: Row, name: str, refusal: str) -> Row:
    """The content of a row in the format `name`; `refusal` answers a question that its passage does not.

    `licence` is what the row states itself, of a synthesized one its teacher's too; "" where it states none.
    """
    form = FORMATS[name]
    if not form.fits(row):
        raise BadRow("columns", f"not {name}, which has {form.keys}: this row has {keys(row)}")
    category = row.get("category")
    # Other people's data may call anything a category; ours is a name.
    named: Row = {"category": category} if isinstance(category, str) and category else {}
    if isinstance(row.get("provenance"), dict):
        named["provenance"] = row["provenance"]
    named["licence"] = licences.together(_stated(row))
    if record.has_tests(row):
        named |= {key: row[key] for key in record.TESTS}
    content = named | form.convert(row)
    if content.get("answerable") is False and _is_blank(content["messages"][-1]["content"]):
        content["messages"][-1]["content"] = refusal
    return content


def renamed(row: Row, columns: dict[str, str]) -> Row:
    """The row with the keys of `columns` (ours: theirs) instead of theirs."""
    taken = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {key: value for key, value in row.items() if key not in columns.values()} | taken


def keys(row: Row) -> str:
    """The row's keys, for errors."""
    return ", ".join(str(key)[:30] for key in list(row)[:12]) or "none"


def _stated(row: Row) -> Iterator[str]:
    """The licences that a row names, under the key in either spelling."""
    provenance = row.get("provenance")
    teacher = provenance.get("teacher_licence") if isinstance(provenance, dict) else None
    named = (row.get("licence"), row.get("license"), teacher)
    yield from (one.strip() for one in named if isinstance(one, str) and one.strip())


def _messages(row: Row) -> Row:
    category = {"category": row["category"]} if row.get("category") is not None else {}
    return category | _chat(tool_calls.unpacked(row["messages"]), row)


def _chat(messages: Any, row: Row) -> Row:
    """Messages with the row's tools and gold: as they are if they are our own, OpenAI's tool calls turned into ours."""
    if not isinstance(messages, list) or not messages:
        return {"messages": messages}
    turns = [tool_calls.turn(message) for message in messages]
    gold = {"gold": row["gold"]} if "gold" in row else {}
    tools = tool_calls.unpacked(row.get("tools") if row.get("tools") is not None else row.get("functions"))
    if any("call" in turn for turn in turns) or tool_calls.is_wrapped(tools):
        return gold | tool_calls.row(turns, tools)
    return gold | {"messages": turns} | ({"tools": tool_calls.plain(tools)} if tools is not None else {})


def _sharegpt(row: Row) -> Row:
    said = tool_calls.unpacked(row.get("conversations", row.get("conversation")))
    if isinstance(said, list):
        said = _system(row) + [_sharegpt_message(message) for message in said]
    return _chat(said, row)


def _sharegpt_message(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    role, content = message["from"], message.get("value")
    if role == "function_call":
        return {"role": "assistant", "content": None, "function_call": tool_calls.unpacked(content)}
    return {"role": role, "content": content}


def _system(row: Row) -> list[Row]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _alpaca(row: Row) -> Row:
    """Instruction and input, with a blank line between, are what the user said."""
    parts = [_text_of(row, "instruction"), *([_text_of(row, "input")] if row.get("input") else [])]
    history = tool_calls.unpacked(row.get("history") or [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("type", "history is no list of [said, answered]")
    earlier = [turn for said, answer in history for turn in _exchange(said, answer)]
    return {"messages": _system(row) + earlier + _exchange("\n\n".join(parts), row["output"])}


def _prompt_completion(row: Row) -> Row:
    # TRL's form for KTO, whose disliked answers are nothing to imitate.
    if row.get("label") is False or _word(row.get("label")) == "false":
        raise BadRow("disliked", "label is false: give a liked answer beside it, as chosen and rejected")
    prompt, completion = next(pair for pair in PAIRS if row.keys() >= set(pair))
    request, answer = _turns(row[prompt], "user"), _turns(row[completion], "assistant")
    return {"messages": _system(row) + request + answer}


def _rag(row: Row) -> Row:
    """The passage, then the question; an empty answer, or `answerable: false`, marks one that the passage does not answer."""
    context = tool_calls.unpacked(row["context"])
    if isinstance(context, list) and all(isinstance(passage, str) for passage in context):
        context = "\n\n".join(context)
    answer = _first_answer(tool_calls.unpacked(row.get("answer", row.get("answers"))))
    stated = row.get("answerable", not row["is_impossible"] if "is_impossible" in row else None)
    answerable = not _is_blank(answer) if stated is None else _word(stated) not in NO
    request = f"{_text_of({'context': context}, 'context')}\n\nQuestion: {_text_of(row, 'question')}"
    return {
        "messages": _system(row) + _exchange(request, "" if _is_blank(answer) else answer),
        "answerable": answerable,
    }


def _first_answer(answer: Any) -> Any:
    """SQuAD's `{"text": [...]}` and a list stand for their first."""
    answer = answer.get("text") if isinstance(answer, dict) else answer
    return (answer[0] if answer else "") if isinstance(answer, list) else answer


def _word(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _preference(row: Row) -> Row:
    """A prompt and two answers, or two conversations that part at the last answer (as strings, HH-RLHF's way)."""
    chosen, rejected = (_conversation(row[side]) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        if "prompt" not in row:
            raise BadRow("columns", "answers without a prompt, and not whole conversations either")
        chosen, rejected = (_turns(said, "assistant") for said in (chosen, rejected))
    if "prompt" in row and _role(chosen) == _role(rejected) == "assistant":
        return {"messages": _system(row) + _turns(row["prompt"], "user"), "chosen": chosen, "rejected": rejected}
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise BadRow("roles", "the chosen and the rejected conversation do not begin alike")
    return {"messages": _system(row) + chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _conversation(said: Any) -> Any:
    """A conversation as turns: a list of messages, or a transcript; an answer on its own stays as it is."""
    said = _listed(said)
    if isinstance(said, list):
        return [tool_calls.turn(message) for message in said]
    if isinstance(said, str) and (parts := SPEAKER.split(said))[0] == "" and len(parts) > 3:
        speakers = {"Human": "user", "Assistant": "assistant"}
        return [
            {"role": speakers[speaker], "content": text.strip()}
            for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
    if not isinstance(said, str):
        raise BadRow("type", f"an answer is a {type(said).__name__}, where text or messages were expected")
    return said


def _role(turns: list[Row]) -> Any:
    return turns[0]["role"] if turns else None


def _turns(said: Any, role: str) -> list[Row]:
    """One turn of `role`, or the messages that a list holds."""
    said = _listed(said)
    return [tool_calls.turn(one) for one in said] if isinstance(said, list) else [{"role": role, "content": said}]


def _listed(said: Any) -> Any:
    """A list of messages inside a string unpacked; an answer that only begins like one stays text."""
    if not isinstance(said, str) or not said.lstrip().startswith("[{"):
        return said
    try:
        found = tool_calls.unpacked(said)
    except BadRow:
        return said
    return found if isinstance(found, list) and all(isinstance(part, dict) for part in found) else said


def _exchange(said: Any, answer: Any) -> list[Row]:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def _text_of(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise BadRow("type", f"{key} is a {type(row[key]).__name__}, where text was expected")
    return row[key]


def _text(row: Row) -> Row:
    return {"text": row["text"]}


def _html(row: Row) -> Row:
    page = row["html"]
    if not isinstance(page, str | bytes):
        raise BadRow("type", f"html is a {type(page).__name__}, where a page was expected")
    return {"text": html_text.extract(page)}


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: row.keys() >= set(names)


# In the order in which they are tried: a row with the keys of two is the first.
FORMATS = {
    "preference": Format("chosen and rejected", _has("chosen", "rejected"), _preference),
    "messages": Format("messages", _has("messages"), _messages),
    "sharegpt": Format("conversations", lambda row: bool(row.keys() & {"conversations", "conversation"}), _sharegpt),
    "alpaca": Format("instruction and output", _has("instruction", "output"), _alpaca),
    "rag": Format(
        "context, question and answer",
        lambda row: _has("context", "question")(row) and bool(row.keys() & ANSWERS),
        _rag,
    ),
    "prompt-completion": Format(
        " or ".join(map(" and ".join, PAIRS)), lambda row: any(_has(*pair)(row) for pair in PAIRS), _prompt_completion
    ),
    "html": Format("html", _has("html"), _html),
    "text": Format("text", _has("text"), _text),
}
