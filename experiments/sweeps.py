"""The named sweeps: rows by name, and the flags that make each of a preset."""

from dataclasses import dataclass

from experiments.presets import RunConfig
from persrm_jax.types import NegativeType

Flags = tuple[str, ...]
Rows = dict[str, Flags]
RFT_ALONE: dict[str, Rows] = {
    "variant": {name: ("--variant", name) for name in ("grpo", "dr_grpo", "dapo", "gspo", "rloo")},
    "group_size": {f"G={n}": ("--rft.group-size", str(n)) for n in (8, 4, 16)},
    "kl": {f"kl={x}": ("--loss.kl-coef", x) for x in ("1e-3", "0", "1e-2", "1e-1")},
    "reward": {
        "correct": (),
        "margin": ("--rft.reward.correct", "0", "--rft.reward.margin", "1"),
        "both": ("--rft.reward.correct", "0.5", "--rft.reward.margin", "1"),
    },
    "seeds": {"preset": ()},
}
"""Sweeps whose rows differ in RFT alone, and start from one SFT model a seed."""
WHOLE: dict[str, Rows] = {
    "format": {name: ("--prompt.answer", name) for name in ("scores", "verdict")},
    "think": {"reasoning": (), "no-think": ("--prompt.no-think",)},
    "mode": {"pairwise": (), "pointwise": ("--prompt.answer", "score")},
    "exemplars": {f"k={k}": ("--pairs.num-exemplars", str(k)) for k in (1, 2, 4, 8)},
    "stages": {
        "SFT + RFT": ("--continue-sft", "--rejection-sft"),
        "RFT alone": ("--sft.steps", "0"),
    },
    "lora": {"all weights": ()}
    | {f"LoRA r={r}": ("--train.lora-rank", str(r)) for r in (4, 16, 64)},
}
"""Sweeps whose rows are trained from the beginning."""
NEGATIVES = "negatives"
_PAIRED: tuple[NegativeType, ...] = ("other_author", "other_author_same_topic")
"""Kinds that need no writer, for presets with one kind."""
SWEEPS = (*RFT_ALONE, *WHOLE, NEGATIVES)


@dataclass(frozen=True)
class Sweep:
    """Rows of a preset; the first is what the others are compared with."""

    rows: Rows
    shares_sft: bool
    """Whether the rows start from one SFT model a seed, the first row's."""

    @property
    def first(self) -> str:
        return next(iter(self.rows))


def make_sweep(name: str, preset: RunConfig) -> Sweep:
    """A sweep of a preset."""
    if name == NEGATIVES:
        return Sweep(_without_one(preset), shares_sft=False)
    if name in RFT_ALONE:
        return Sweep(RFT_ALONE[name], shares_sft=True)
    return Sweep(WHOLE[name], shares_sft=False)


def _without_one(preset: RunConfig) -> Rows:
    """All kinds of rejected text, then each left out; all are tested on all."""
    kinds = preset.pairs.negatives if len(preset.pairs.negatives) > 1 else _PAIRED
    test = ("--pairs.test-negatives", *kinds)
    rows: Rows = {"all kinds": ("--pairs.negatives", *kinds, *test)}
    for left_out in kinds:
        rest = [kind for kind in kinds if kind != left_out]
        rows[f"without {left_out}"] = ("--pairs.negatives", *rest, *test)
    return rows
