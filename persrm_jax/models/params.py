"""One tree describes the parameters; weights, shardings and restore templates derive from it."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh

from persrm_jax.models.config import ModelConfig
from persrm_jax.sharding import param_sharding

Params = dict[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class ParamSpec:
    """A leaf: its shape, a logical axis for each dim (`sharding.PARAM_RULES`), its initializer.

    `fan_in` draws from a normal with standard deviation 1 / sqrt(product of the input dims)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["fan_in", "embedding", "ones", "zeros"]
    fan_in: int = 1


def param_specs(cfg: ModelConfig) -> list[tuple[Path, ParamSpec]]:
    """(path, spec) of every parameter; layers are stacked along a leading dim L."""
    L, D, F, V = cfg.num_layers, cfg.width, cfg.mlp_width, cfg.vocab_size
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_width
    specs: dict[Path, ParamSpec] = {}

    def layer(name: str, leaf: str, shape: tuple[int, ...], axes: str, fan_in: int = 0) -> None:
        init: Any = "fan_in" if fan_in else ("zeros" if leaf == "bias" else "ones")
        specs["layers", name, leaf] = ParamSpec(
            (L, *shape), ("layers", *axes.split()), init, fan_in or 1
        )

    specs["embed", "weight"] = ParamSpec((V, D), ("vocab", "vector"), "embedding")
    layer("attn_norm", "scale", (D,), "norm")
    for name, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads")):
        layer(name, "kernel", (D, heads, H), f"embed {axis} head_width", D)
        if cfg.qkv_bias:
            layer(name, "bias", (heads, H), f"{axis} head_width")
    layer("o", "kernel", (N, H, D), "heads head_width embed", N * H)
    if cfg.out_bias:
        layer("o", "bias", (D,), "norm")
    if cfg.qk_norm:
        layer("q_norm", "scale", (H,), "norm")
        layer("k_norm", "scale", (H,), "norm")
    layer("mlp_norm", "scale", (D,), "norm")
    for name in ("gate", "up"):
        layer(name, "kernel", (D, F), "embed mlp", D)
        if cfg.mlp_bias:
            layer(name, "bias", (F,), "mlp")
    layer("down", "kernel", (F, D), "mlp embed", F)
    if cfg.mlp_bias:
        layer("down", "bias", (D,), "norm")
    specs["final_norm", "scale"] = ParamSpec((D,), ("norm",), "ones")
    if not cfg.tie_embeddings:
        specs["head", "weight"] = ParamSpec((V, D), ("vocab", "vector"), "embedding")
    return list(specs.items())


def _nest(flat: dict[Path, Any]) -> Params:
    return traverse_util.unflatten_dict(flat)


def param_shardings(cfg: ModelConfig, mesh: Mesh) -> Params:
    """Where each parameter lives on `mesh`."""
    return _nest({p: param_sharding(s.shape, s.axes, mesh) for p, s in param_specs(cfg)})


def abstract_params(cfg: ModelConfig, mesh: Mesh | AbstractMesh, dtype: str = "float32") -> Params:
    """Shapes, dtypes and shardings: what a restore or an ahead-of-time compilation needs."""
    return _nest(
        {
            p: jax.ShapeDtypeStruct(s.shape, dtype, sharding=param_sharding(s.shape, s.axes, mesh))
            for p, s in param_specs(cfg)
        }
    )


def init_params(cfg: ModelConfig, key: jax.Array, mesh: Mesh, dtype: str = "float32") -> Params:
    """Random parameters, made where they live. The same key gives the same on every mesh."""
    specs = param_specs(cfg)

    def make(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(specs))
        return _nest({p: init_leaf(k, s, dtype) for k, (p, s) in zip(keys, specs, strict=True)})

    return jax.jit(make, out_shardings=param_shardings(cfg, mesh))(key)


def init_leaf(key: jax.Array, spec: ParamSpec, dtype: str) -> jax.Array:
    """One parameter, as its spec says."""
    match spec.init:
        case "ones":
            return jnp.ones(spec.shape, dtype)
        case "zeros":
            return jnp.zeros(spec.shape, dtype)
        case "embedding":
            return 0.02 * jax.random.normal(key, spec.shape, dtype)
        case "fan_in":
            return spec.fan_in**-0.5 * jax.random.normal(key, spec.shape, dtype)
