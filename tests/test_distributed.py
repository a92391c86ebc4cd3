"""Two processes of four devices, over loopback, against one process of eight: the real command."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments.rft
from persrm_jax.distributed import ClusterConfig, any_process, fetch, initialize, is_main, on_main
from persrm_jax.jsonl import read_records
from persrm_jax.metrics import read_metrics
from persrm_jax.types import Prediction

FLAGS = (
    "--mesh 8x1 --personas.num-personas 24 --personas.texts 8 --pairs.num-train 60 "
    "--pairs.num-dev 6 --pairs.num-test 6 --pairs.num-seen 0 --sft.steps 3 --sft.batch-size 8 "
    "--sft.eval-every 2 --eval.max-dev-pairs 4 --rft.steps 2 --rft.prompts 8 --rft.group-size 2 "
    "--rft.sampling.max-new-tokens 12 --rft.eval-every 0 --eval.sampling.max-new-tokens 12 "
    "--eval.batch-size 8 --eval.max-pairs 4"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The folders of both runs, and what each of the two processes printed."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.rft", *FLAGS, "--out", str(folder / "two")]
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
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    experiments.rft.main([*FLAGS, "--out", str(folder / "one")])
    return folder / "one", folder / "two", said


@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_every_number_is_the_same(runs: tuple[Path, Path, list[str]], stage: str) -> None:
    one, two = (read_metrics(folder / stage / "metrics.jsonl") for folder in runs[:2])
    assert len(one) == len(two) > 1
    for here, there in zip(one, two, strict=True):
        assert here.keys() == there.keys()
        for tag in here:
            if not tag.startswith("time/"):
                assert there[tag] == pytest.approx(here[tag], rel=1e-5, abs=1e-6), tag


def test_every_judgement_is_the_same(runs: tuple[Path, Path, list[str]]) -> None:
    names = sorted(p.name for p in (runs[0] / "evaluation" / "test").glob("*.jsonl"))
    assert "rft.1.jsonl" in names and "sft.wrong_author.jsonl" in names
    for name in names:
        if name != "pairs.jsonl":
            one, two = (
                read_records(folder / "evaluation" / "test" / name, Prediction)
                for folder in runs[:2]
            )
            assert one == two, name


def test_the_first_process_alone_speaks_and_writes(runs: tuple[Path, Path, list[str]]) -> None:
    first, second = runs[2]
    assert "rft minus sft" in first and "documents:" in first
    assert "rft minus sft" not in second and "documents:" not in second
    events = list((runs[1] / "rft" / "tensorboard").iterdir())
    assert len(events) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_processes": 2}, "--coordinator, --num-processes and --process-id go together"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process-id 2: must be from 0 to 1",
        ),
    ],
)
def test_a_bad_cluster_names_its_flags(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterConfig(**fields)


def test_devices_that_processes_cannot_share() -> None:
    cluster = ClusterConfig("127.0.0.1:1", 3, 0)
    with pytest.raises(ValueError, match="--num-processes 3: does not divide the mesh's 8 devices"):
        initialize(cluster, 8)


def test_alone_nothing_is_waited_for() -> None:
    initialize(ClusterConfig(), 8)
    assert is_main() and any_process(True) and not any_process(False)
    done: list[int] = []
    on_main(lambda: done.append(1))
    assert done == [1]
    np.testing.assert_array_equal(fetch({"x": np.arange(3)})["x"], np.arange(3))

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        on_main(refuse)
