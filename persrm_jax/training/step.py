"""The train state, and one optimizer step made from a loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh

from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig, join
from persrm_jax.sharding import replicated
from persrm_jax.types import Totals

Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]
"""(params, batch, totals) -> (loss, metrics). `totals` are those of the whole batch, None where
`batch` is whole. Metrics of parts add up, save those whose names end in `max` or `min`."""
Count = Callable[[Any], Totals]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and everything that a checkpoint holds."""

    # Any: tree.map and eval_shape put shardings and shapes in place of the arrays.
    step: Any
    params: Any
    opt_state: Any
    key: Any


TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""(state, batch, frozen parameters) -> (state, metrics)."""
ALL = TrainableConfig()


def init_state(
    params: Params, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> TrainState:
    """A state at step 0, its parameters a copy, since steps donate the state's buffers. Moments get
    the shardings of their parameters."""
    places = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    return jax.jit(partial(_new_state, optimizer), out_shardings=places)(params, key)


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`, whose `params` may be abstract."""
    everywhere = replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(partial(_new_state, optimizer), params, key)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, param: param.sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: everywhere,
    )
    places: Any = jax.tree.map(lambda p: p.sharding, params)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state,
        TrainState(everywhere, places, moments, everywhere),
    )


def _new_state(
    optimizer: optax.GradientTransformation, params: Params, key: jax.Array
) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    count: Count | None = None,
    accumulate: int = 1,
    trainable: TrainableConfig = ALL,
) -> TrainStep:
    """Returns the jitted (state, batch, frozen={}) -> (state, metrics). The old state's buffers are
    reused.

    A loss or gradient that is not finite leaves parameters, optimizer and its schedule as they
    were; the metric `guard/skipped` is then 1.

    Args:
        count: a batch's totals; needed where it is taken in parts.
        accumulate: parts in which the batch is taken, one after the other; their gradients add up.
        trainable: how the state's parameters and the frozen ones make a model.
    """
    if accumulate > 1 and count is None:
        raise ValueError("a batch taken in parts needs `count`")

    def gradients(
        params: Params, frozen: Params, batch: Any, totals: Totals | None, key: jax.Array
    ) -> tuple[Params, Metrics]:
        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            return loss_fn(join(params, frozen, trainable, key), batch, totals)

        return jax.grad(loss, has_aux=True)(params)

    def in_parts(
        params: Params, frozen: Params, batch: Any, key: jax.Array
    ) -> tuple[Params, Metrics]:
        assert count is not None
        totals = count(batch)
        parts = split_parts(batch, accumulate)
        keys = jax.random.split(key, accumulate)

        def add(
            total: tuple[Params, Metrics], xs: tuple[Any, jax.Array]
        ) -> tuple[tuple[Params, Metrics], None]:
            grads, metrics = gradients(params, frozen, xs[0], totals, xs[1])
            return (jax.tree.map(jnp.add, total[0], grads), _combine(total[1], metrics)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, frozen, first, totals, key)
        grads, metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        metrics |= {tag: x + jnp.inf for tag, x in metrics.items() if tag.endswith("min")}
        return jax.lax.scan(add, (grads, metrics), (parts, keys))[0]

    def step(
        state: TrainState, batch: Any, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            totals = count(batch) if count else None
            grads, metrics = gradients(state.params, frozen or {}, batch, totals, key)
        else:
            grads, metrics = in_parts(state.params, frozen or {}, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"loss/grad_norm": norm, "guard/skipped": 1.0 - finite}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return jax.jit(step, donate_argnums=0)


def split_parts(batch: Any, num_parts: int) -> Any:
    """Arrays [B, ...] -> [parts, B / parts, ...]. Each part takes every so many-th row, so that
    rows which lie on one device stay there."""

    def one(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(one, batch)


def map_parts(function: Callable[[Any], jax.Array], batch: Any, num_parts: int) -> jax.Array:
    """`function(batch)`, rows in rows out, taken in parts one after the other."""
    if num_parts == 1:
        return function(batch)
    out = jax.lax.map(function, split_parts(batch, num_parts))
    return out.swapaxes(0, 1).reshape(-1, *out.shape[2:])


def average(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several updates: means, save of what ends in `max` or `min`; and a skipped update
    counts as one."""

    def one(tag: str) -> float:
        values = [part[tag] for part in parts]
        if tag.endswith("max") or tag == "guard/skipped":
            return max(values)
        return min(values) if tag.endswith("min") else sum(values) / len(values)

    return {tag: one(tag) for tag in parts[0]}


def _combine(total: Metrics, part: Metrics) -> Metrics:
    join = {"max": jnp.maximum, "min": jnp.minimum}
    return {tag: join.get(tag[-3:], jnp.add)(total[tag], x) for tag, x in part.items()}
