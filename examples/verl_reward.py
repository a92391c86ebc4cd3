"""verl's custom reward function, with a personalized judge behind it.

    python -m experiments.serve --run RUN
    python -m verl.trainer.main_ppo ... \\
        reward.custom_reward_function.path=examples/verl_reward.py \\
        reward.custom_reward_function.name=compute_score

(Before verl moved its reward settings: `custom_reward_function.path=...`.) Each row of the data has
the person's texts in `extra_info["exemplars"]`, and if known `extra_info["prompt"]`, what the
completion answers. `compute_score` scores one completion, so it wants a pointwise judge;
`compute_scores` is the form for verl's batch reward manager (`reward_model.reward_manager=batch`)
and suits a pairwise judge too, which compares the completions of one prompt with each other.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # verl loads this file by its path
from persrm_client import score  # noqa: E402

UNREADABLE = 0.0
"""The reward where the judge's answer could not be read: verl wants a number, and scores are from 0
to 10."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """The reward of one completion."""
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info])[0]


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **_: Any,
) -> list[float]:
    """The rewards of a batch; completions with the same exemplars and prompt are one request.

    Raises:
        ValueError: a row without exemplars.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, info in enumerate(extra_infos):
        if info is None or info.get("exemplars") is None:
            raise ValueError(f"row {i} of {data_sources[i]}: no 'exemplars' in its extra_info")
        groups[info.get("prompt") or "", *info["exemplars"]].append(i)
    rewards = [UNREADABLE] * len(solution_strs)
    for (prompt, *exemplars), members in groups.items():
        found = score(exemplars, [solution_strs[i] for i in members], prompt)
        for i, got in zip(members, found, strict=True):
            rewards[i] = UNREADABLE if got["score"] is None else float(got["score"])
    return rewards
