import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persrm_jax.data.prompts import Judgement
from persrm_jax.rl.own_reward import OwnReward, find_function
from persrm_jax.rl.rewards import (
    CompletionRecord,
    RewardConfig,
    format_reward,
    overlong_reward,
    score,
    verdict_reward,
)
from persrm_jax.types import Pair

A, B, TIE = Judgement("A", 7.0, 3.0), Judgement("B", 2.0, 9.0), Judgement("tie", 5.0, 5.0)
PAIR = Pair(
    "p7", "ann", "train", "d", "", ("hey",), ("1",), "mine", "2",
    "theirs", "3", "bob", "other_author", "AB", "human", 0,
)  # fmt: skip
NONE = RewardConfig(correct=0.0)


def record(judgement: Judgement | None = A, order: str = "AB", **fields: Any) -> CompletionRecord:
    given = {"text": "", "num_tokens": 10, "max_tokens": 100, "truncated": False} | fields
    return CompletionRecord(PAIR, order, judgement=judgement, **given)


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
    asked = record(judgement, order)
    assert verdict_reward(asked, NONE) == correct
    assert format_reward(asked, NONE) == form
    parts, total = score([asked, asked], RewardConfig(0.5, 0.25))
    assert parts["correct"].tolist() == [correct] * 2 and parts["format"].tolist() == [form] * 2
    assert total.tolist() == [0.5 * correct + 0.25 * form] * 2
    assert set(parts) == {"correct", "format"}, "components without weight are left out"


def test_without_weights_every_reward_is_nothing() -> None:
    assert score([record(), record()], NONE) == ({}, pytest.approx(np.zeros(2)))


def test_overlong_shaping_is_that_of_the_paper() -> None:
    """Equation 13 of arXiv 2503.14476, its longest and its buffer in tokens."""
    cfg = RewardConfig(overlong_buffer=40)
    for length in range(1, 101):
        want = 0.0 if length <= 60 else (60 - length) / 40
        assert overlong_reward(record(num_tokens=length), cfg) == pytest.approx(want)
    assert overlong_reward(record(num_tokens=90), RewardConfig()) == pytest.approx(-10 / 20)


OWN = """
import time
from persrm_jax.data.prompts import Judgement

def by_length(records):
    return [len(record.text) for record in records]

def touchy(records):
    for record in records:
        if record.text == "raise":
            raise RuntimeError("I do not like it")
        if record.text == "sleep":
            time.sleep(60)
        if record.text == "nan":
            return [float("nan")] * len(records)
    return [1.0] * len(records)

def too_few(records):
    return []
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def test_a_function_of_ones_own_is_called_by_its_path(own: str) -> None:
    rewards = OwnReward(f"{own}:by_length", 60.0)
    try:
        records = [record(text="x" * n) for n in (3, 1, 4, 1)]
        assert rewards(records, 2) == [3, 1, 4, 1]
    finally:
        rewards.close()
    parts, total = score(
        records, RewardConfig(own="m:f", own_weight=0.5), [3.0, 1.0, 4.0, math.nan]
    )
    assert total[:3].tolist() == [2.5, 1.5, 3.0] and math.isnan(total[3])


def test_what_goes_wrong_costs_one_completion(own: str) -> None:
    said: list[str] = []
    rewards = OwnReward(f"{own}:touchy", 3.0, said.append)
    texts = ["a", "raise", "b", "c", "nan", "d", "sleep", "e"]
    try:
        rewards(records := [record(text="warm up")] * 8, 2)  # processes start, slowly
        records = [record(text=text) for text in texts]
        found = rewards(records, 2)
    finally:
        rewards.close()
    want = [math.nan if text in ("raise", "nan", "sleep") else 1.0 for text in texts]
    np.testing.assert_array_equal(found, want)
    assert len(said) == 3 and all("p7" in line and "touchy" in line for line in said)
    assert "I do not like it" in said[0] and "nan" in said[1] and "no answer in 3 s" in said[2]


def test_a_function_that_always_fails_gives_none(own: str) -> None:
    rewards = OwnReward(f"{own}:too_few", 60.0, lambda text: None)
    try:
        assert np.isnan(rewards([record(), record()], 2)).all()
    finally:
        rewards.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:f", "No module named"),
        ("nowhere.py:f", "nowhere.py"),
        ("math:no_such_function", "no_such_function"),
    ],
)
def test_a_path_to_nothing_is_refused_by_name(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"--rft.reward.own {path}: .*{words}"):
        find_function(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"own": "mine.py"}, "must be FILE.py:NAME"),
        ({"own_timeout": 0.0}, "own-timeout 0.0"),
        ({"overlong_buffer": -1}, "overlong-buffer -1"),
    ],
)
def test_a_config_out_of_range_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(RewardConfig(), **fields)
