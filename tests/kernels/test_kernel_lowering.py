"""Every kernel, lowered for chips that are not here by plain jaxlib."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from float64 import H100
from jax.export import DisabledSafetyCheck
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from kernels.group_advantage import group_advantage
from kernels.grpo_loss import grpo_loss
from kernels.linear_logprob import linear_logprob
from kernels.linear_logprob.tpu import VMEM_MIB
from kernels.token_loss import TokenInputs, TokenRule, token_loss

pytestmark = pytest.mark.lowering
CHIPS = {**{kind: (kind, "tpu", 1) for kind in VMEM_MIB}, "H100": H100}
RULE = TokenRule(0.2, 0.28, 0.04, "k3")
QWEN = (4096, 3584, 151_936)
SHARD = (200, 896, 151_936)


def array(*shape: int, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def tokens(N: int) -> TokenInputs:
    return TokenInputs(*[array(N)] * 4)


def logprob(size: tuple[int, int, int]) -> tuple[Callable[..., Any], list[Any]]:
    N, D, V = size
    args = [array(N, D, dtype=jnp.bfloat16), array(V, D), array(N, dtype="int32")]
    return lambda *args: linear_logprob(*args, temperature=0.7, impl="pallas"), args


def grpo(size: tuple[int, int, int]) -> tuple[Callable[..., Any], list[Any]]:
    def loss(hidden: Any, weight: Any, labels: Any, given: Any) -> jax.Array:
        return grpo_loss(hidden, weight, labels, given, RULE, impl="pallas").loss

    return jax.grad(loss, argnums=(0, 1)), [*logprob(size)[1], tokens(size[0])]


def on_tokens(size: tuple[int, int, int]) -> tuple[Callable[..., Any], list[Any]]:
    def loss(logprobs: jax.Array, given: Any) -> Any:
        return token_loss(logprobs, given, RULE, impl="pallas")

    return jax.grad(loss, has_aux=True), [array(size[0]), tokens(size[0])]


def advantage(size: tuple[int, int, int]) -> tuple[Callable[..., Any], list[Any]]:
    def run(*args: Any) -> jax.Array:
        return group_advantage(
            *args, baseline="leave_one_out", scale_by_std=True, eps=1e-6, impl="pallas"
        )

    N = size[0]
    return run, [array(N), array(N, dtype="int32"), array(N, dtype="bool")]


KERNELS = {
    "linear_logprob": (logprob, 1),
    "grpo_loss": (grpo, 2),
    "token_loss": (on_tokens, 1),
    "group_advantage": (advantage, 1),
}


def mesh_of(chip: str, shape: tuple[int, int]) -> AbstractMesh:
    kind, platform, cores = CHIPS[chip]
    return AbstractMesh(
        shape,
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        abstract_device=AbstractDevice(kind, cores, platform),
    )


@pytest.mark.parametrize("size", [QWEN, SHARD], ids=["whole", "ragged"])
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_lowers(name: str, chip: str, size: tuple[int, int, int]) -> None:
    make, count = KERNELS[name]
    function, args = make(size)
    platform, call = ("cuda", "mosaic_gpu_v2") if chip == "H100" else ("tpu", "tpu_custom_call")
    with jax.sharding.use_abstract_mesh(mesh_of(chip, (1, 1))):
        text = jax.export.export(
            jax.jit(function),
            platforms=[platform],
            disabled_checks=[DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
        )(*args).mlir_module()
    assert text.count(f"@{call}(") == count


@pytest.mark.parametrize("chip", ["TPU v5", "H100"])
def test_a_training_loss_lowers_over_a_mesh(chip: str) -> None:
    """Under plain `jit` a TPU refuses a kernel that nobody placed, and a GPU gathers for it."""
    mesh = mesh_of(chip, (4, 2))
    function, args = grpo((4096, 896, 151_936))
    specs = [PartitionSpec("data"), PartitionSpec(("model", "data")), *[PartitionSpec("data")] * 2]
    placed = [
        jax.tree.map(
            lambda x, spec=spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            arg,
        )
        for arg, spec in zip(args, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(function).trace(*placed)
        text = lowered.lower(lowering_platforms=("cuda" if chip == "H100" else "tpu",)).as_text()
    assert ("mosaic_gpu_v2" if chip == "H100" else "tpu_custom_call") in text
    assert "1024x896" in text and "75968x896" in text  # a device's tokens and vocabulary
