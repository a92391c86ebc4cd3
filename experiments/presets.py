"""Complete configurations: the first word of a command picks one, flags override its fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from persrm_jax import cli
from persrm_jax.data.documents import CorpusConfig
from persrm_jax.data.local_writer import LocalConfig
from persrm_jax.data.negatives import NegativesConfig
from persrm_jax.data.openai_writer import OpenAIConfig
from persrm_jax.data.personas import ELSEWHERE, PersonaConfig
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.data.sources import SourceConfig
from persrm_jax.data.splits import PairConfig
from persrm_jax.data.traces import TeacherConfig
from persrm_jax.distributed import ClusterConfig
from persrm_jax.evaluation.judge import EvalConfig
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.trainable import TrainableConfig
from persrm_jax.rl import advantages, losses
from persrm_jax.rl.losses import LossConfig
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.sampling import SamplingConfig
from persrm_jax.sharding import MeshShape
from persrm_jax.training.bt import BtConfig
from persrm_jax.training.optimizer import OptimizerConfig
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.sft import SftConfig

Run = TypeVar("Run", bound="RunConfig")
Variant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


@dataclass(frozen=True)
class RunConfig:
    """One run, from texts to report."""

    preset: str
    """Name of the configuration that the flags override."""
    model: str
    """`tiny` (from scratch), `smollm2` (the registry's), a folder, or a Hugging Face id."""
    variant: Variant = "grpo"
    """Which of the GRPO family RFT is: sets what makes it so in --loss, --rft.advantage, --rft and
    --rft.reward, which flags then override."""
    data: str = "personas"
    """`personas` (made up), `embedded` (public authors), or a documents file: .jsonl, .jsonl.gz."""
    out: Path | None = None
    """Run folder; runs/PRESET where none is given."""
    init: Path | None = None
    """A run, or a model folder that one saved, to start RFT from; skips SFT."""
    seed: int = 0
    """Seed of the data, the weights and the samples."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model; simulated on a machine without accelerators."""
    cluster: cli.Cluster = field(default_factory=ClusterConfig)
    personas: PersonaConfig = field(default_factory=PersonaConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    writer: str = "rules"
    """Who writes negatives of the kinds mimic, minor and random: `rules` (minor alone, no model),
    `local` (the run's model), `openai` (an endpoint); one for all, or KIND=NAME,KIND=NAME."""
    written: NegativesConfig = field(default_factory=NegativesConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    processes: int = 0
    """That make pairs (0: one a core); the pairs are the same."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    train: TrainableConfig = field(default_factory=TrainableConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rft: RftConfig = field(default_factory=RftConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    bt: BtConfig = field(default_factory=BtConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    profile: int = 0
    """Steps of each training stage to record a JAX trace of, for TensorBoard's profiler."""
    continue_sft: bool = False
    """Also train SFT on for as much compute as RFT takes: RFT's honest rival. Of a finished run,
    too."""
    rejection_sft: bool = False
    """Also train SFT on for as much compute on its own right answers: another rival."""

    @property
    def rivals(self) -> tuple[str, ...]:
        """The stages that train them."""
        wanted = {"sft_continued": self.continue_sft, "sft_rejection": self.rejection_sft}
        return tuple(stage for stage, is_wanted in wanted.items() if is_wanted)

    @property
    def unseen_domains(self) -> tuple[str, ...]:
        """Domains that are kept from training."""
        made_up = self.data == "personas" and self.personas.elsewhere
        return (*self.pairs.unseen_domains, *([ELSEWHERE] if made_up else []))

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / self.preset


# SFT ends while its model still errs, or no group would have both right and wrong completions to
# learn from. At temperature 1 most of what RFT learns is to sample as well as it answers greedily.
TINY = RunConfig(
    preset="tiny",
    model="tiny",
    personas=PersonaConfig(texts=64, elsewhere=32),
    pairs=PairConfig(
        num_exemplars=1,
        num_train=4000,
        num_dev=400,
        num_test=400,
        num_seen=60,
        num_elsewhere=60,
    ),
    prompt=PromptConfig(template="compact", max_tokens=512),
    teacher=TeacherConfig(num_facts=5, both_orders=False),
    sft=SftConfig(
        steps=600,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="constant", warmup_steps=20),
        save_every=50,
        eval_every=20,
        stop_accuracy=0.78,
    ),
    rft=RftConfig(
        steps=60,
        prompts=16,
        group_size=8,
        sampling=SamplingConfig(max_new_tokens=64, temperature=0.7),
        optimizer=OptimizerConfig(learning_rate=1.5e-4, schedule="cosine", warmup_steps=5),
        eval_every=20,
    ),
    bt=BtConfig(
        steps=400,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=20),
        save_every=100,
        eval_every=50,
        patience=3,
    ),
    eval=EvalConfig(batch_size=64, sampling=SamplingConfig(max_new_tokens=64, temperature=0.0)),
)

# The paper's SFT (arXiv 2508.14076) and RM-R1's GRPO (arXiv 2505.02387): batch 128, learning rate
# 5e-6, 1 epoch; 7 rollouts at temperature 1, 1e-6 constant, clip 0.2, KL 1e-3 with k3. RM-R1 takes
# 1,024 prompts a rollout in mini-batches of 128; these presets have one update a rollout, so 128
# prompts: --rft.prompts 1024 --rft.mini-batches 8 is RM-R1's. The scalar reward model is trained as
# InstructGPT's (arXiv 2203.02155, appendix C.2): 1 epoch, batch 64, 9e-6, down to a tenth by a
# cosine.
_PAPER = RunConfig(
    preset="qwen2.5-7b",
    model="Qwen/Qwen2.5-7B-Instruct",
    data="embedded",
    corpus=CorpusConfig(max_words=512),
    pairs=PairConfig(
        num_train=12800, negatives=("other_author_same_topic", "other_author"), num_exemplars=4
    ),
    prompt=PromptConfig(max_tokens=4096),
    compute=ComputeConfig(dtype="bfloat16", remat="full"),
    sft=SftConfig(steps=100, batch_size=128, optimizer=OptimizerConfig(learning_rate=5e-6)),
    rft=RftConfig(
        steps=100,
        prompts=128,
        group_size=7,
        sampling=SamplingConfig(max_new_tokens=8192),
        reward=RewardConfig(correct=1.0, format=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_steps=0),
    ),
    loss=LossConfig(clip_low=0.2, clip_high=0.2, kl_coef=1e-3, kl_estimator="k3"),
    bt=BtConfig(steps=200, batch_size=64, optimizer=OptimizerConfig(learning_rate=9e-6)),
    eval=EvalConfig(batch_size=128, sampling=SamplingConfig(max_new_tokens=8192, temperature=0.0)),
)

_SMALL = replace(
    _PAPER,
    sft=replace(_PAPER.sft, batch_size=64, optimizer=OptimizerConfig(learning_rate=1e-5)),
    rft=replace(_PAPER.rft, prompts=32, sampling=SamplingConfig(max_new_tokens=1024)),
    eval=EvalConfig(batch_size=64, sampling=SamplingConfig(max_new_tokens=1024, temperature=0.0)),
)

SMOLLM2 = replace(
    _SMALL,
    preset="smollm2",
    model="smollm2",
    corpus=CorpusConfig(max_words=128),
    pairs=PairConfig(num_exemplars=1, num_train=2000),
    local=LocalConfig(sampling=SamplingConfig(max_new_tokens=224, temperature=0.8)),
    prompt=PromptConfig(max_tokens=1536),
    compute=ComputeConfig(remat="full"),
    sft=SftConfig(
        steps=100, batch_size=16, optimizer=OptimizerConfig(learning_rate=1e-4), save_every=25
    ),
    rft=RftConfig(
        steps=40,
        prompts=4,
        group_size=8,
        sampling=SamplingConfig(max_new_tokens=224),
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup_steps=2),
        save_every=10,
    ),
    bt=BtConfig(
        steps=125,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=5e-5),
        save_every=25,
        eval_every=25,
    ),
    eval=EvalConfig(batch_size=16, sampling=SamplingConfig(max_new_tokens=224, temperature=0.0)),
)

