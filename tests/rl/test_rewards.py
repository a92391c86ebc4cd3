import pytest

from persrm_jax.data.prompts import Judgement
from persrm_jax.rl.rewards import RewardConfig, format_reward, reward, verdict_reward

A, B, TIE = Judgement("A", 7.0, 3.0), Judgement("B", 2.0, 9.0), Judgement("tie", 5.0, 5.0)


@pytest.mark.parametrize(
    ("judgement", "order", "correct", "form"),
    [
        (A, "AB", 1, 1),
        (A, "BA", -1, 1),
        (B, "AB", -1, 1),
        (B, "BA", 1, 1),
        (TIE, "AB", 0, 1),
        (TIE, "BA", 0, 1),
        (None, "AB", -1, 0),
        (None, "BA", -1, 0),
        (Judgement("A"), "AB", 1, 1),
    ],
)
def test_the_rule(judgement: Judgement | None, order: str, correct: int, form: int) -> None:
    assert verdict_reward(judgement, order) == correct
    assert format_reward(judgement) == form
    assert reward(judgement, order, RewardConfig(1.0, 0.0)) == correct
    assert reward(judgement, order, RewardConfig(0.0, 2.0)) == 2 * form
    assert reward(judgement, order, RewardConfig(0.5, 0.25)) == 0.5 * correct + 0.25 * form
