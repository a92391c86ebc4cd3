"""Operations on a vocabulary matrix [V, D], taken apart by hand over a mesh of `data` and `model`.

Each device has its own tokens, and rows of the matrix: `model` splits the vocabulary, and `data`
splits each part again. Along `data` a part is gathered before use, and its gradient summed and
scattered after (fully sharded data parallelism); along `model` only a few numbers a token are
summed. The compiler, left alone, may gather logits, or sum the gradient whole on every device for
every chunk of tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


class Axes(NamedTuple):
    """Mesh axes along which an operation's arrays are split; None where one is not."""

    tokens: str | None = None
    vocabulary: str | None = None
    shards: str | None = None
    """Along which a part of the vocabulary is split between uses."""
    repeats: int = 1
    """How many devices of `shards` see the same tokens."""

    @property
    def rows(self) -> PartitionSpec:
        """Of arrays that begin with rows of tokens."""
        return PartitionSpec(self.tokens)

    @property
    def whole(self) -> PartitionSpec:
        """Of what is the same everywhere."""
        return PartitionSpec()

    @property
    def matrix(self) -> PartitionSpec:
        """Of the matrix and its gradient."""
        return PartitionSpec(tuple(axis for axis in (self.vocabulary, self.shards) if axis))


def axes_of(num_rows: int, vocab_size: int) -> Axes:
    """How the mesh in force splits rows of tokens and a vocabulary: as it divides them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Axes()
    data, model = mesh.shape["data"], mesh.shape["model"]
    splits_rows = num_rows % data == 0
    splits_vocabulary = vocab_size % model == 0
    parts = model if splits_vocabulary else 1
    return Axes(
        tokens="data" if splits_rows else None,
        vocabulary="model" if model > 1 and splits_vocabulary else None,
        shards="data" if data > 1 and vocab_size % (parts * data) == 0 else None,
        repeats=1 if splits_rows else data,
    )


def over_mesh(local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`local` on every device of the mesh in force; without one, as it is. Not to be
    differentiated: without checks of replication a sum's transpose is a sum, once too often."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def gather_weight(axes: Axes, weight: jax.Array) -> jax.Array:
    """The local part of the vocabulary, whole."""
    if axes.shards is None:
        return weight
    return jax.lax.all_gather(weight, axes.shards, axis=0, tiled=True)


def scatter_gradient(axes: Axes, gradient: jax.Array) -> jax.Array:
    """The sum over devices of the gradient of what `gather_weight` gave, as the weight lies."""
    if axes.shards is not None:
        gradient = gradient / axes.repeats
        return jax.lax.psum_scatter(gradient, axes.shards, scatter_dimension=0, tiled=True)
    return gradient if axes.tokens is None else jax.lax.psum(gradient, axes.tokens)


def local_ids(axes: Axes, ids: jax.Array, size: int) -> jax.Array:
    """Token ids as rows of the local part of the vocabulary, of `size` rows; -1 where they lie in
    another part, and so match no row."""
    if axes.vocabulary is None:
        return ids
    local = ids - size * jax.lax.axis_index(axes.vocabulary)
    return jnp.where((local >= 0) & (local < size), local, -1)


def sum_vocabulary(axes: Axes, x: jax.Array) -> jax.Array:
    """What each part of the vocabulary adds."""
    return x if axes.vocabulary is None else jax.lax.psum(x, axes.vocabulary)


def sum_tokens(axes: Axes, x: jax.Array) -> jax.Array:
    """What each device's tokens add."""
    return x if axes.tokens is None else jax.lax.psum(x, axes.tokens)
