"""What one decoder of the Qwen2 / Qwen2.5 / Qwen3 / Llama family is made of."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rescaling of rotary frequencies, or linear position interpolation."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder; the field names are ours, the values `config.json`'s."""

    vocab_size: int
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_positions: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key-value heads"
            )

    @property
    def num_params(self) -> int:
        """Parameters, embeddings included."""
        from persrm_jax.models.params import param_specs  # params reads this file

        return sum(math.prod(spec.shape) for _, spec in param_specs(self))


def tiny_config(vocab_size: int) -> ModelConfig:
    """About a million parameters: Qwen3's architecture for a laptop's CPU."""
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=3,
        width=160,
        mlp_width=480,
        num_heads=4,
        num_kv_heads=2,
        head_width=32,
        max_positions=2048,
        rope_theta=1e4,
        qk_norm=True,
    )


_REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def load_config(folder: Path) -> ModelConfig:
    """Reads a Hugging Face `config.json`.

    Raises:
        ValueError: no such file, or an architecture or option that this decoder does not have.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a Hugging Face model folder")
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error.msg})") from None
    if not isinstance(hf, dict):
        raise ValueError(f"{path}: not a JSON object")
    family = hf.get("model_type")
    if family not in ("qwen2", "qwen3", "llama"):
        raise ValueError(f"{path}: model_type {family!r} is not one of qwen2, qwen3, llama")
    if hf.get("use_sliding_window"):
        raise ValueError(f"{path}: sliding-window attention is not supported")
    if hf.get("quantization_config"):
        raise ValueError(f"{path}: quantized weights are not supported")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act {hf['hidden_act']!r} is not supported, only silu")
    if absent := [name for name in _REQUIRED if name not in hf]:
        raise ValueError(f"{path}: lacks {', '.join(absent)}")
    num_heads = hf["num_attention_heads"]
    # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    attention_bias = bool(hf.get("attention_bias", False))
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        mlp_width=hf["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=hf.get("num_key_value_heads") or num_heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // num_heads,
        max_positions=hf["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 1e4),
        rope_scaling=_rope_scaling(rope, path),
        norm_eps=hf["rms_norm_eps"],
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def _rope_scaling(rope: dict[str, Any], path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope["factor"])
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    raise ValueError(f"{path}: rope type {kind!r} is not one of default, linear, llama3")
