"""The kernels on the chip that they are written for, at sizes of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import relative_l2

from kernels.cases import OPERATIONS, Size, compiled
from kernels.dispatch import Impl

SIZES = (Size(1000, 896, 151_936), Size(128, 512, 4099))
BOUND = 5e-3
"""Of bfloat16 products, both sides rounding in their own order."""


def run(operation: str, impl: Impl, size: Size) -> list[jax.Array]:
    op = OPERATIONS[operation]
    arrays = op.arrays(size)
    return jax.tree.leaves(compiled(op, impl, arrays)(*arrays))


@pytest.mark.accelerator
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_equals_the_reference(operation: str, size: Size) -> None:
    pairs = zip(run(operation, "pallas", size), run(operation, "reference", size), strict=True)
    for one, other in pairs:
        want = np.asarray(other, np.float64)
        assert jnp.isfinite(one).all()
        assert relative_l2(one, want) < BOUND or np.abs(np.asarray(one) - want).max() < 1e-6