# What two CPU cores train in hours: adapters, short passages, and traces that quote the words that
# a candidate shares with the person, which judge better than facts and which a small model learns
# to copy (results/LOG.md).
SMOLLM2_CPU = replace(
    SMOLLM2,
    preset="smollm2-cpu",
    corpus=CorpusConfig(max_words=64, prompt_words=0),
    pairs=PairConfig(
        num_exemplars=4,
        exemplars_shared_by=13,
        negatives=("other_author_same_topic", "other_author"),
        num_train=1716,
        num_dev=156,
        num_seen=66,
    ),
    prompt=PromptConfig(max_tokens=896),
    teacher=TeacherConfig(num_facts=0, num_words=6, both_orders=False),
    train=TrainableConfig(lora_rank=8, lora_alpha=16.0),
    sft=SftConfig(
        steps=240,
        batch_size=2,
        group_size=5,
        accumulate=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=8),
        save_every=10,
        eval_every=120,
    ),
    rft=RftConfig(
        steps=40,
        prompts=4,
        group_size=8,
        sampling=SamplingConfig(max_new_tokens=80),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=2),
        save_every=5,
    ),
    bt=BtConfig(
        steps=60,
        batch_size=4,
        group_size=5,
        accumulate=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
        save_every=20,
        eval_every=30,
    ),
    eval=EvalConfig(
        batch_size=26,
        sampling=SamplingConfig(max_new_tokens=80, temperature=0.0),
        max_dev_pairs=78,
        exemplars=(0,),
    ),
)

