"""The train state, and one optimizer step made from a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from persrm_jax.models.params import Params
from persrm_jax.sharding import replicated

Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Any], tuple[jax.Array, Metrics]]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and everything that a checkpoint holds."""

    # Any: tree.map and eval_shape put shardings and shapes in place of the arrays.
    step: Any
    params: Any
    opt_state: Any
    key: Any


TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> TrainState:
    """A state at step 0, its parameters a copy, since steps donate the state's buffers. Moments get
    the shardings of their parameters."""

    def make(params: Params, key: jax.Array) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)

    shardings = optax.tree_map_params(
        optimizer,
        lambda _, param: param.sharding,
        jax.eval_shape(make, params, key).opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    everywhere = replicated(mesh)
    places: Any = jax.tree.map(lambda p: p.sharding, params)
    state_shardings = TrainState(everywhere, places, shardings, everywhere)
    return jax.jit(make, out_shardings=state_shardings)(params, key)


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> TrainStep:
    """Returns the jitted (state, batch) -> (state, metrics). The old state's buffers are reused."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["loss/grad_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return jax.jit(step, donate_argnums=0)
