"""Eight CPU devices for every test, as `--mesh 8x1` simulates them."""

import jax
import pytest
from jax.sharding import Mesh

from persrm_jax.sharding import MeshShape, make_mesh

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    """One device."""
    return make_mesh(MeshShape(1, 1))
