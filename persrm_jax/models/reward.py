"""A scalar reward: a decoder and a linear head on the hidden state of a text's last token."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.checkpoint import load_tree
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import F32, forward
from persrm_jax.models.load import Model, saved_config
from persrm_jax.models.params import Params, ParamSpec, abstract_params, init_leaf
from persrm_jax.sharding import param_sharding
from persrm_jax.tokenizer import Tokenizer

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
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    compute: ComputeConfig = F32,
) -> Float[Array, " B"]:
    """w . h of each row's last token, h after the final norm. Rows are padded on the left."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden = forward(params, cfg, tokens, positions, mask.astype(jnp.int32), compute)
    return hidden[:, -1].astype(jnp.float32) @ params[HEAD]["weight"]


def load_reward_model(folder: Path, mesh: Mesh, dtype: str) -> Model:
    """Reads a folder that `save_model` wrote of a decoder with a head, onto any mesh.

    Raises:
        ValueError: it is no such folder.
    """
    config = saved_config(folder)
    like = abstract_params(config, mesh, dtype) | abstract_head(config, mesh)
    return Model(config, load_tree(folder / "params", like), Tokenizer.load(folder / "tokenizer"))
