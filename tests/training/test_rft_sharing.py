"""Losses and gradients do not depend on how a group's prompt is computed: with each completion,
once, or once in a row that several groups share. Every variant, on and off its rollout's policy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import SMALL, random_params

from persrm_jax.data.packed_groups import pack_groups
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.rl.losses import VARIANTS
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.training.rft_programs import RftBatch, make_rft_loss
from persrm_jax.types import Groups

P, S, G, T = 8, 9, 3, 6


def make_batch(off_policy: bool) -> RftBatch:
    """Ragged groups, one of them left out, and one completion that nothing is learnt from."""
    rng = np.random.default_rng(3)
    prompt_mask = np.arange(S) >= S - rng.integers(1, S + 1, P)[:, None]
    mask = np.arange(T) < rng.integers(1, T + 1, (P, G))[..., None]
    prompt = rng.integers(3, 300, (P, S)).astype(np.int32) * prompt_mask
    tokens = rng.integers(3, 300, (P, G, T)).astype(np.int32) * mask
    kept = np.arange(P) != 2
    counts = mask & kept[:, None, None]
    counts[4, 1] = False
    logprobs = rng.normal(-5.8, 0.2, (3, P, G, T)).astype(np.float32)
    advantages = rng.standard_normal((P, G)).astype(np.float32)
    groups = Groups(prompt, prompt_mask, tokens, mask)
    old = logprobs[2] if off_policy else None
    return RftBatch(groups, kept, counts, advantages, logprobs[0], logprobs[1], old)


def packed(batch: RftBatch, num_devices: int = 1) -> RftBatch:
    rows = pack_groups(batch.groups, 2 * (S + G * T), num_devices=num_devices)
    return batch._replace(groups=batch.groups._replace(packed=rows))


def loss_and_gradients(params: Params, batch: RftBatch, variant: str, shared: bool) -> Any:
    loss_fn = make_rft_loss(
        SMALL, ComputeConfig(), VARIANTS[variant], temperature=0.8, shared=shared
    )
    batch = jax.tree.map(jnp.asarray, batch)
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch)
    return float(loss), float(metrics["loss/scale"]), gradients


def assert_same(found: Any, want: Any) -> None:
    scale = want[1]
    assert scale > 0.01 and abs(found[0] - want[0]) <= 1e-5 * scale
    norms = [float(jnp.linalg.norm(x.ravel())) for x in jax.tree.leaves(want[2])]
    assert min(norms) > 0
    for one, other, norm in zip(
        jax.tree.leaves(found[2]), jax.tree.leaves(want[2]), norms, strict=True
    ):
        gap = np.linalg.norm(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        assert gap <= 1e-5 * norm


_ALIKE = ("dr_grpo", "cispo")
"""Variants that take the same path through a group as others that are tested at once."""


@pytest.mark.parametrize(
    ("variant", "off_policy"),
    [
        ("grpo", False),
        *(
            pytest.param(name, True, marks=[pytest.mark.slow] if name in _ALIKE else [])
            for name in VARIANTS
        ),
    ],
)
def test_every_variant(variant: str, off_policy: bool) -> None:
    params, batch = random_params(SMALL), make_batch(off_policy)
    want = loss_and_gradients(params, batch, variant, shared=False)
    assert_same(loss_and_gradients(params, batch, variant, shared=True), want)
    assert_same(loss_and_gradients(params, packed(batch), variant, shared=True), want)


@pytest.mark.parametrize(("shape", "variant"), [("8x1", "grpo"), ("4x2", "gspo")])
def test_on_a_mesh(shape: str, variant: str) -> None:
    params, batch = random_params(SMALL), make_batch(True)
    want = loss_and_gradients(params, batch, variant, shared=False)
    size = MeshShape.parse(shape)
    mesh = make_mesh(size)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(SMALL, mesh))
        for one in (batch, packed(batch, size.data)):
            there = jax.device_put(one, batch_sharding(mesh))
            assert_same(loss_and_gradients(placed, there, variant, shared=True), want)
