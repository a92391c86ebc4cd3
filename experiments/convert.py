"""A trained model -> a Hugging Face folder, and back.

    python -m experiments.convert --from runs/tiny --to judge/ [--dtype bfloat16]
    python -m experiments.convert --from Qwen/Qwen2.5-0.5B-Instruct --to start/

`--from` names a run (its last trained stage), a model folder that a run saved, or one of its Orbax
checkpoints (RUN/rft/checkpoints/60): the result loads in transformers and vLLM. With --adapter, the
adapters of such a checkpoint alone, as PEFT has them, beside the model they go on (nothing beside
them with --base NAME). Or it names a Hugging Face folder, hub id, `smollm2`, or an adapter's
folder: the result is a model folder of ours, for `--init`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from experiments.prepare import base_model
from experiments.presets import RunConfig
from persrm_jax import cli
from persrm_jax.checkpoint import load_params
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.hf_export import export_hf
from persrm_jax.models.load import (
    Model,
    is_model,
    load_model,
    load_pretrained,
    model_folder,
    save_model,
    stored_dtype,
)
from persrm_jax.models.params import Params
from persrm_jax.models.peft import export_adapter
from persrm_jax.models.trainable import abstract_trained, merge, split
from persrm_jax.runs import RunFolder, read_config_file
from persrm_jax.sharding import MeshShape, make_mesh

STAGES = ("rft", "sft_continued", "sft")
"""Trained stages of a run, the last first."""


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert."""

    from_: cli.From
    """A run, a saved model, an Orbax checkpoint; or a Hugging Face folder or id, or `smollm2`."""
    to: Path
    """A new folder."""
    dtype: str | None = None
    """float32, bfloat16 or float16; by default as stored, so that the way back is exact."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices to load onto, data x model."""
    adapter: bool = False
    """Write a checkpoint's adapters apart, in TO/adapter, and the model they go on in TO/base."""
    base: str = ""
    """The model that the adapters go on, a name or a folder as seen from TO; TO then holds them
    alone."""

    def __post_init__(self) -> None:
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {self.dtype}: expected float32, bfloat16 or float16")
        if self.to.exists() and (not self.to.is_dir() or any(self.to.iterdir())):
            raise ValueError(f"--to {self.to}: exists; name a new folder")
        if self.base and not self.adapter:
            raise ValueError(f"--base {self.base}: goes with --adapter")


def convert(cfg: ConvertConfig, mesh: Mesh) -> str:
    """Converts, and says what was written."""
    source = Path(cfg.from_)
    run: Path | None
    if cfg.adapter:
        return _convert_adapter(cfg, _checkpoint_of(source), mesh)
    if (step := _checkpoint_of(source)) is not None:
        model, run = _load_checkpoint(step, mesh), step.parents[2]
    elif (folder := _trained_folder(source)) is not None:
        model = load_model(folder, mesh, stored_dtype(str(folder)))
        run = next((p for p in folder.parents if (p / "provenance.json").is_file()), None)
    else:
        model = load_pretrained(cfg.from_, mesh, cfg.dtype or stored_dtype(cfg.from_))
        save_model(cfg.to, model)
        return f"{cfg.to}: a model folder for --init ({model.config.num_params:,} parameters)"
    card = model_card(model.config, cfg.from_, run)
    export_hf(cfg.to, model.config, model.params, model.tokenizer, dtype=cfg.dtype, card=card)
    return f"{cfg.to}: a Hugging Face folder ({model.config.num_params:,} parameters)"


def _checkpoint_of(source: Path) -> Path | None:
    """`source`, where it is one step of a run's checkpoints."""
    return source.absolute() if (source / "state").is_dir() and source.name.isdigit() else None


def _trained_folder(source: Path) -> Path | None:
    """The model folder that `source` is, or the last that its stages saved.

    Raises:
        ValueError: a run that has saved no model yet.
    """
    if (source / "model.json").is_file():
        return source
    if not (source / "provenance.json").is_file():
        return None
    for stage in STAGES:
        if is_model(source / stage / "model"):
            return source / stage / "model"
    raise ValueError(f"--from {source}: this run has not saved a model yet")


