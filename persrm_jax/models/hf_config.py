"""Hugging Face's `config.json` <-> `ModelConfig`."""

import json
import math
from pathlib import Path
from typing import Any

from persrm_jax.models.config import ModelConfig, RopeScaling

FAMILIES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


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
    if problem := _unsupported(hf):
        raise ValueError(f"{path}: {problem}")
    if absent := [name for name in _REQUIRED if name not in hf]:
        raise ValueError(f"{path}: lacks {', '.join(absent)}")
    for name in _REQUIRED:
        if not isinstance(hf[name], int | float) or hf[name] <= 0:
            raise ValueError(f"{path}: {name} is {hf[name]!r}, expected a number above 0")
    try:
        return _from_hf(hf)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _unsupported(hf: dict[str, Any]) -> str | None:
    """What the model has and this decoder lacks, in words."""
    family = hf.get("model_type")
    if any(key.startswith("vision") for key in hf) or "_vl" in str(family):
        return "vision inputs are not supported, only text decoders"
    if any(hf.get(key) for key in _EXPERTS) or "moe" in str(family) or family == "mixtral":
        return "mixture-of-experts models are not supported, only dense ones"
    if hf.get("quantization_config"):
        method = hf["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        return f"quantized weights ({method}) are not supported; take the unquantized model"
    if family not in FAMILIES:
        return f"model_type {family!r} is not one of {', '.join(FAMILIES)}"
    if _slides(hf):
        return "sliding-window attention is not supported"
    if hf.get("hidden_act", "silu") != "silu":
        return f"hidden_act {hf['hidden_act']!r} is not supported, only silu"
    return None


def _slides(hf: dict[str, Any]) -> bool:
    """Whether any layer's window is in use; Qwen2.5 names one that it does not use."""
    if kinds := hf.get("layer_types"):
        return any(kind != "full_attention" for kind in kinds)
    if not hf.get("use_sliding_window") or hf.get("sliding_window") is None:
        return False
    # Qwen2 and Qwen3 slide from this layer on.
    return hf.get("max_window_layers", 0) < hf.get("num_hidden_layers", 0)


def _from_hf(hf: dict[str, Any]) -> ModelConfig:
    family, num_heads = hf["model_type"], hf["num_attention_heads"]
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
        rope_scaling=_rope_scaling(rope, hf["max_position_embeddings"]),
        norm_eps=hf["rms_norm_eps"],
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias and family != "qwen2",
        mlp_bias=bool(hf.get("mlp_bias", False)) and family in ("llama", "smollm3"),
        qk_norm=family == "qwen3",
        tie_embeddings=bool(hf.get("tie_word_embeddings", family == "smollm3")),
        rope_layers=_rope_layers(hf) if family == "smollm3" else None,
    )


def _rope_layers(hf: dict[str, Any]) -> tuple[bool, ...]:
    """SmolLM3's `no_rope_layers` holds 1 where a layer does rotate."""
    num_layers, every = hf["num_hidden_layers"], hf.get("no_rope_layer_interval", 4)
    flags = hf.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(num_layers)]
    return tuple(map(bool, flags))


def _rope_scaling(rope: dict[str, Any], max_positions: int) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope over a part of each head is not supported")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(f"rope type {kind!r} is not one of default, linear, llama3, yarn")
    needed = {
        "linear": ["factor"],
        "llama3": ["factor", "low_freq_factor", "high_freq_factor"],
        "yarn": ["factor"],
    }[kind]
    if absent := [name for name in needed if rope.get(name) is None]:
        raise ValueError(f"rope type {kind} lacks {', '.join(absent)}")
    original = rope.get("original_max_position_embeddings") or max_positions
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            original,
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
        )
    return RopeScaling(
        "yarn",
        float(rope["factor"]),
        original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),
        attention_factor=_attention_factor(rope),
    )


def _attention_factor(rope: dict[str, Any]) -> float:
    """YaRN's temperature: 0.1 ln(factor) + 1 where the config names none (arXiv 2309.00071,
    eq. 24), or the ratio of two such terms."""

    def term(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return term(rope["mscale"]) / term(rope["mscale_all_dim"])
    return term(1.0)


def hf_config(cfg: ModelConfig, *, dtype: str, end_ids: tuple[int, ...], pad_id: int) -> dict:
    """The `config.json` of a model, of the family that has its features.

    Raises:
        ValueError: no family has them all.
    """
    family = _family(cfg)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if scaling := cfg.rope_scaling:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind != "linear":
            rope["original_max_position_embeddings"] = scaling.original_max_positions
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
            }
        if scaling.kind == "yarn":
            rope |= {
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                "attention_factor": scaling.attention_factor,
            }
    hf: dict[str, Any] = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rope_parameters": rope,
        # What transformers 4 and vLLM read.
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None if cfg.rope_scaling is None else rope,
        "rms_norm_eps": cfg.norm_eps,
        "attention_bias": cfg.out_bias,
        "mlp_bias": cfg.mlp_bias,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": list(end_ids) if len(end_ids) > 1 else end_ids[0],
        "pad_token_id": pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if cfg.rope_layers is not None:
        hf["no_rope_layers"] = list(map(int, cfg.rope_layers))
    return hf


def _family(cfg: ModelConfig) -> str:
    features = (cfg.qk_norm, cfg.qkv_bias, cfg.out_bias, cfg.mlp_bias)
    if cfg.rope_layers is not None and not cfg.qk_norm and cfg.qkv_bias == cfg.out_bias:
        return "smollm3"
    if cfg.rope_layers is None:
        if cfg.qk_norm and cfg.qkv_bias == cfg.out_bias and not cfg.mlp_bias:
            return "qwen3"
        if features == (False, True, False, False):
            return "qwen2"
        if not cfg.qk_norm and cfg.qkv_bias == cfg.out_bias:
            return "llama"
    raise ValueError(
        "no Hugging Face family has this model's features: "
        f"qk_norm={cfg.qk_norm}, qkv_bias={cfg.qkv_bias}, out_bias={cfg.out_bias}, "
        f"mlp_bias={cfg.mlp_bias}, rope_layers={cfg.rope_layers}"
    )
