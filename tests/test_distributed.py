"""What several processes agree on; tests/test_equality.py runs two."""

from typing import Any

import jax
import numpy as np
import pytest

import persrm_jax.distributed
from persrm_jax.distributed import (
    ClusterConfig,
    any_process,
    fetch,
    initialize,
    is_main,
    on_main,
    place_rows,
    share_work,
)
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh


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


def test_each_process_does_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, one after the other, the gathering between them replayed."""
    asked: dict[int, list[int]] = {}

    def gather(mine: np.ndarray) -> np.ndarray:
        sent.append(mine)
        return np.stack(sent)

    for count in (7, 9, 2):
        sent: list[np.ndarray] = []
        monkeypatch.setattr(persrm_jax.distributed.multihost_utils, "process_allgather", gather)
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        for me in range(3):
            monkeypatch.setattr(jax, "process_index", lambda me=me: me)
            asked[me] = []
            found = share_work(lambda i, me=me: asked[me].append(i) or i * i, count)
        assert found == [i * i for i in range(count)], "the last process has what all sent"
        assert [asked[me] for me in range(3)] == [list(range(me, count, 3)) for me in range(3)]


def test_all_stop_where_one_finds_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(i: int) -> int:
        raise ValueError("pair p: too long")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gathered: list[np.ndarray] = []

    def gather(mine: np.ndarray) -> np.ndarray:
        gathered.append(mine)
        return np.stack([mine, np.zeros_like(mine)])

    monkeypatch.setattr(persrm_jax.distributed.multihost_utils, "process_allgather", gather)
    with pytest.raises(ValueError, match="pair p: too long"):
        share_work(refuse, 4)
    monkeypatch.setattr(
        persrm_jax.distributed.multihost_utils,
        "process_allgather",
        lambda mine: np.stack([gathered[0], mine]),
    )
    with pytest.raises(ValueError, match="process 0 stopped"):
        share_work(lambda i: i, 4)


def test_a_batch_is_placed_row_by_row() -> None:
    mesh = make_mesh(MeshShape(4, 2))
    rows = np.arange(24).reshape(8, 3)
    placed = place_rows(lambda asked: {"x": rows[asked]}, 8, batch_sharding(mesh))
    np.testing.assert_array_equal(placed["x"], rows)
    assert placed["x"].sharding.spec[0] == "data"
