"""The largest models, sharded over 64 chips that nobody here has, lowered without allocating."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec
from small_model import small_model

from persrm_jax.models.config import SIZES, ComputeConfig
from persrm_jax.models.params import abstract_params
from persrm_jax.sampling import Ending, SamplingConfig, make_generate
from persrm_jax.training.sft import make_sft_loss
from persrm_jax.types import Batch

MODELS = {
    "72b": (SIZES["Qwen/Qwen2.5-72B-Instruct"], 72.7e9),
    "32b": (SIZES["Qwen/Qwen3-32B"], 32.8e9),
}
CHIPS = {
    "v5p": ("tpu", ("TPU v5p", 1, "tpu"), "splash"),
    # cuDNN's kernel cannot be traced without a GPU.
    "h100": ("cuda", ("NVIDIA H100 80GB HBM3", 132, "gpu"), "xla"),
}
B, T = 64, 4096


@pytest.fixture(params=CHIPS)
def chip(request: Any) -> str:
    return request.param


@pytest.fixture
def mesh(chip: str) -> AbstractMesh:
    device = AbstractDevice(*CHIPS[chip][1])
    kinds = (AxisType.Auto, AxisType.Auto)
    return AbstractMesh((8, 8), ("data", "model"), axis_types=kinds, abstract_device=device)


def rows(mesh: AbstractMesh, dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        shape or (B, T), dtype, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )


def lower(function: Any, chip: str, mesh: AbstractMesh, *args: object) -> str:
    with jax.sharding.use_abstract_mesh(mesh):
        return function.trace(*args).lower(lowering_platforms=(CHIPS[chip][0],)).as_text()


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step(name: str, chip: str, mesh: AbstractMesh) -> None:
    cfg, num_params = MODELS[name]
    assert abs(cfg.num_params - num_params) < 0.01 * num_params
    compute = ComputeConfig(dtype="bfloat16", remat="full", attention=CHIPS[chip][2])
    params = abstract_params(cfg, mesh, "bfloat16")
    for leaf in jax.tree.leaves(params):
        if leaf.size > 10**8:  # every large array lies in 64 parts
            assert leaf.size == 64 * np.prod(leaf.sharding.shard_shape(leaf.shape))
    batch = Batch(*(rows(mesh, dtype) for dtype in ("int32", "int32", "int32", "bool")))
    step = jax.jit(jax.grad(make_sft_loss(cfg, compute), has_aux=True))

    text = lower(step, chip, mesh, params, batch)

    assert "sharding" in text and f"{cfg.num_layers}x{cfg.width}" in text
    # Forward, its recomputation, and two kernels of the backward pass, once for all layers.
    assert text.count("@tpu_custom_call") == (4 if chip == "v5p" else 0)


@pytest.mark.parametrize("name", MODELS)
def test_generation(name: str, chip: str, mesh: AbstractMesh) -> None:
    cfg, _ = MODELS[name]
    compute = ComputeConfig(dtype="bfloat16", attention=CHIPS[chip][2])
    generate = make_generate(
        cfg, SamplingConfig(64), ending=Ending((1,), 0), num_samples=8, compute=compute
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8 * B))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding)
    prompts = rows(mesh, "int32", B, 1024), rows(mesh, "bool", B, 1024)

    text = lower(generate, chip, mesh, abstract_params(cfg, mesh, "bfloat16"), *prompts, keys)

    # The cache of one layer, 8 key-value heads: 64 prompts of 1,024 positions, 512 rows of 64.
    assert f"64x8x1024x{cfg.head_width}xbf16" in text
    assert f"512x8x64x{cfg.head_width}xbf16" in text


def test_a_step_is_compiled_once_for_all_layers() -> None:
    """The program of 40 layers is as long as that of 4."""
    sizes = []
    for num_layers in (4, 40):
        cfg = small_model(num_layers=num_layers)
        params = abstract_params(cfg, AbstractMesh((1, 1), ("data", "model")))
        params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), params)
        batch = Batch(*(jax.ShapeDtypeStruct((2, 16), d) for d in ("i4", "i4", "i4", "bool")))
        step = jax.jit(jax.grad(make_sft_loss(cfg, ComputeConfig()), has_aux=True))
        sizes.append(len(step.lower(params, batch).as_text().splitlines()))
    assert sizes[0] == sizes[1]
