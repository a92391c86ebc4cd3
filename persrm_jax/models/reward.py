"""A scalar reward: a decoder and a linear head on the hidden state of a text's last token."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float

from persrm_jax.checkpoint import load_tree
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import F32
from persrm_jax.models.groups import completion_states
from persrm_jax.models.load import Model, saved_config
from persrm_jax.models.params import Params, ParamSpec, abstract_params, init_leaf
from persrm_jax.sharding import param_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups

HEAD = "reward"
"""The head's place beside the decoder's parameters."""


def head_spec(cfg: ModelConfig) -> ParamSpec:
    """One weight for each dim of the hidden state, 0 at first: every text begins at the reward 0. A
    bias would cancel in every difference."""
    return ParamSpec((cfg.width,), ("vector",), "zeros")


def init_head(cfg: ModelConfig, key: jax.Array, mesh: Mesh) -> Params:
    """The head's parameters, in float32 whatever the decoder's are held in."""
    spec = head_spec(cfg)
    place = param_sharding(spec.shape, spec.axes, mesh)
    return {HEAD: {"weight": jax.device_put(init_leaf(key, spec, "float32"), place)}}


def abstract_head(cfg: ModelConfig, mesh: Mesh | AbstractMesh) -> Params:
    """Shape, dtype and sharding of `init_head`."""
    spec = head_spec(cfg)
    place: Any = param_sharding(spec.shape, spec.axes, mesh)
    return {HEAD: {"weight": jax.ShapeDtypeStruct(spec.shape, "float32", sharding=place)}}


def rewards(
    params: Params, cfg: ModelConfig, groups: Groups, compute: ComputeConfig = F32
) -> Float[Array, "P G"]:
    """w . h of each text's last token, where the group's mask ends, h after the final norm. What a
    group's texts follow is computed once."""
    # States are those before each token: one more, and the last token's is among them.
    room = [(0, 0), (0, 0), (0, 1)]
    longer = groups._replace(tokens=jnp.pad(groups.tokens, room), mask=jnp.pad(groups.mask, room))
    hidden = completion_states(params, cfg, longer, compute, shared=True)
    last = jnp.sum(groups.mask, axis=2)[..., None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=2)[:, :, 0]
    return hidden.astype(jnp.float32) @ params[HEAD]["weight"]


def load_reward_model(folder: Path, mesh: Mesh, dtype: str) -> Model:
    """Reads a folder that `save_model` wrote of a decoder with a head, onto any mesh.

    Raises:
        ValueError: it is no such folder.
    """
    config = saved_config(folder)
    like = abstract_params(config, mesh, dtype) | abstract_head(config, mesh)
    return Model(config, load_tree(folder / "params", like), Tokenizer.load(folder / "tokenizer"))
