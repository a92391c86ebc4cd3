"""Kills a run at random moments, starts it again each time, and compares it with one that was left
alone: parameters, and every (step, tag, value) of metrics.jsonl and TensorBoard outside `time/`.

    python -m benchmarks.crash [--kills 10] [--out results/crash.md]      # or: make crash

SIGKILL, so that nothing can be tidied up. The moments are random: a step, and how far into the
next ones. One kill more waits for a checkpoint that is being written. Two restarts, one in either
stage, go on over another mesh: their next steps are compared (later ones drift apart, as rounding
does when training amplifies it).
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from persrm_jax import cli
from persrm_jax.jsonl import write_text
from persrm_jax.metrics import read_metrics
from persrm_jax.models.load import load_model
from persrm_jax.runs import provenance
from persrm_jax.sharding import MeshShape, make_mesh

STAGES = ("sft", "rft")
FLAGS = (
    "--personas.texts 16 --pairs.num-train 400 --sft.steps 100 --sft.save-every 10 "
    "--sft.eval-every 30 --sft.stop-accuracy 2 --eval.max-dev-pairs 8 --rft.steps 12 "
    "--rft.prompts 8 --rft.group-size 4 --rft.save-every 2 --rft.eval-every 4 "
    "--rft.sampling.max-new-tokens 64 --eval.max-pairs 2 --eval.batch-size 8"
).split()
NEXT = 20
"""Steps that are compared after a restart over another mesh."""
MOVED = "4x2"
WRITING = "checkpoints/*.orbax-checkpoint-tmp*"


@dataclass(frozen=True)
class Config:
    """How often to kill."""

    kills: int = 10
    """Kills at random moments."""
    seed: int = 0
    """Of the moments."""
    out: Path | None = None
    """Where to write the table, as Markdown."""

    def __post_init__(self) -> None:
        if not 2 <= self.kills <= 20:
            raise ValueError(f"--kills {self.kills}: from 2 to 20 fit into the run")


def start(folder: Path, mesh: str = "1x1") -> subprocess.Popen[bytes]:
    """The real command, in the background, what it says in a file beside the folder."""
    command = [sys.executable, "-m", "experiments.rft", *FLAGS, "--mesh", mesh]
    said = folder.with_suffix(".log").open("ab")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, "--out", str(folder)], stdout=said, stderr=said, env=environment
    )


def finish(folder: Path, mesh: str = "1x1") -> None:
    """Runs to the end.

    Raises:
        ValueError: it did not get there.
    """
    if start(folder, mesh).wait():
        raise ValueError(f"the run failed: {folder.with_suffix('.log').read_text()[-2000:]}")


def position(folder: Path) -> str:
    """Where a run is: its stage and the steps it has logged."""
    done = [s for s in reversed(STAGES) if (folder / s / "metrics.jsonl").is_file()]
    if not done:
        return "before the first step"
    return f"{done[0]} step {len(read_metrics(folder / done[0] / 'metrics.jsonl'))}"


def kill_at(folder: Path, stage: str, step: int, seconds: float) -> str:
    """Starts the run and kills it so many seconds after `stage` has logged `step` in this sitting.

    Raises:
        ValueError: it ended before.
    """
    file = folder / stage / "metrics.jsonl"
    lowest = _num_rows(file)
    process = start(folder)
    begin = None
    while process.poll() is None:
        now = _num_rows(file)
        lowest = min(lowest, now)  # steps to be done again
        if begin is None and now > max(step, lowest):
            begin = time.monotonic()
        if begin is not None and time.monotonic() - begin >= seconds:
            return _kill(process, folder)
        time.sleep(0.002)
    raise ValueError(f"the run ended before it could be killed: {folder}")


def _num_rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_while_writing(folder: Path) -> str:
    """Kills the run as soon as it writes a checkpoint past its first.

    Raises:
        ValueError: it ended before.
    """
    process = start(folder)
    while process.poll() is None:
        if saved(folder, "sft") and any(any((folder / stage).glob(WRITING)) for stage in STAGES):
            return _kill(process, folder)
        time.sleep(0.0005)
    raise ValueError(f"the run ended before it could be killed: {folder}")


def moments(num_kills: int, rng: random.Random) -> list[tuple[str, int]]:
    """(stage, step) of each kill, in order: half of them in either stage."""
    first = sorted(rng.sample(range(1, 95), num_kills - num_kills // 2))
    then = sorted(rng.sample(range(11), num_kills // 2))
    return [("sft", step) for step in first] + [("rft", step) for step in then]


def _kill(process: subprocess.Popen[bytes], folder: Path) -> str:
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = any(any((folder / stage).glob(WRITING)) for stage in STAGES)
    return position(folder) + (", a checkpoint half written" if cut else "")


def logged(folder: Path, stage: str) -> list[tuple[int, str, float]]:
    """(step, tag, value) of metrics.jsonl outside `time/`, in order."""
    return [
        (row["step"], tag, value)
        for row in read_metrics(folder / stage / "metrics.jsonl")
        for tag, value in row.items()
        if tag != "step" and not tag.startswith("time/")
    ]


def shown(folder: Path, stage: str) -> list[tuple[int, str, object]]:
    """The same of what TensorBoard shows."""
    sizes = {"scalars": 0, "tensors": 0, "histograms": 0}
    events = EventAccumulator(str(folder / stage / "tensorboard"), size_guidance=sizes)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    texts, spreads = events.Tags()["tensors"], events.Tags()["histograms"]
    return [
        *((e.step, tag, e.value) for tag in sorted(tags) for e in events.Scalars(tag)),
        *(
            (e.step, tag, e.tensor_proto.string_val[0])
            for tag in sorted(texts)
            for e in events.Tensors(tag)
        ),
        *(
            (e.step, tag, e.histogram_value)
            for tag in sorted(spreads)
            for e in events.Histograms(tag)
        ),
    ]


def params_of(folder: Path, stage: str) -> list[np.ndarray]:
    """A stage's final parameters."""
    model = load_model(folder / stage / "model", make_mesh(MeshShape(1, 1)), "float32")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def compare(one: Path, other: Path) -> list[tuple[str, bool]]:
    """What is the same to the last bit, and whether it is."""
    found = []
    for stage in STAGES:
        pairs = zip(params_of(one, stage), params_of(other, stage), strict=True)
        same = all(a.tobytes() == b.tobytes() for a, b in pairs)
        rows = logged(one, stage)
        found += [
            (f"{stage}: final parameters", same),
            (f"{stage}: {len(rows):,} values of metrics.jsonl", rows == logged(other, stage)),
            (
                f"{stage}: {len(shown(one, stage)):,} values, texts and histograms of TensorBoard",
                shown(one, stage) == shown(other, stage),
            ),
        ]
    return found


