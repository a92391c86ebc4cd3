"""Which parameters train: all, all but some, or low-rank adapters beside frozen weights.

A training state holds only what trains; `join` puts the model together again for a forward pass.
LoRA (arXiv 2106.09685, eq. 3): y = W x + (alpha / rank) B A x, with A random and B zero at first.
"""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import Params, ParamSpec, Path, init_leaf, param_specs
from persrm_jax.sharding import param_sharding

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
NUM_INPUT_DIMS = {"o": 2}
"""Dims of a kernel (after its layers) that it sums over; 1 where not named."""


@dataclass(frozen=True)
class TrainableConfig:
    """Which parameters train."""

    freeze: str = ""
    """Parameters whose path this regular expression finds stay as they are: `embed|norm`."""
    lora_rank: int = 0
    """Rank of adapters, which then are all that trains; 0 trains the weights themselves."""
    lora_alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that SFT drops; RFT drops none."""
    lora_targets: tuple[str, ...] = TARGETS
    """Matrices that get an adapter."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"--train.lora-rank {self.lora_rank}: must be 0 or more")
        if self.lora_rank and not self.lora_targets:
            raise ValueError("--train.lora-targets: adapters need at least one")
        if self.lora_rank and self.freeze:
            raise ValueError(
                "--train.freeze and --train.lora-rank: adapters leave all weights frozen; choose "
                "among them by --train.lora-targets"
            )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--train.lora-dropout {self.lora_dropout}: must be in [0, 1)")
        if unknown := set(self.lora_targets) - set(TARGETS):
            raise ValueError(
                f"--train.lora-targets {' '.join(sorted(unknown))}: not among {', '.join(TARGETS)}"
            )
        try:
            re.compile(self.freeze)
        except re.error as error:
            raise ValueError(
                f"--train.freeze {self.freeze}: no regular expression ({error})"
            ) from None

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.lora_rank


def adapter_specs(model: ModelConfig, cfg: TrainableConfig) -> list[tuple[Path, ParamSpec]]:
    """(path, spec) of every adapter: `lora_a` [L, *in, rank] and `lora_b` [L, rank, *out]."""
    specs = []
    for path, spec in param_specs(model):
        if path[0] != "layers" or path[1] not in cfg.lora_targets or path[2] != "kernel":
            continue
        split = 1 + NUM_INPUT_DIMS.get(path[1], 1)
        layers, ins, outs = spec.shape[:1], spec.shape[1:split], spec.shape[split:]
        a = ParamSpec(
            (*layers, *ins, cfg.lora_rank), (*spec.axes[:split], "rank"), "fan_in", spec.fan_in
        )
        b = ParamSpec(
            (*layers, cfg.lora_rank, *outs), ("layers", "rank", *spec.axes[split:]), "zeros"
        )
        specs += [((*path[:2], "lora_a"), a), ((*path[:2], "lora_b"), b)]
    return specs


def abstract_trained(
    model: ModelConfig, cfg: TrainableConfig, mesh: Mesh | AbstractMesh, dtype: str = "float32"
) -> Params:
    """Shapes, dtypes and shardings of what trains: what a checkpoint of it is restored into."""
    specs = adapter_specs(model, cfg) if cfg.lora_rank else param_specs(model)
    return _nest(
        {
            p: jax.ShapeDtypeStruct(
                s.shape,
                "float32" if cfg.lora_rank else dtype,
                sharding=param_sharding(s.shape, s.axes, mesh),
            )
            for p, s in specs
            if not _is_frozen(p, cfg)
        }
    )


def _is_frozen(path: Path, cfg: TrainableConfig) -> bool:
    return bool(cfg.freeze) and re.search(cfg.freeze, "/".join(path)) is not None


def split(
    params: Params, model: ModelConfig, cfg: TrainableConfig, key: jax.Array, mesh: Mesh
) -> tuple[Params, Params]:
    """(what trains, what stays). With adapters, all of `params` stays.

    Raises:
        ValueError: nothing would train.
    """
    if cfg.lora_rank:
        specs = adapter_specs(model, cfg)
        keys = jax.random.split(key, len(specs))

        def make(keys: jax.Array) -> Params:
            # float32, as master weights are; the base may be held in less.
            leaves = [init_leaf(k, s, "float32") for k, (_, s) in zip(keys, specs, strict=True)]
            return _nest({p: x for (p, _), x in zip(specs, leaves, strict=True)})

        places = _nest({p: param_sharding(s.shape, s.axes, mesh) for p, s in specs})
        return jax.jit(make, out_shardings=places)(keys), params
    flat = traverse_util.flatten_dict(params)
    stays = {p: x for p, x in flat.items() if _is_frozen(p, cfg)}
    if cfg.freeze and not stays:
        names = ", ".join(sorted({"/".join(p[:2]) for p in flat}))
        raise ValueError(f"--train.freeze {cfg.freeze}: finds none of the parameters ({names})")
    if len(stays) == len(flat):
        raise ValueError(f"--train.freeze {cfg.freeze}: freezes every parameter")
    return _nest({p: x for p, x in flat.items() if p not in stays}), _nest(stays)


def join(
    trained: Params, frozen: Params, cfg: TrainableConfig, dropout_key: jax.Array | None = None
) -> Params:
    """The whole model, adapters beside their matrices, as the decoder takes it.

    Args:
        dropout_key: drops adapters' inputs, each layer's by a key of its own.
    """
    flat = dict(traverse_util.flatten_dict(trained))
    if cfg.lora_rank:
        for i, path in enumerate(sorted(p for p in flat if p[-1] == "lora_b")):
            flat[path] = flat[path] * cfg.scale
            if dropout_key is not None and cfg.lora_dropout:
                num_layers = flat[path].shape[0]
                keys = jax.random.split(jax.random.fold_in(dropout_key, i), num_layers)
                flat[*path[:-1], "lora_key"] = keys
                keep = jnp.full(num_layers, 1 - cfg.lora_dropout, jnp.float32)
                flat[*path[:-1], "lora_keep"] = keep
    return _nest({**traverse_util.flatten_dict(frozen), **flat})


def trained_share(trained: Params, frozen: Params | None) -> float:
    """Parameters that train, over all."""
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, frozen or {})]
    return sizes[0] / sum(sizes)


def merge(trained: Params, frozen: Params, cfg: TrainableConfig) -> Params:
    """The whole model with adapters added into their matrices: W + (alpha / rank) A B."""
    flat = traverse_util.flatten_dict(join(trained, frozen, cfg))
    for path in [p for p in flat if p[-1] == "lora_a"]:
        a, b = flat.pop(path), flat.pop((*path[:-1], "lora_b"))
        kernel = flat[*path[:-1], "kernel"]
        flat[*path[:-1], "kernel"] = _add_product(kernel, a, b)
    return _nest(flat)


@jax.jit
def _add_product(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    L, rank = b.shape[:2]
    product = jnp.einsum("LIR,LRO->LIO", a.reshape(L, -1, rank), b.reshape(L, rank, -1))
    return (kernel + product.reshape(kernel.shape)).astype(kernel.dtype)


def _nest(flat: dict[Path, Any]) -> Params:
    return traverse_util.unflatten_dict(flat)