PRESETS: dict[str, RunConfig] = {
    "tiny": TINY,
    "smollm2": SMOLLM2,
    "smollm2-cpu": SMOLLM2_CPU,
    "qwen2.5-0.5b": replace(_SMALL, preset="qwen2.5-0.5b", model="Qwen/Qwen2.5-0.5B-Instruct"),
    "qwen2.5-7b": _PAPER,
    "qwen3-0.6b": replace(_SMALL, preset="qwen3-0.6b", model="Qwen/Qwen3-0.6B"),
    "qwen3-8b": replace(_PAPER, preset="qwen3-8b", model="Qwen/Qwen3-8B"),
}
DEFAULT = "tiny"
_BEYOND: dict[str, dict[str, Any]] = {
    "dapo": {"drop_flat": True, "max_rollouts": 3},
}
"""What a variant sets of RFT beside its loss and its advantages."""
_REWARDS: dict[str, dict[str, Any]] = {"dapo": {"overlong": 1.0}, "rloo": {"kl": 1e-3}}
"""What it sets of the reward."""


def with_variant(cfg: Run, name: Variant) -> Run:
    """A preset as another of the GRPO family."""
    if name == cfg.variant:
        return cfg
    rft = replace(
        cfg.rft,
        advantage=advantages.VARIANTS[name],
        reward=replace(cfg.rft.reward, **_REWARDS.get(name, {})),
        **_BEYOND.get(name, {}),
    )
    return replace(cfg, variant=name, rft=rft, loss=losses.VARIANTS[name])


def parse_run(presets: Mapping[str, Run], prog: str, args: Sequence[str]) -> Run:
    """A command's configuration: preset, variant, then flags. Without a preset, --model with the
    name of one means that one.

    Raises:
        ValueError: as `cli.parse_preset`, or an unknown variant.
    """
    args = _in_full(args)
    model = _value_of(args, "--model")
    if model in presets and (not args or args[0].startswith("-")):
        args = [model, *args]
    name = _variant_of(args)
    changed = {preset: with_variant(cfg, name) for preset, cfg in presets.items()}
    return cli.parse_preset(changed, DEFAULT, prog, args)


def _variant_of(args: Sequence[str]) -> Variant:
    """What the flag says, which is looked for before the others since it changes their defaults."""
    found: Any = _value_of(args, "--variant", "grpo")
    if found not in get_args(Variant):
        names = ", ".join(get_args(Variant))
        raise ValueError(f"--variant {found}: must be one of {names}")
    return found


def _value_of(args: Sequence[str], wanted: str, default: str = "") -> str:
    """A flag's last value."""
    found = default
    for i, word in enumerate(args):
        flag, _, value = word.partition("=")
        if flag == wanted:
            found = value or "".join(args[i + 1 : i + 2])
    return found


_SHORT = {
    "--negatives": "--pairs.negatives",
    "--max-pairs": "--pairs.max-pairs",
    "--base-url": "--openai.base-url",
}
"""Flags that go by the last part of their names, too."""


def _in_full(args: Sequence[str]) -> list[str]:
    """Short flags by their full names; kinds of negatives may be parted by commas."""
    full: list[str] = []
    for word in args:
        flag, equals, value = word.partition("=")
        flag = _SHORT.get(flag, flag)
        if flag == "--pairs.negatives" and equals:
            full += [flag, *value.split(",")]
        elif full[-1:] == ["--pairs.negatives"] and not word.startswith("--"):
            full += word.split(",")
        else:
            full.append(f"{flag}{equals}{value}")
    return full


FREE_FIELDS = ("mesh", "out", "cluster", "profile", "processes", "continue_sft", "rejection_sft")
"""Fields in which a resumed run may differ from the folder's config: where it runs, and which
rivals it also trains."""
