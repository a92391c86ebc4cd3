"""`linear_logprob` a chunk of tokens at a time, so that only one chunk's logits exist.

Forward, for each chunk: logits, their statistics, nothing else kept (2 T D V floating-point
operations). Backward: the chunk's logits z again, p = e^(z - log Z), and with dz as
`softmax.logit_gradient` has it, dh = dz W and dW = sum of dz^T h: 8 T D V for both passes, against
6 with all logits stored. Each chunk reads and writes dW once, so chunks want to be large: 1,024
tokens of 152k logits are 0.6 GiB, and 32 such chunks move 140 GB of dW, 40 ms of an H100.
"""

import jax
import jax.numpy as jnp

from kernels import softmax
from kernels.sharding import Axes, sum_vocabulary


def statistics(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, temperature: float
) -> softmax.Statistics:
    """Of tokens [n, D] over a part of the vocabulary [v, D], in one dtype."""

    def one(xs: tuple[jax.Array, jax.Array]) -> softmax.Statistics:
        return softmax.statistics(softmax.logits(xs[0], weight, temperature), xs[1])

    n = softmax.num_chunks(labels, weight, gradient=False)
    found = jax.lax.map(one, (softmax.chunks(hidden, n), softmax.chunks(labels, n)))
    return softmax.Statistics(*(softmax.whole(x, len(labels)) for x in found))


def gradients(
    axes: Axes,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    found: softmax.Outcome,
    cotangents: tuple[jax.Array, jax.Array],
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Of tokens, summed over the vocabulary's parts, and of this part of the vocabulary, float32,
    from the cotangents of log-probability and entropy."""

    def one(dw: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        h, label, *rest = xs
        z = softmax.logits(h, weight, temperature)
        dz = softmax.logit_gradient(
            z, label, softmax.Outcome(*rest[:3]), rest[3], rest[4], temperature
        )
        dh, more = softmax.pull_back(dz, h, weight)
        return dw + more, sum_vocabulary(axes, dh).astype(h.dtype)

    n = softmax.num_chunks(labels, weight, gradient=True)
    rows = (hidden, labels, *found, *cotangents)
    start = jnp.zeros(weight.shape, jnp.float32)
    dw, dh = jax.lax.scan(one, start, tuple(softmax.chunks(x, n) for x in rows))
    return softmax.whole(dh, len(labels)), dw
