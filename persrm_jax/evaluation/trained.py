"""Where a trained judge's model is, and how it was trained to be asked."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from persrm_jax.data.prompts import PromptConfig
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.load import is_model
from persrm_jax.runs import finished_stages, read_config_file
from persrm_jax.sampling import SamplingConfig

STAGES = ("rft", "sft")
"""Whose model a run is judged by, the first that has finished."""


@dataclass(frozen=True)
class UseConfig:
    """How a trained judge is used; of a run, as it was trained."""

    prompt: PromptConfig = PromptConfig()
    compute: ComputeConfig = ComputeConfig()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    """Of the one answer where one is asked for."""
    many: SamplingConfig = SamplingConfig(temperature=1.0)
    """Of the answers where several are."""
    batch_size: int = 32
    """Questions that are answered at a time."""
    opponents: int = 8
    """With how many others a pairwise judge compares each candidate, if there are more."""
    share_exemplars: bool = True
    """Whether a request that fills a batch has its exemplars read once, not with each question."""
    seed: int = 0
    """Of the samples, and of who meets whom."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}: must be at least 1")
        if self.opponents < 2 or self.opponents % 2:
            raise ValueError(f"--opponents {self.opponents}: must be even and at least 2")
        if self.sampling.temperature > 0 or self.many.temperature == 0:
            raise ValueError("one answer is greedy, several are drawn at a temperature above 0")


def find_model(path: Path | str, stage: str | None = None) -> str:
    """The model that `path` names: of a run, of its best finished stage or of `stage`.

    Raises:
        ValueError: a run in which that stage, or any, has not finished.
    """
    run = Path(path)
    if not _is_run(run):
        if stage is not None:
            raise ValueError(f"--stage {stage}: {path} is no run folder")
        return str(path)
    finished = [stage for stage in finished_stages(run) if is_model(run / stage / "model")]
    if not finished:
        raise ValueError(f"{path}: no stage of training has finished in this run")
    if stage is not None and stage not in finished:
        raise ValueError(f"--stage {stage}: {path} has the models of {', '.join(finished)}")
    return str(run / (stage or next((s for s in STAGES if s in finished), finished[0])) / "model")


def use_config(path: Path | str) -> UseConfig:
    """How the judge at `path` was trained to be asked: by the run that it is, or is in; without
    one, the defaults."""
    folder = Path(path)
    runs = [run for run in (folder, *folder.resolve().parents[:2]) if _is_run(run)]
    if not runs or not folder.is_dir():  # a hub id, whatever folder this is
        return UseConfig()
    read = partial(read_config_file, runs[0] / "config.json")
    greedy = replace(read(SamplingConfig, "eval.sampling"), temperature=0.0)
    drawn = read(SamplingConfig, "rft.sampling")
    warm = drawn.temperature or 1.0
    return UseConfig(
        prompt=read(PromptConfig, "prompt"),
        compute=replace(read(ComputeConfig, "compute"), remat="none"),
        sampling=greedy,
        many=replace(greedy, temperature=warm, truncation=drawn.truncation),
        batch_size=read(int, "eval.batch_size"),
        seed=read(int, "seed"),
    )


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "provenance.json"))
