"""What the kernels' tests share: their operations in NumPy float64, and the ways to run them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AxisType, Mesh

from kernels import dispatch
from kernels.dispatch import Impl

TPU = ("TPU v4", "tpu", 1)
H100 = ("NVIDIA H100 80GB HBM3", "gpu", 132)
IMPLS = (
    "reference",
    "xla",
    "tpu",
    pytest.param(
        "gpu",
        marks=pytest.mark.skipif(
            not hasattr(mosaic_gpu, "InterpretGPUParams"),
            reason="this jax has no imitation of a GPU: jax 0.11 has",
        ),
    ),
)


@contextlib.contextmanager
def running(name: str) -> Iterator[Impl]:
    """`impl` for a way to run: `tpu` and `gpu` imitate the chips."""
    if name in ("tpu", "gpu"):
        with dispatch.imitate(*(TPU if name == "tpu" else H100)):
            yield "pallas"
    else:
        yield name  # type: ignore[misc]


def make_mesh(shape: str) -> Mesh:
    data, model = map(int, shape.split("x"))
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def random_inputs(
    N: int, D: int, V: int, *, seed: int = 0, scale: float = 1.0, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states, weight and labels, the last column among them; the logits' standard deviation
    is `scale`."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((N, D))
    weight = scale / D**0.5 * rng.standard_normal((V, D))
    labels = rng.integers(0, V, N)
    labels[N // 2] = V - 1
    return jnp.asarray(hidden, dtype), jnp.asarray(weight, dtype), jnp.asarray(labels, "i4")


def softmax(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of the labels, entropies, and log-probabilities of everything."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = logp[np.arange(len(logp)), np.asarray(labels)]
    return chosen, -(np.exp(logp) * logp).sum(axis=-1), logp


def pull_back(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    temperature: float,
    on_logprob: np.ndarray,
    on_entropy: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """d logp_y / d z = onehot - p and d H / d z = -p (log p + H), z = hidden weight^T / t."""
    h, w = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    _, entropy, logp = softmax(hidden, weight, labels, temperature)
    p, onehot = np.exp(logp), np.eye(len(w))[np.asarray(labels)]
    g, e = (np.broadcast_to(x, len(h))[:, None] for x in (on_logprob, on_entropy))
    dz = (g * (onehot - p) - e * p * (logp + entropy[:, None])) / temperature
    return dz @ w, dz.T @ h


def relative_l2(found: Any, want: np.ndarray) -> float:
    found = np.asarray(found, np.float64)
    return float(np.linalg.norm(found - want) / max(np.linalg.norm(want), 1e-30))


def surrogate(
    logp: np.ndarray, inputs: Any, rule: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """GRPO's terms of the tokens that count, their derivatives, and the sums, one token after the
    other."""
    terms, slopes = np.zeros(len(logp)), np.zeros(len(logp))
    sums = dict.fromkeys(("tokens", "policy", "scale", "kl", "clipped_low", "clipped_high"), 0.0)
    ratios = []
    for i, weight in enumerate(np.asarray(inputs.weights, np.float64)):
        if weight == 0:
            continue
        A = float(inputs.advantages[i])
        old = logp[i] if inputs.old is None else float(inputs.old[i])
        r = np.exp(logp[i] - old)
        if inputs.sampler is not None:
            A *= min(np.exp(old - float(inputs.sampler[i])), rule.tis_cap)
        low, high = 1 - rule.clip_low, 1 + rule.clip_high
        if rule.surrogate == "clip":
            clipped = min(max(r, low), high)
            policy = -min(r * A, clipped * A)
            slope = -r * A if r * A <= clipped * A else 0.0
        elif rule.surrogate == "cispo":
            slope = -min(r, high) * A
            policy = slope * logp[i]
        else:
            policy = slope = -r * A
        kl = kl_slope = 0.0
        if inputs.ref is not None:
            d = float(inputs.ref[i]) - logp[i]
            kl, kl_slope = {
                "k1": (-d, 1.0),
                "k2": (d * d / 2, -d),
                "k3": (np.exp(d) - d - 1, 1 - np.exp(d)),
            }[rule.kl_estimator]
        terms[i] = weight * (policy + rule.kl_coef * kl)
        slopes[i] = weight * (slope + rule.kl_coef * kl_slope)
        ratios.append(r)
        sums["tokens"] += 1
        sums["policy"] += weight * policy
        sums["scale"] += abs(weight * policy)
        sums["kl"] += kl
        sums["clipped_low"] += r < low and A <= 0
        sums["clipped_high"] += r > high and A > 0
    sums["ratio_max"], sums["ratio_min"] = max(ratios, default=0.0), min(ratios, default=np.inf)
    return terms, slopes, sums
