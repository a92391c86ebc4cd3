from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh
from small_model import random_params, small_model

from persrm_jax.models.config import ComputeConfig, Remat, RopeScaling
from persrm_jax.models.decoder import (
    F32,
    Prefix,
    decode_step,
    forward,
    prefill,
    unstack_layers,
    vocab_weight,
)
from persrm_jax.models.hf import hf_names, load_hf_params, to_hf
from persrm_jax.models.hf_config import load_config
from persrm_jax.models.params import Params, param_shardings, param_specs
from persrm_jax.models.rope import rotation
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh

GOLDENS = Path(__file__).parents[1] / "data" / "hf_goldens"
TOLERANCE = 1e-5
"""Relative L2 in float32."""

CFG = small_model(
    vocab_size=64, mlp_width=48, head_width=12, max_positions=64, rope_theta=100.0, qkv_bias=True
)
B, T = 8, 12
FORWARD = jax.jit(forward, static_argnums=(1, 5))


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(CFG, seed=1)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return random_tokens(seed=0)


@pytest.fixture(scope="module")
def whole(params: Params, tokens: np.ndarray) -> np.ndarray:
    """Hidden states of `tokens` [B, T], each row one sequence without padding."""
    return run(params, tokens)


def random_tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CFG.vocab_size, (B, T)).astype(np.int32)


def count_up(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)


def run(params: Params, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(FORWARD(params, CFG, tokens, count_up(tokens), np.ones_like(tokens)))


def relative_l2(found: np.ndarray, want: np.ndarray) -> float:
    found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
    assert found.shape == want.shape and want.size
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDENS.iterdir()))
def test_logits_equal_those_of_transformers(name: str, mesh: Mesh) -> None:
    cfg = load_config(GOLDENS / name)
    params = load_hf_params(GOLDENS / name, cfg, mesh)
    with np.load(GOLDENS / name / "golden.npz") as golden:
        tokens, mask, logits = (golden[key] for key in ("tokens", "mask", "logits"))
    assert not mask.all()

    hidden = FORWARD(params, cfg, tokens, count_up(tokens), mask.astype(np.int32))
    found = np.asarray(hidden) @ np.asarray(vocab_weight(params)).T

    assert relative_l2(found[mask], logits[mask]) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_gradients_equal_those_of_transformers(name: str, mesh: Mesh) -> None:
    cfg = load_config(GOLDENS / name)
    params = load_hf_params(GOLDENS / name, cfg, mesh)
    with np.load(GOLDENS / name / "golden.npz") as golden:
        arrays = dict(golden)
    tokens, mask = arrays["tokens"], arrays["mask"]

    def loss(params: Params) -> jax.Array:
        hidden = FORWARD(params, cfg, tokens, count_up(tokens), mask.astype(np.int32))
        logprobs = jax.nn.log_softmax(hidden[:, :-1] @ vocab_weight(params).T)
        picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * mask[:, 1:]) / mask[:, 1:].sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)

    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    flat = traverse_util.flatten_dict(grads)
    for path, spec in param_specs(cfg):
        for i, tensor in enumerate(hf_names(path, spec)):
            leaf = flat[path][i] if path[0] == "layers" else flat[path]
            found = to_hf(np.asarray(leaf), path, spec, cfg)
            assert relative_l2(found, arrays[f"gradient {tensor}"]) < 1e-4, tensor


