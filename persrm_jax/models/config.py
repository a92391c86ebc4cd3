"""What one decoder of the Qwen2 / Qwen2.5 / Qwen3 / Llama family is made of."""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are rescaled: position interpolation, Llama 3.1's way, or YaRN."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_positions: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Multiplies cosine and sine, so its square the attention logits."""


Remat = Literal["none", "full", "dots", "dots_no_batch"]
Attention = Literal["auto", "xla", "chunked", "cudnn", "splash"]


@dataclass(frozen=True)
class ComputeConfig:
    """Precision and memory of the forward and backward pass."""

    dtype: str = "float32"
    """Activations and matrix products; logits, softmax and losses are float32."""
    param_dtype: str = "float32"
    """Master weights and optimizer state."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, whole layers (`full`: least memory, a third more
    work), or all but matrix products (`dots`), of them all but attention's (`dots_no_batch`)."""
    attention: Attention = "auto"
    """Who computes attention over whole sequences; `auto` chooses by platform and length."""


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
    rope_layers: tuple[bool, ...] | None = None
    """Which layers rotate by position; None for all."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key-value heads"
            )
        if self.rope_layers is not None and len(self.rope_layers) != self.num_layers:
            raise ValueError(
                f"{len(self.rope_layers)} entries for rope of {self.num_layers} layers"
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


def _qwen2(
    layers: int,
    width: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = 151936,
    **changes: Any,
) -> ModelConfig:
    fields = {"head_width": width // heads, "max_positions": 32768, "qkv_bias": True}
    return ModelConfig(vocab, layers, width, mlp, heads, kv_heads, **{**fields, **changes})


def _qwen3(layers: int, width: int, mlp: int, heads: int, **changes: Any) -> ModelConfig:
    fields = {"head_width": 128, "max_positions": 40960, "qk_norm": True}
    return ModelConfig(151936, layers, width, mlp, heads, 8, **{**fields, **changes})


SIZES = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(24, 896, 4864, 14, 2),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(28, 1536, 8960, 12, 2),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(28, 3584, 18944, 28, 4, vocab=152064, tie_embeddings=False),
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(80, 8192, 29568, 64, 8, vocab=152064, tie_embeddings=False),
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12288, 32, tie_embeddings=False),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25600, 64, tie_embeddings=False),
}
"""Published models, by Hugging Face id: what can be planned for without fetching them. A model that
is loaded brings its own `config.json`."""
