"""The public function: it picks the implementation, and places it on the mesh."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from kernels import softmax
from kernels.dispatch import Impl, require_pallas, target, tuned
from kernels.linear_logprob import gpu, reference, tpu, xla
from kernels.sharding import (
    Axes,
    axes_of,
    gather_weight,
    local_ids,
    over_mesh,
    scatter_gradient,
)


def linear_logprob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, " N"],
    *,
    temperature: float = 1.0,
    impl: Impl = "auto",
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Log-probability of each label under softmax(hidden weight^T / temperature), and entropy.

    Over a mesh each device takes its own tokens (`data`) and its own part of the vocabulary
    (`model`): the weight is gathered along `data` once a pass, its gradient scattered once, and
    what crosses `model` are four numbers a token, and the gradient of `hidden`. A training loss
    does better with `linear_loss`, which forms no logits a second time.

    Args:
        hidden: states after the final norm; the product is taken in their dtype, sums in float32.
        weight: the output projection.
        labels: in [0, V).
        impl: `reference` holds all logits at once, `xla` a chunk of them, `pallas` a tile.

    Returns:
        Log-probabilities and entropies in nats, float32.

    Raises:
        ValueError: `pallas` where it cannot run.
    """
    if impl == "reference":
        return reference.linear_logprob(hidden, weight, labels, temperature)
    if impl == "auto":
        wanted = tuned().linear_logprob
        impl = "xla" if wanted == "pallas" and _unfit(hidden, weight) else wanted
    elif impl == "pallas":
        require_pallas("linear_logprob", _unfit(hidden, weight))
    return _linear_logprob(impl, temperature, hidden, weight, labels)


def _unfit(hidden: jax.Array, weight: jax.Array) -> str | None:
    """Why the chip's kernel cannot take these arrays; None where it can."""
    if target().platform != "gpu":
        return None
    axes = axes_of(hidden.shape[0], weight.shape[0])
    parts = 1
    if axes.vocabulary is not None:
        parts = jax.sharding.get_abstract_mesh().shape[axes.vocabulary]
    return gpu.unfit(hidden.shape[1], weight.shape[0] // parts, str(hidden.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_logprob(
    impl: str, temperature: float, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _forward(impl, temperature, hidden, weight, labels)[0]


def _forward(
    impl: str, temperature: float, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    axes = axes_of(hidden.shape[0], weight.shape[0])
    local = partial(_local_forward, axes, impl, temperature)
    rows = axes.rows
    found = over_mesh(local, (rows, axes.matrix, rows), rows)(hidden, weight, labels)
    return found[:2], (hidden, weight, labels, *found)


def _backward(
    impl: str,
    temperature: float,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None]:
    axes = axes_of(saved[0].shape[0], saved[1].shape[0])
    local = partial(_local_backward, axes, temperature)
    rows, matrix = axes.rows, axes.matrix
    dh, dw = over_mesh(local, (rows, matrix, *(rows,) * 6), (rows, matrix))(*saved, *cotangents)
    return dh, dw, None


_linear_logprob.defvjp(_forward, _backward)


def _local_forward(
    axes: Axes,
    impl: str,
    temperature: float,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
) -> softmax.Outcome:
    weight = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, weight.shape[0])
    statistics = xla.statistics
    if impl == "pallas":
        statistics = tpu.statistics if target().platform == "tpu" else gpu.statistics
    part = statistics(hidden, weight, local, temperature)
    return softmax.outcome(softmax.over_vocabulary(axes, part))


def _local_backward(
    axes: Axes,
    temperature: float,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    logprobs: jax.Array,
    entropy: jax.Array,
    log_z: jax.Array,
    on_logprob: jax.Array,
    on_entropy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """For every implementation: kernels of their own for dh and dW would form the logits once more
    each, 10 T D V operations in all against the 8 of this."""
    whole = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, whole.shape[0])
    found = softmax.Outcome(logprobs, entropy, log_z)
    cotangents = (on_logprob, on_entropy)
    dh, dw = xla.gradients(axes, hidden, whole, local, found, cotangents, temperature)
    return dh, scatter_gradient(axes, dw).astype(weight.dtype)
