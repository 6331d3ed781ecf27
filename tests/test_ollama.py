"""Ollama writes a chat as the model's own template does, or it is said that it cannot."""

import pytest

from temper import ollama
from temper.ollama import Chat, Render

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
NUMBERED = "{% for message in messages %}{{ loop.index }}: {{ message['content'] }}\n{% endfor %}"
SHOUTED = SMOLLM.replace("message['content']", "message['content'] | upper")
ROLES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + SMOLLM


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHATS: list[Chat] = [
    [turn("user", "Hi")],
    [turn("system", "Be brief."), turn("user", "Hi")],
    [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Yes?"), turn("user", "Bye")],
]


def rendering(template: str) -> Render:
    return ollama.jinja(template, "<|im_end|>")


@pytest.mark.parametrize("template", [SMOLLM, LLAMA], ids=["smollm", "llama"])
def test_a_chat_is_written_as_the_template_does(template: str) -> None:
    render = rendering(template)
    found = ollama.turns(render)
    for chat in CHATS:
        assert found.text(chat, True) == render(chat, True)


def test_the_file_says_what_the_template_does() -> None:
    text = ollama.modelfile("../model.gguf", ollama.turns(rendering(SMOLLM)), "<|im_end|>")
    assert text.startswith("FROM ../model.gguf\n")
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ if $last }}<|im_start|>assistant\n{{ end }}" in text
    assert 'SYSTEM """You are a helpful AI assistant"""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text


@pytest.mark.parametrize("template", [NUMBERED, SHOUTED, ROLES], ids=["numbered", "shouted", "refuses"])
def test_a_template_that_does_more_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ollama.turns(rendering(template))
