"""KTO: pairs taken apart, weights from how many answers there are of each kind, and what is refused."""

from pathlib import Path

import pytest

from commands.compose import composed
from scripts.kto import Kto
from temper import params, preference_trainers
from tests.test_dpo import PAIR, SFT

OTHER = PAIR | {"rejected": [{"role": "assistant", "content": "5"}]}


def settings(folder: Path, *overrides: str) -> Kto:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("kto", Kto, folder / "params.yaml")


def test_each_answer_stands_by_itself_once_in_an_order_that_the_seed_decides() -> None:
    answers = preference_trainers.unpaired([PAIR, OTHER], 17)
    assert sorted((row["completion"][0]["content"], row["label"]) for row in answers) == [
        ("3", True),  # chosen in both pairs
        ("4", False),
        ("5", False),
    ]
    assert answers == preference_trainers.unpaired([PAIR, OTHER], 17)
    orders = [preference_trainers.unpaired([PAIR, OTHER], seed) for seed in range(8)]
    assert any(order != answers for order in orders)


def test_the_rarer_kind_weighs_as_much_as_the_other(tmp_path: Path) -> None:
    answers = preference_trainers.unpaired([PAIR, OTHER], 17)
    trainer = preference_trainers.render_kto(settings(tmp_path), SFT, 1, answers)["trainer"]
    assert (trainer["desirable_weight"], trainer["undesirable_weight"]) == (2.0, 1.0)


def test_answers_of_one_kind_alone_teach_nothing() -> None:
    good = [row for row in preference_trainers.unpaired([PAIR], 17) if row["label"]]
    with pytest.raises(
        SystemExit,
        match=r"^kto: 1 answers to be preferred and 0 others .*: raise dpo\.max_length in conf/dpo, which kto follows$",
    ):
        preference_trainers.weights(good)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kto.loss=kot", r"^kto\.loss is 'kot', expected kto, apo_zero_unpaired: .*conf/kto$"),
        ("kto.micro_batch=1", r"^kto\.micro_batch is 1: .* raise it to 2"),
    ],
)
def test_what_trl_would_refuse_later_is_one_line(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        preference_trainers.render_kto(settings(tmp_path, override), SFT, 1, [])


def test_rewards_are_of_the_steps_that_have_them() -> None:
    log = [{"step": 1, "rewards/chosen": 9.0, "rewards/rejected": 9.0}] * 10
    log += [{"step": 11, "rewards/chosen": 2.0}, {"step": 12, "rewards/rejected": -1.0}]
    found = preference_trainers.kto_rewards(log)
    assert found == {"reward_chosen": 2.0, "reward_rejected": -1.0, "reward_margin": 3.0}
