"""Eight CPU devices for every test, as `--mesh 8x1` simulates them, and a compiler in a hurry: most
of a test's time is compiling programs that run once."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from persrm_jax.sharding import MeshShape, make_mesh  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    """One device."""
    return make_mesh(MeshShape(1, 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first, or it would run alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_equality.py")
