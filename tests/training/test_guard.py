from pathlib import Path

import numpy as np
import pytest

from persrm_jax.training.guard import FLAT_STEPS, MAX_SKIPPED, Guard, StepLog


def run(guard: Guard, rows: list[dict[str, float]]) -> list[tuple[int, str]]:
    return [(i, text) for i, row in enumerate(rows) for text in guard.look(i, StepLog(row))]


def test_health_is_silent(tmp_path: Path) -> None:
    row = {"kl/mean": 0.2, "reward/varied_groups": 0.5, "length/truncated": 0.1}
    rewards = np.linspace(-0.5, 0.8, 40) + 0.2 * np.random.default_rng(0).standard_normal(40)
    assert run(Guard(tmp_path), [row | {"reward/mean": r} for r in rewards]) == []
    assert run(Guard(tmp_path), [{"loss/total": 3.0, "guard/skipped": 0.0}] * 20) == []


@pytest.mark.parametrize(
    ("rows", "step", "words"),
    [
        ([{"kl/mean": 0.5}, {"kl/mean": 1.5}, {"kl/mean": 2.0}], 1, "1.5 nats a token"),
        ([{"reward/varied_groups": 0.0}] * 9, FLAT_STEPS - 1, "no group had differing rewards"),
        ([{"length/truncated": 0.9}] * 9, FLAT_STEPS - 1, "most completions were cut off"),
        ([{"guard/skipped": 1.0}, {"guard/skipped": 0.0}] * 9, 0, "the update is skipped"),
    ],
)
def test_each_failure_is_named_once(
    tmp_path: Path, rows: list[dict[str, float]], step: int, words: str
) -> None:
    said = run(Guard(tmp_path), rows)
    assert [i for i, _ in said] == [step] and words in said[0][1]


def test_a_state_that_passes_is_no_failure(tmp_path: Path) -> None:
    cut, whole = {"length/truncated": 0.9}, {"length/truncated": 0.1}
    assert run(Guard(tmp_path), ([cut] * (FLAT_STEPS - 1) + [whole]) * 3) == []


def test_a_reward_that_falls_back(tmp_path: Path) -> None:
    rewards = [*np.linspace(0, 1, 30), *np.linspace(1, -0.5, 40)]
    said = run(Guard(tmp_path), [{"reward/mean": r} for r in rewards])
    assert len(said) == 1 and 30 < said[0][0] < 65 and "the reward has fallen" in said[0][1]


def test_skips_in_a_row_end_training_and_keep_the_batch(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    bad = StepLog({"guard/skipped": 1.0}, batch={"tokens": np.arange(6), "mask": np.ones(2, bool)})
    for step in range(MAX_SKIPPED - 1):
        guard.look(step, bad)
    guard.look(2, StepLog({"guard/skipped": 0.0}))
    for step in range(3, 2 + MAX_SKIPPED):
        guard.look(step, bad)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="up to step 5.*bad_batch.npz.*Lower the learning rate"):
        guard.look(5, bad)
    with np.load(tmp_path / "bad_batch.npz") as kept:
        assert sorted(kept) == ["['mask']", "['tokens']"]
        np.testing.assert_array_equal(kept["['tokens']"], np.arange(6))


def test_a_resumed_run_warns_where_an_unbroken_one_does(tmp_path: Path) -> None:
    flat = {"reward/varied_groups": 0.0}
    guard = Guard(tmp_path)
    guard.recall([{"step": step, **flat} for step in range(FLAT_STEPS - 1)])
    assert any("differing rewards" in w for w in guard.look(FLAT_STEPS - 1, StepLog(flat)))
    again = Guard(tmp_path)
    again.recall([{"step": step, **flat} for step in range(FLAT_STEPS)])
    assert again.look(FLAT_STEPS, StepLog(flat)) == [], "that was said before"