def differences(one: Path, other: Path, stage: str, since: int) -> float:
    """The largest of losses, over the sum of their |terms|, in the steps after `since`."""
    rows = (read_metrics(run / stage / "metrics.jsonl") for run in (one, other))
    compared = [(a, b) for a, b in zip(*rows, strict=True) if since <= a["step"] < since + NEXT]
    assert compared and compared[0][0]["step"] == since
    return max(
        # SFT's terms are all positive: their sum is the loss.
        abs(a["loss/total"] - b["loss/total"]) / a.get("loss/scale", a["loss/total"])
        for a, b in compared
    )


def saved(folder: Path, stage: str) -> int:
    """The step of the last checkpoint that is whole; 0 for none."""
    found = (folder / stage / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return max((int(p.parent.name) for p in found if p.parent.name.isdigit()), default=0)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.crash", args)
    rng = random.Random(cfg.seed)
    with tempfile.TemporaryDirectory() as scratch:
        names = ("alone", "killed", "moved", "moved_rft")
        alone, killed, moved, moved_rft = (Path(scratch) / name for name in names)
        finish(alone)
        lines = ["| kill | where |", "| ---: | --- |"]
        for number, (stage, step) in enumerate(moments(cfg.kills, rng), 1):
            rows = read_metrics(alone / stage / "metrics.jsonl")
            length = statistics.median(row["time/step_s"] for row in rows)
            where = kill_at(killed, stage, step, rng.uniform(0, 2 * length))
            lines.append(f"| {number} | {where} |")
            print(lines[-1], flush=True)
            if not moved_rft.exists() and saved(killed, "rft"):
                shutil.copytree(killed, moved_rft)
        finish(killed)
        results = compare(alone, killed)

        where = kill_while_writing(moved)
        shutil.copytree(moved, moved.with_name("resumed"))
        print(f"killed while writing: {where}")
        finish(moved.with_name("resumed"))
        results += [
            (f"after a kill at {where}: {what}", same)
            for what, same in compare(alone, moved.with_name("resumed"))
        ]
        for stage, folder in (("sft", moved), ("rft", moved_rft)):
            since = saved(folder, stage)
            finish(folder, MOVED)
            gap = differences(alone, folder, stage, since)
            what = f"{stage} from step {since} on {MOVED}: losses of the next {NEXT} steps at most"
            results.append((f"{what} {gap:.1e} of the sum of |terms| apart (bar 1e-5)", gap < 1e-5))
    lines += ["", "| compared with the undisturbed run | same |", "| --- | --- |"]
    lines += [f"| {what} | {'yes' if same else 'NO'} |" for what, same in results]
    print("\n".join(lines))
    if cfg.out is not None:
        head = (
            "# Killed and started again\n\nCommand: `make crash`. SIGKILL at random moments of "
            f"`python -m experiments.rft {' '.join(FLAGS)}`.\n\n"
        )
        origin = json.dumps(provenance(), indent=2)
        write_text(cfg.out, head + "\n".join(lines) + f"\n\n```\n{origin}\n```\n")
    if not all(same for _, same in results):
        raise ValueError("the runs differ")


if __name__ == "__main__":
    cli.run_main(main)