def test_linear_rope_scaling_slows_positions_down() -> None:
    scaled = replace(CFG, rope_scaling=RopeScaling("linear", 4.0))
    positions = jnp.arange(0, 32, 4)[None]
    for found, want in zip(rotation(scaled, positions), rotation(CFG, positions // 4), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_attention_depends_on_distance_and_not_on_position(
    params: Params, tokens: np.ndarray, whole: np.ndarray
) -> None:
    ones = np.ones_like(tokens)
    shifted = FORWARD(params, CFG, tokens, count_up(tokens) + 7, ones)
    spread = FORWARD(params, CFG, tokens, count_up(tokens) * 2, ones)
    assert relative_l2(shifted, whole) < TOLERANCE
    assert relative_l2(spread, whole) > 0.01


def test_a_token_sees_no_later_token(params: Params, tokens: np.ndarray, whole: np.ndarray) -> None:
    changed = tokens.copy()
    changed[:, 6] = (changed[:, 6] + 1) % CFG.vocab_size
    after = run(params, changed)
    assert relative_l2(after[:, :6], whole[:, :6]) < TOLERANCE
    assert all(relative_l2(after[:, t], whole[:, t]) > 1e-3 for t in range(6, T))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(
    side: str, params: Params, tokens: np.ndarray, whole: np.ndarray
) -> None:
    padded = random_tokens(seed=5)
    positions, segments = np.zeros((2, B, T), np.int32)
    for row in range(B):
        n = row + 2
        where = slice(T - n, T) if side == "left" else slice(0, n)
        padded[row, where] = tokens[row, :n]
        positions[row, where] = np.arange(n)
        segments[row, where] = 1

    found = np.asarray(FORWARD(params, CFG, padded, positions, segments))

    assert np.isfinite(found).all()
    for row in range(B):
        # Attention is causal, so a prefix of a row is a shorter row.
        assert relative_l2(found[row][segments[row] == 1], whole[row, : row + 2]) < TOLERANCE


def test_packing_two_sequences_changes_nothing(
    params: Params, tokens: np.ndarray, whole: np.ndarray
) -> None:
    cut = 5
    packed = np.concatenate([tokens[:, :cut], np.roll(tokens, 1, axis=0)[:, : T - cut]], axis=1)
    positions = count_up(tokens) - np.where(np.arange(T) < cut, 0, cut).astype(np.int32)
    segments = np.where(np.arange(T) < cut, 1, 2).astype(np.int32)

    found = FORWARD(params, CFG, packed, positions, np.broadcast_to(segments, (B, T)))

    assert relative_l2(found[:, :cut], whole[:, :cut]) < TOLERANCE
    assert relative_l2(found[:, cut:], np.roll(whole, 1, axis=0)[:, : T - cut]) < TOLERANCE


def test_batch_mates_change_nothing(params: Params, tokens: np.ndarray, whole: np.ndarray) -> None:
    others = random_tokens(seed=6)
    others[1] = tokens[2]
    assert relative_l2(run(params, others)[1], whole[2]) < TOLERANCE
    assert relative_l2(run(params, tokens[2:3])[0], whole[2]) < TOLERANCE


@pytest.mark.parametrize("num_shared", [0, 3])
def test_cached_decoding_equals_the_full_forward_pass(
    params: Params, tokens: np.ndarray, whole: np.ndarray, num_shared: int
) -> None:
    """Also where the prompts' beginning is read once."""
    P, num_new = 6, 5
    prefix = None
    if num_shared:
        tokens = np.concatenate([np.tile(tokens[:1, :num_shared], (B, 1)), tokens], axis=1)
        whole = run(params, tokens)[:, num_shared:]
        start = np.pad(tokens[:1, :num_shared], ((0, 0), (2, 0)))
        prefix = Prefix(jnp.asarray(start), jnp.arange(2 + num_shared)[None] >= 2)
        tokens = tokens[:, num_shared:]
    lengths = [1 + row % P for row in range(B)]
    prompts = random_tokens(seed=7)[:, :P]
    mask = np.arange(P) >= P - np.array(lengths)[:, None]
    for row, n in enumerate(lengths):
        prompts[row, P - n :] = tokens[row, :n]
    step = jax.jit(decode_step, static_argnums=2)
    layers = unstack_layers(params, CFG)

    read = jax.jit(prefill, static_argnums=(1, 4, 5, 6))
    hidden, kv = read(params, CFG, prompts, mask, 1, num_new, F32, prefix)
    found = [hidden]
    for i in range(num_new):
        column = np.array([tokens[row, n + i] for row, n in enumerate(lengths)])
        hidden, kv = step(params, layers, CFG, column, kv)
        found.append(hidden)

    states = np.stack(found, axis=1)
    for row, n in enumerate(lengths):
        assert relative_l2(states[row], whole[row, n - 1 : n + num_new]) < TOLERANCE


def test_remat_keeps_the_gradients(params: Params, tokens: np.ndarray) -> None:
    def gradients(remat: Remat) -> tuple[Params, str]:
        def loss(params: Params) -> jax.Array:
            hidden = forward(
                params,
                CFG,
                jnp.asarray(tokens),
                jnp.asarray(count_up(tokens)),
                jnp.ones_like(tokens),
                ComputeConfig(remat=remat),
            )
            return jnp.mean(jnp.sin(hidden))

        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.lower().compile()(params), str(traced.jaxpr)

    (plain, plain_code), (recomputed, remat_code) = gradients("none"), gradients("full")

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), *(recomputed, plain)
    )
    assert "remat" in remat_code and "remat" not in plain_code


@pytest.mark.parametrize("shape", ["8x1", "4x2", "2x4"])
def test_sharded_equals_unsharded(
    shape: str, params: Params, tokens: np.ndarray, whole: np.ndarray
) -> None:
    mesh = make_mesh(MeshShape.parse(shape))
    placed = jax.device_put(params, param_shardings(CFG, mesh))
    assert not placed["layers"]["gate"]["kernel"].sharding.is_fully_replicated
    batch = (tokens, count_up(tokens), np.ones_like(tokens))

    with jax.set_mesh(mesh):
        hidden = FORWARD(placed, CFG, *jax.device_put(batch, batch_sharding(mesh)))

    assert len(hidden.sharding.device_set) == 8
    assert not hidden.sharding.is_fully_replicated
    assert relative_l2(hidden, whole) < TOLERANCE


def test_bfloat16_compute_stays_near_float32(
    params: Params, tokens: np.ndarray, whole: np.ndarray
) -> None:
    found = FORWARD(
        params,
        CFG,
        tokens,
        count_up(tokens),
        np.ones_like(tokens),
        ComputeConfig(dtype="bfloat16"),
    )
    assert found.dtype == jnp.bfloat16
    assert 1e-4 < relative_l2(found, whole) < 0.05
