"""What several processes agree on; tests/test_equality.py runs two."""

from typing import Any

import numpy as np
import pytest

from persrm_jax.distributed import ClusterConfig, any_process, fetch, initialize, is_main, on_main


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
