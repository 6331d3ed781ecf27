"""A GGUF before lm-evaluation-harness: what is asked of llama.cpp, and what is made of its answers."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

# Words for tokens, and a file that finds each token as likely as it is long and goes on by counting.
SCRIPT = """
import json
from types import SimpleNamespace
from temper.gguf_lm import GgufLM

class Words:
    bos_token_id, eos_token_id, name_or_path = None, 9, "models/gguf"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "<end>"]
    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.words.index(word) for word in text.split()]}
    def decode(self, ids, **options):
        assert options == {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        return " ".join(self.words[id] for id in ids)
    def apply_chat_template(self, chat, **options):
        return json.dumps([[turn["role"] for turn in chat], sorted(options.items())])

class Scores:
    asked = []
    def likelihood(self, context, continuation):
        self.asked.append([context, continuation])
        return -float(sum(continuation)), continuation == [2]
    def answer(self, prompt, most, until):
        self.asked.append([prompt, most, until])
        return [3, 4, 5][:most]

def requests(*args):
    return [SimpleNamespace(args=one) for one in args]

scores, numbers = Scores(), "zero one two three four five six"
model = GgufLM(scores, Words(), 8)
def refused(call):
    try:
        call()
    except SystemExit as error:
        return str(error)

print("FOUND", json.dumps({
    "likelihood": model.loglikelihood(requests(("one ", "two"), ("", "three"), (numbers, " seven eight"))),
    "rolling": model.loglikelihood_rolling(requests(("one two",), (numbers + " seven",))),
    "answers": model.generate_until(requests(
        ("one two", {"until": ["four"], "max_gen_toks": 5}),
        (numbers, {"until": [], "max_gen_toks": 4, "do_sample": False}),
    )),
    "asked": scores.asked,
    "long": refused(lambda: model.loglikelihood(requests(("one", " " + numbers + " one")))),
    "drawn": refused(lambda: model.generate_until(requests(("one", {"temperature": 0.7, "do_sample": True})))),
    "chat": model.apply_chat_template([{"role": "user"}]),
}))
"""


def test_it_is_asked_and_cut_as_lm_eval_s_other_models_are() -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[6:])
    # A context begins with the tokenizer's end where it has no beginning; a blank before the answer is the answer's.
    assert found["likelihood"] == [[-2.0, True], [-3.0, False], [-15.0, False]]
    asked = found["asked"]
    assert asked[:3] == [[[1], [2]], [[9], [3]], [[2, 3, 4, 5, 6], [7, 8]]]
    # A text that is longer than the context comes in windows, each after the token before it.
    assert found["rolling"] == [-3.0, -28.0]
    assert asked[3:6] == [[[9], [1, 2]], [[9], [0, 1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5], [6, 7]]]
    assert asked[6:] == [[[1, 2], 5, ["four"]], [[3, 4, 5, 6], 4, []]]
    assert found["answers"] == ["three ", "three four five"]
    assert found["long"] == "8 tokens of one answer in a context of 8: raise evaluate.length"
    assert found["drawn"].startswith("temperature 0.7: a GGUF gives its likeliest answer")
    assert json.loads(found["chat"]) == [
        ["user"],
        [
            ["add_generation_prompt", True],
            ["continue_final_message", False],
            ["enable_thinking", None],
            ["tokenize", False],
        ],
    ]
