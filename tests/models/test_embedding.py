import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from persrm_jax.models.embedding import look_up
from persrm_jax.sharding import MeshShape, make_mesh

V, D = 24, 16


@pytest.mark.parametrize("shape", [None, "1x1", "8x1", "4x2", "2x4", "1x8"])
@pytest.mark.parametrize("num_rows", [8, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_their_gradient(shape: str | None, num_rows: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((V, D)).astype(np.float32)
    tokens = rng.integers(0, V, (num_rows, 5), dtype=np.int32)
    tokens[0, :3] = 0, V - 1, 0  # the ends, and one twice
    cotangent = rng.standard_normal((num_rows, 5, D)).astype(np.float32)

    def run(weight: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, pull_back = jax.vjp(lambda w: look_up(w, tokens, dtype), weight)
        return out, pull_back(jnp.asarray(cotangent, dtype))[0]

    if shape is None:
        out, gradient = jax.jit(run)(jnp.asarray(weight), jnp.asarray(tokens))
    else:
        mesh = make_mesh(MeshShape.parse(shape))
        sharding = NamedSharding(mesh, PartitionSpec(("model", "data")))
        with jax.set_mesh(mesh):
            out, gradient = jax.jit(run)(jax.device_put(weight, sharding), tokens)
        assert gradient.sharding.is_equivalent_to(sharding, 2)
    want = np.zeros((V, D))
    np.add.at(want, tokens, np.asarray(jnp.asarray(cotangent, dtype), np.float64))
    assert out.dtype == dtype and gradient.dtype == np.float32
    np.testing.assert_array_equal(out, jnp.asarray(weight, dtype)[tokens])
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-5)
