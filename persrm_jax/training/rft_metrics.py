"""What a rollout shows of itself."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from persrm_jax.metrics import Histogram, histogram
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.flops import group_flops
from persrm_jax.rl.rollout import JudgedRollout
from persrm_jax.training.rft_programs import RATIO_EDGES


def rollout_metrics(judged: JudgedRollout) -> dict[str, float]:
    """Rewards, verdicts and lengths of one rollout."""
    tokens, mask = judged.rollout.groups.tokens, judged.rollout.groups.mask
    lengths = mask.sum(axis=2).ravel()
    parsed = [r.judgement for r in judged.records if r.judgement is not None]
    rewards = judged.rewards[~np.isnan(judged.rewards)]
    prompts = judged.rollout.groups.prompt_mask
    padded = prompts.size + mask.size
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/accuracy": float(judged.correct.mean()),
        "reward/format": len(parsed) / len(judged.records),
        "reward/ties": sum(j.verdict == "tie" for j in parsed) / len(judged.records),
        "reward/varied_groups": float(judged.varied.mean()),
        "reward/missing": 1 - len(rewards) / len(judged.rewards),
        **{
            f"reward_part/{name}": float(np.nanmean(part))
            for name, part in judged.components.items()
        },
        "length/completion": float(lengths.mean()),
        "length/longest": float(lengths.max()),
        "length/truncated": float(np.mean([r.truncated for r in judged.records])),
        "length/padding": float(1 - (prompts.sum() + lengths.sum()) / padded),
        # Two runs that drew the same tokens agree here; 24 bits, which a float32 holds.
        "sampler/checksum": float(zlib.crc32(tokens.tobytes()) % 2**24),
    }


def rollout_histograms(
    judged: JudgedRollout,
    advantages: Float[np.ndarray, "P G"],
    kept: Bool[np.ndarray, " P"],
    ratios: Sequence[Int[np.ndarray, " num_bins"]],
) -> dict[str, Histogram]:
    """How rewards, lengths, advantages (of groups in the update) and token ratios are spread.

    Args:
        ratios: counts between `RATIO_EDGES` of each update; none where a rollout has one update,
            whose ratios are all 1.
    """
    found = {
        "reward/each": histogram(judged.rewards),
        "length/each": histogram(judged.rollout.groups.mask.sum(axis=2)),
        "advantage/each": histogram(advantages[kept]),
        "ratio/each": ratio_histogram(ratios),
    }
    return {tag: one for tag, one in found.items() if one is not None}


def ratio_histogram(ratios: Sequence[Int[np.ndarray, " num_bins"]]) -> Histogram | None:
    """The counts of several updates as one, without the empty bins at both ends."""
    counts = np.sum(ratios, axis=0) if len(ratios) else np.zeros(1, int)
    if not counts.any():
        return None
    first, last = np.flatnonzero(counts)[[0, -1]]
    return Histogram(np.array(RATIO_EDGES)[first : last + 2], counts[first : last + 1])


def rollout_flops(
    cfg: ModelConfig,
    prompts: Int[np.ndarray, " P"],
    completions: Int[np.ndarray, "P G"],
    *,
    shared: bool,
) -> float:
    """Those of a forward pass over a rollout of these lengths."""
    if shared:
        return group_flops(cfg, prompts, completions)
    G = completions.shape[1]
    return group_flops(cfg, np.repeat(prompts, G), completions.reshape(-1, 1))
