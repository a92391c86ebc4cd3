"""The preset `tiny`, by the real commands: the same numbers on every mesh, in one process or two.
The slow tests take 20 steps of SFT and 10 of RFT, the fast ones 8 and 3."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments.rft
import experiments.sft
from persrm_jax.jsonl import read_records
from persrm_jax.metrics import read_metrics
from persrm_jax.models.load import load_model
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.types import Prediction

DATA = (
    "--personas.texts 16 --pairs.num-train 1000 --pairs.num-dev 8 --pairs.num-test 8 "
    "--pairs.num-seen 0 --personas.elsewhere 0"
).split()
SFT = "--sft.eval-every 0 --sft.save-every 50".split()
RFT = (
    "--rft.prompts 8 --rft.group-size 4 --rft.eval-every 0 --eval.max-pairs 2 --eval.batch-size 8"
).split()
WHOLE, SHORT = (20, 10), (8, 3)
"""Steps of SFT and RFT."""
TAGS = {
    "sft": ("loss/total", "entropy/mean", "loss/grad_norm"),
    "rft": ("loss/total", "kl/mean", "entropy/mean", "reward/mean", "sampler/checksum"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, by mesh; `start` is where their RFT begins: a model that keeps the grammar, so that
    rewards within groups differ."""
    folder = tmp_path_factory.mktemp("runs")
    start = ["--sft.steps", "100", "--sft.eval-every", "0", "--mesh", "2x1"]
    experiments.sft.main([*DATA, *start, "--out", str(folder / "start")])
    return folder


def commands(folder: Path, name: str, steps: tuple[int, int]) -> list[tuple[str, list[str]]]:
    """(module, arguments) of a run's SFT, and of its RFT."""
    init = ["--init", str(folder / "start")]
    sft, rft = (["--sft.steps", str(steps[0])], ["--rft.steps", str(steps[1])])
    return [
        ("experiments.sft", [*DATA, *SFT, *sft, "--out", str(folder / name / "sft-run")]),
        ("experiments.rft", [*DATA, *RFT, *rft, *init, "--out", str(folder / name / "rft-run")]),
    ]


def run(folder: Path, mesh: str, steps: tuple[int, int], impl: str = "auto") -> Path:
    """The run on a mesh of this process's devices; made once."""
    name = f"{mesh}-{impl}-{steps[1]}"
    if not (folder / name).exists():
        for module, args in commands(folder, name, steps):
            sys.modules[module].main([*args, "--mesh", mesh, "--loss.impl", impl])
    return folder / name


def run_two_processes(folder: Path) -> tuple[Path, list[str]]:
    """The run on 8x1, in two processes of four devices, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = ["", ""]
    for module, args in commands(folder, "two", SHORT):
        command = [sys.executable, "-m", module, *args, "--mesh", "8x1"]
        command += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
        processes = [
            subprocess.Popen(
                [*command, "--process-id", str(i)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[1],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            for i in range(2)
        ]
        texts = [process.communicate(timeout=900)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
        said = [before + text for before, text in zip(said, texts, strict=True)]
    return folder / "two", said


def rows(run: Path, stage: str) -> list[dict[str, float]]:
    return read_metrics(run / f"{stage}-run" / stage / "metrics.jsonl")


def params(run: Path, stage: str) -> list[np.ndarray]:
    model = load_model(
        run / f"{stage}-run" / stage / "model", make_mesh(MeshShape(1, 1)), "float32"
    )
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(model.params)]


def assert_same(one: Path, other: Path, steps: tuple[int, int]) -> None:
    """Losses within 1e-5 of the sum of their |terms|, the same tokens, parameters within 1e-4."""
    for stage, num_steps in zip(("sft", "rft"), steps, strict=True):
        pairs = list(zip(rows(one, stage), rows(other, stage), strict=True))
        assert len(pairs) == num_steps
        for a, b in pairs:
            assert a.keys() == b.keys()
            # SFT's terms are all positive: their sum is the loss.
            scale = a["loss/scale"] if stage == "rft" else a["loss/total"]
            assert scale > 0, "no group differed: nothing is compared"
            assert abs(a["loss/total"] - b["loss/total"]) <= 1e-5 * scale
            for tag in TAGS[stage]:
                assert b[tag] == pytest.approx(a[tag], rel=1e-3, abs=1e-6), tag
        if stage == "rft":
            assert [a["sampler/checksum"] for a, _ in pairs] == [
                b["sampler/checksum"] for _, b in pairs
            ]
        ours, theirs = params(one, stage), params(other, stage)
        gap = sum(np.sum((a - b) ** 2) for a, b in zip(ours, theirs, strict=True))
        assert np.sqrt(gap / sum(np.sum(a**2) for a in ours)) <= 1e-4


@pytest.mark.parametrize(
    ("mesh", "steps"),
    [
        ("8x1", SHORT),
        pytest.param("8x1", WHOLE, marks=pytest.mark.slow),
        pytest.param("4x2", WHOLE, marks=pytest.mark.slow),
        pytest.param("2x4", WHOLE, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_trains_as_one_device_does(folder: Path, mesh: str, steps: tuple[int, int]) -> None:
    assert_same(run(folder, "1x1", steps), run(folder, mesh, steps), steps)


@pytest.mark.slow
def test_naive_losses_train_as_chunked_ones_do(folder: Path) -> None:
    assert_same(run(folder, "1x1", WHOLE), run(folder, "1x1", WHOLE, "reference"), WHOLE)


def test_two_processes_train_as_one_does_and_the_first_alone_speaks(folder: Path) -> None:
    one = run(folder, "8x1", SHORT)
    two, (first, second) = run_two_processes(folder)
    assert_same(one, two, SHORT)
    names = sorted(p.name for p in (one / "rft-run" / "evaluation" / "test").glob("*.jsonl"))
    assert "rft.1.jsonl" in names and "rft.wrong_author.jsonl" in names
    for name in names:
        if name != "pairs.jsonl":
            ours, theirs = (
                read_records(r / "rft-run" / "evaluation" / "test" / name, Prediction)
                for r in (one, two)
            )
            assert ours == theirs, name
    assert "documents:" in first and "rft minus rft" in first
    assert "documents:" not in second and "rft minus rft" not in second
    assert len(list((two / "rft-run" / "rft" / "tensorboard").iterdir())) == 1
