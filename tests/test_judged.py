"""The stages that measure by rewards, with their engines on two layers: a model beside itself is neither better nor worse."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands.compose import composed
from temper import metrics, records, reward_scores, wheels
from temper.human_labels import Chat
from tests.test_rewardbench import held_out

pytestmark = [pytest.mark.engine, pytest.mark.slow]
OVERRIDES = ["experiment=smoke", "recipe=sft-dpo-judged", "judge.labels.pairs.file=pairs.jsonl", "rewardbench.sets=[]"]

# A reward model without training: what the stage `reward` would begin with.
SCORE = """
import sys
from pathlib import Path

from temper import reward_model, training, trl

training.prepare()
import torch
from transformers import set_seed

set_seed(17)
tokenizer = reward_model.padded(trl.tokenizer("models/base"), None)
reward_model._save(reward_model.classifier("models/base", torch.float32), tokenizer, Path("models/reward"))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Path:
    """A tree whose policies are all the base model."""
    made = clone_to(tmp_path_factory.mktemp("judged") / "tree")
    (made / "params.yaml").write_text(composed(OVERRIDES))
    run(made, "train", "-m", "scripts.base")
    for name in ("sft", "dpo"):
        shutil.copytree(made / "models/base", made / "models" / name)
    settings = {"model": "models/sft", "settings": "trl:DPOConfig", "trainer": {"beta": 0.1, "loss_type": ["sigmoid"]}}
    (made / "models/dpo/trl.yaml").write_text(json.dumps(settings))
    run(made, "train", "-c", SCORE)
    records.write(
        made / "data/mix/test.jsonl", [held_out(str(number), f"add {number} to it", number) for number in range(6)]
    )
    return made


def run(root: Path, env: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "temper.envs", "run", env, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def labelled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that agree with the reward model, as if people had its taste."""
    answers = [f"{'word ' * (1 + number)}{number}" for number in range(24)]
    chats: list[Chat] = [
        [{"role": "user", "content": f"Why {number // 2}?"}, {"role": "assistant", "content": text}]
        for number, text in enumerate(answers)
    ]
    monkeypatch.chdir(root)
    scores = reward_scores.scored(reward_scores.reward(Path("models/reward"), 256, 4), chats)
    rows = []
    for place in range(0, len(chats), 2):
        low, high = sorted((place, place + 1), key=lambda one: float(scores[one] or 0))
        rows.append({"chosen": chats[high], "rejected": chats[low]})
    records.write(root / "pairs.jsonl", rows)
    digest = wheels.digest(root / "pairs.jsonl")
    text = composed_at_home([*OVERRIDES, f"judge.labels.pairs.sha256={digest}"], monkeypatch)
    (root / "params.yaml").write_text(text)


def composed_at_home(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    return composed(overrides)


def test_a_model_beside_itself_ties_on_every_prompt(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(root, monkeypatch)
    said = run(root, "serve", "-m", "scripts.judge", "dpo")
    values = metrics.read(root / "reports/judge/dpo.json")
    assert (values["usable"], values["human_pairs_accuracy"]) == (1, 1.0)
    assert (values["prompts"], values["ties"], values["win_rate"]) == (4, 4, 0.5)
    assert values["win_verdict"] == "no difference"
    kept = list(records.read(root / "data/judge/dpo.jsonl"))
    assert all(row["answer"] == row["base"] for row in kept)
    assert "reward model models/reward; human_pairs_accuracy 1.000" in said


def test_rewards_of_a_policy_against_itself_tell_nothing_apart(root: Path) -> None:
    run(root, "train", "-m", "scripts.rewardbench", "dpo")
    values = metrics.read(root / "reports/rewardbench/dpo.json")
    assert (values["reward"], values["neighbours"], values["neighbours_n"]) == ("implicit", 0.5, 6)
    run(root, "train", "-m", "scripts.rewardbench", "reward")
    scored = metrics.read(root / "reports/rewardbench/reward.json")
    assert (scored["reward"], scored["neighbours_n"]) == ("model", 6)
    rows = list(records.read(root / "data/rewardbench/reward.jsonl"))
    assert all(len(set(row["rewards"])) == 2 for row in rows)