def _convert_adapter(cfg: ConvertConfig, step: Path | None, mesh: Mesh) -> str:
    if step is None:
        raise ValueError(
            f"--from {cfg.from_}: --adapter needs a checkpoint (RUN/rft/checkpoints/60)"
        )
    run, start, trained = _read_checkpoint(step, mesh)
    if not run.train.lora_rank:
        raise ValueError(f"--from {cfg.from_}: trained without adapters (--train.lora-rank)")
    base, adapter = cfg.base, cfg.to
    if base:
        _check_base(cfg, start.params, mesh)
    else:
        base, adapter = str((cfg.to / "base").absolute()), cfg.to / "adapter"
        export_hf(Path(base), start.config, start.params, start.tokenizer, dtype=cfg.dtype)
    export_adapter(adapter, trained, run.train, base=base, dtype=cfg.dtype or "float32")
    size = sum(leaf.size for leaf in jax.tree.leaves(trained))
    return f"{adapter}: a PEFT adapter ({size:,} parameters), to go on {base}"


def _check_base(cfg: ConvertConfig, trained_on: Params, mesh: Mesh) -> None:
    """RFT's adapters go on the SFT model; on another nothing but the answers would be wrong."""
    beside = os.path.normpath(cfg.to / cfg.base)
    source = beside if os.path.isdir(beside) else cfg.base
    dtype = str(trained_on["embed"]["weight"].dtype)
    named = traverse_util.flatten_dict(load_pretrained(source, mesh, dtype).params)
    wanted = traverse_util.flatten_dict(trained_on)
    if named.keys() != wanted.keys() or not all(
        np.array_equal(named[path], wanted[path]) for path in wanted
    ):
        raise ValueError(f"--base {cfg.base}: is not the model that these adapters were trained on")


def _load_checkpoint(step: Path, mesh: Mesh) -> Model:
    """The model of a train state: what it trained, with what its stage began from."""
    cfg, start, trained = _read_checkpoint(step, mesh)
    if not cfg.train.lora_rank and not cfg.train.freeze:
        return replace(start, params=trained)
    frozen = split(start.params, start.config, cfg.train, jax.random.key(0), mesh)[1]
    return replace(start, params=merge(trained, frozen, cfg.train))


def _read_checkpoint(step: Path, mesh: Mesh) -> tuple[RunConfig, Model, Params]:
    """The config of a checkpoint's run, the model its stage began from, and what it trained."""
    run = step.parents[2]
    if not (run / "config.json").is_file():
        raise ValueError(f"--from {step}: lies in no run folder (RUN/STAGE/checkpoints/STEP)")
    cfg = read_config_file(run / "config.json", RunConfig)
    start = _start_of(step.parents[1].name, cfg, run, mesh)
    dtype = cfg.compute.param_dtype
    return cfg, start, load_params(step, abstract_trained(start.config, cfg.train, mesh, dtype))


def _start_of(stage: str, cfg: RunConfig, run: Path, mesh: Mesh) -> Model:
    """The model that a run's stage began with."""
    if stage == "sft":
        return base_model(cfg, RunFolder(run, cfg), mesh)
    return load_model(model_folder(cfg.init or run), mesh, cfg.compute.param_dtype)


def model_card(config: ModelConfig, source: str, run: Path | None) -> str:
    """The README of an exported model: what it is, how it was trained, how to use it."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [persrm-jax, reward-model, personalization]",
        "---",
        "",
        "# A personalized reasoning reward model",
        "",
        "Given texts that a person wrote and two candidate responses, it reasons about the "
        "person's style and then says which candidate fits (PersRM-R1, arXiv 2508.14076).",
        "",
        f"- Parameters: {config.num_params:,}",
        f"- Converted from: `{source}` by `persrm_jax`' `experiments.convert`",
    ]
    if run is not None:
        lines += _training_lines(run)
    return "\n".join(lines) + "\n"


def _training_lines(run: Path) -> list[str]:
    """How a run trained its model, from the records beside it."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    lines = [
        f"- Preset `{config['preset']}`, base model `{config['model']}`, data "
        f"`{config['data']}`, seed {config['seed']}",
        f"- SFT: at most {config['sft']['steps']} steps of {config['sft']['batch_size']} traces",
        f"- RFT (GRPO): {config['rft']['steps']} steps of {config['rft']['prompts']} prompts x "
        f"{config['rft']['group_size']} completions",
        f"- Commit `{provenance['commit']}`, {provenance['devices']}, {provenance['started']}",
        "",
    ]
    report = run / "report.md"
    if report.is_file():
        text = report.read_text(encoding="utf-8")
        tables = [line for line in text.splitlines() if not line.startswith(("# ", "!["))]
        lines += ["## Evaluation", *tables, ""]
    lines += ["## Configuration", "", "```json", json.dumps(config, indent=2), "```"]
    return lines


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(ConvertConfig, "python -m experiments.convert", args)
    print(convert(cfg, make_mesh(cfg.mesh)))


if __name__ == "__main__":
    cli.run_main(main)
