import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from kernels.sharding import Axes, local_ids


def test_a_label_of_another_part_matches_no_row() -> None:
    """Cut-cross-entropy's PR 59."""
    axes = Axes(vocabulary="model")
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:2]).reshape(1, 2),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )
    local = jax.shard_map(
        lambda labels: local_ids(axes, labels, 5)[None],
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec("model"),
        check_vma=False,
    )(jnp.arange(10))
    want = [[0, 1, 2, 3, 4, -1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, 0, 1, 2, 3, 4]]
    assert np.asarray(local).tolist() == want
