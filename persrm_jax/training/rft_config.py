"""The configuration of reinforcement fine-tuning."""

from dataclasses import dataclass, field

from persrm_jax.rl.advantages import AdvantageConfig
from persrm_jax.rl.losses import LossConfig
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.sampling import SamplingConfig
from persrm_jax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class RftConfig:
    """The second stage of training."""

    steps: int = 100
    """Rollouts; 0 skips the stage."""
    prompts: int = 8
    """Prompts a step (P): one a pair, or where each text is shown alone two."""
    group_size: int = 8
    """Completions of each (G)."""
    mini_batches: int = 1
    """Parts of a rollout that have an optimizer step each."""
    epochs: int = 1
    """Times that a rollout is gone through. More than one update in all needs the log-probabilities
    of the policy that drew it, a forward pass more."""
    rollout_parts: int = 1
    """Shares of a rollout that decode one after the other: more take less memory for their cache,
    and the rewards of one are worked out while the next decodes."""
    accumulate: int = 1
    """Parts in which an update, and the reference, take their prompts; more parts take less
    memory."""
    shared_prefix: bool = True
    """Whether updates and the reference compute a prompt once for its whole group: the same loss
    and gradients, for less."""
    pack_length: int = 0
    """Tokens of a row in updates and the reference, which several groups share with their padding
    left out; 0: a padded row for each. Spares much where completions differ in length, or groups
    are short of the longest allowed; attention costs what a row's square does."""
    drop_flat: bool = False
    """Leave groups whose rewards are all equal out of updates, their KL gradient too."""
    max_rollouts: int = 1
    """Rollouts a step may take until as many groups as `prompts` have rewards that differ (DAPO's
    dynamic sampling, arXiv 2503.14476, 3.2); what is then still missing is left out."""
    mask_truncated: bool = False
    """Learn nothing from completions that reached the longest allowed without an end."""
    prompt_buckets: int = 1
    """Lengths that prompts are padded to, each with programs of its own: more pad less and compile
    longer."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="constant")
    )
    save_every: int = 20
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations on dev authors; 0 for none."""
    patience: int = 0
    """Evaluations without a new best after which training ends with the best; 0: never."""
    text_every: int = 10
    """Steps between rollouts that TensorBoard shows as text."""
    histogram_every: int = 5
    """Steps between histograms of rewards, advantages, lengths and ratios in TensorBoard."""

    def __post_init__(self) -> None:
        if self.patience and not self.eval_every:
            raise ValueError(f"--rft.patience {self.patience}: needs --rft.eval-every")
        if self.group_size < 2:
            raise ValueError(
                f"--rft.group-size {self.group_size}: a group needs at least 2 completions"
            )
        for name in (
            "mini_batches",
            "epochs",
            "rollout_parts",
            "max_rollouts",
            "prompt_buckets",
            "text_every",
            "histogram_every",
        ):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--rft.{flag} {getattr(self, name)}: must be at least 1")
        if self.prompts % self.mini_batches:
            raise ValueError(
                f"--rft.mini-batches {self.mini_batches}: does not divide --rft.prompts "
                f"{self.prompts}"
            )
        shortest = self.group_size * self.sampling.max_new_tokens
        if self.pack_length < 0 or 0 < self.pack_length <= shortest:
            raise ValueError(
                f"--rft.pack-length {self.pack_length}: a group's completions alone may take "
                f"{shortest} tokens; give more, or 0 for none"
            )
        if self.pack_length and not self.shared_prefix:
            raise ValueError(
                f"--rft.pack-length {self.pack_length}: packed groups share their prompts; remove "
                "--rft.no-shared-prefix"
            )
        if self.sampling.temperature == 0:
            raise ValueError("--rft.sampling.temperature 0: a group would have one completion")
        if self.sampling.stop:
            raise ValueError(
                f"--rft.sampling.stop {' '.join(self.sampling.stop)}: RFT learns to end with the "
                "end token, which a stop string would leave untrained"
            )

    @property
    def updates_a_step(self) -> int:
        """Optimizer steps for each rollout."""
        return self.mini_batches * self.epochs

    @property
    def num_parts(self) -> int:
        """Parts in which a rollout is gone through once."""
        return self.mini_batches * self.accumulate

    @property
    def num_updates(self) -> int:
        """Optimizer steps in all."""
        return self.steps * self.updates_a_step


def needs_reference(cfg: RftConfig, loss: LossConfig) -> bool:
    """Whether a KL divergence has a weight, in the loss or in the reward."""
    return loss.kl_coef > 0 or cfg.reward.kl > 0
