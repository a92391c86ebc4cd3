"""A long RFT run compiles its programs once, and does not grow."""

from pathlib import Path

import numpy as np
import pytest

import experiments.rft
from persrm_jax.metrics import read_metrics

DATA = (
    "--personas.texts 16 --pairs.num-train 200 --pairs.num-dev 8 --pairs.num-test 8 "
    "--pairs.num-seen 0"
).split()
STEPS = (
    "--sft.steps 20 --sft.eval-every 0 --rft.steps 200 --rft.prompts 2 --rft.group-size 4 "
    "--rft.eval-every 0 --rft.save-every 50 --rft.prompt-buckets 3 --rft.sampling.rows 2 "
    "--rft.sampling.max-new-tokens 32 --rft.mini-batches 2 --eval.max-pairs 4 --eval.batch-size 8"
).split()


@pytest.mark.slow
def test_two_hundred_steps_compile_once_and_stay_in_memory(tmp_path: Path) -> None:
    experiments.rft.main([*DATA, *STEPS, "--out", str(tmp_path / "run")])
    rows = read_metrics(tmp_path / "run" / "rft" / "metrics.jsonl")
    compiled = np.array([row["time/compilations"] for row in rows])
    memory = np.array([row["time/memory_gib"] for row in rows])
    assert len(rows) == 200
    assert compiled[:50].sum() > 0
    assert compiled[50:].sum() == 0, np.flatnonzero(compiled[50:]) + 50
    early, late = np.median(memory[50:75]), np.median(memory[-25:])
    assert late < 1.03 * early, (early, late)
