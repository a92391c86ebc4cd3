"""What a rollout shows of itself."""

import zlib

import numpy as np
from jaxtyping import Int

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.flops import group_flops
from persrm_jax.rl.rollout import JudgedRollout
from persrm_jax.types import right_verdict


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


def describe(judged: JudgedRollout) -> str:
    """The first question of a rollout and its first completion, as Markdown."""
    first = judged.records[0]
    a, b = first.pair.candidates(first.order)
    parts = [f"**Exemplar** {text}" for text in first.pair.exemplars]
    parts += [f"**A** {a}", f"**B** {b}", f"**Right** {right_verdict(first.order)}"]
    parts += [f"**Completion** (reward {judged.rewards[0]:+.1f})", "```", first.text]
    return "\n\n".join(parts) + "\n```\n"
