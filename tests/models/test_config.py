import json
import math
from pathlib import Path
from typing import Any

import pytest

from persrm_jax.models.config import ModelConfig, RopeScaling, tiny_config
from persrm_jax.models.hf_config import load_config

# As published (the fields that matter).
QWEN2_5_0_5B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3_2_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def read(folder: Path, fields: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    return load_config(folder)


def test_qwen2(tmp_path: Path) -> None:
    assert read(tmp_path, QWEN2_5_0_5B) == ModelConfig(
        vocab_size=151936,
        num_layers=24,
        width=896,
        mlp_width=4864,
        num_heads=14,
        num_kv_heads=2,
        head_width=64,
        max_positions=32768,
        rope_theta=1e6,
        norm_eps=1e-6,
        qkv_bias=True,
        tie_embeddings=True,
    )


def test_qwen3(tmp_path: Path) -> None:
    cfg = read(tmp_path, QWEN3_0_6B)
    assert (cfg.head_width, cfg.num_heads, cfg.width) == (128, 16, 1024)
    assert cfg.qk_norm and cfg.tie_embeddings
    assert not (cfg.qkv_bias or cfg.out_bias or cfg.mlp_bias)


def test_llama_with_scaled_rope(tmp_path: Path) -> None:
    cfg = read(tmp_path, LLAMA_3_2_1B)
    assert cfg.rope_theta == 5e5 and cfg.norm_eps == 1e-5
    assert cfg.rope_scaling == RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)
    assert not (cfg.qkv_bias or cfg.qk_norm)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (QWEN2_5_0_5B, 494_032_768),  # "0.49B" on its card
        (QWEN3_0_6B, 596_049_920),
        (LLAMA_3_2_1B, 1_235_814_400),
    ],
)
def test_num_params_of_published_models(tmp_path: Path, fields: dict[str, Any], count: int) -> None:
    assert read(tmp_path, fields).num_params == count


def test_rope_parameters_say_what_rope_theta_and_rope_scaling_said(tmp_path: Path) -> None:
    new = {k: v for k, v in LLAMA_3_2_1B.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = LLAMA3 | {"rope_theta": 500000.0}
    assert read(tmp_path, new) == read(tmp_path, LLAMA_3_2_1B)

    default = QWEN3_0_6B | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    del default["rope_theta"], default["rope_scaling"]
    assert read(tmp_path, default) == read(tmp_path, QWEN3_0_6B)


def test_the_old_name_of_a_rope_type(tmp_path: Path) -> None:
    scaled = QWEN3_0_6B | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read(tmp_path, scaled).rope_scaling == RopeScaling("linear", 2.0)


def test_what_old_configs_leave_out(tmp_path: Path) -> None:
    left_out = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "hidden_act")
    old = {k: v for k, v in LLAMA_3_2_1B.items() if k not in left_out}
    del old["tie_word_embeddings"]
    cfg = read(tmp_path, old)
    assert (cfg.num_kv_heads, cfg.head_width) == (32, 64)
    assert (cfg.rope_theta, cfg.rope_scaling, cfg.tie_embeddings) == (1e4, None, False)


def test_biases_of_llama_and_qwen3(tmp_path: Path) -> None:
    cfg = read(tmp_path, LLAMA_3_2_1B | {"attention_bias": True, "mlp_bias": True})
    assert cfg.qkv_bias and cfg.out_bias and cfg.mlp_bias
    cfg = read(tmp_path, QWEN3_0_6B | {"attention_bias": True})
    assert cfg.qkv_bias and cfg.out_bias and not cfg.mlp_bias


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model_type": "gemma3"},
            "model_type 'gemma3' is not one of qwen2, qwen3",
        ),
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"model_type": None}, "model_type None"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "mixture-of-experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture-of-experts"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "vision"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type yarn lacks factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
        ({"quantization_config": "awq"}, "quantized weights \\(awq\\)"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected a number above 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected"),
        ({"rope_scaling": "yarn"}, "config.json: "),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({"num_key_value_heads": 5}, "14 query heads do not share 5 key-value heads"),
    ],
)
def test_refuses(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, QWEN2_5_0_5B | change)


def test_refuses_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: no such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="config.json: not JSON"):
        load_config(tmp_path)


def test_refuses_what_is_no_object_and_what_lacks_a_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json"):
        load_config(tmp_path)
    lacking = {k: v for k, v in QWEN3_0_6B.items() if k != "intermediate_size"}
    with pytest.raises(ValueError, match="config.json.*intermediate_size"):
        read(tmp_path, lacking)


def test_the_tiny_preset_is_about_a_million_parameters() -> None:
    assert 0.8e6 < tiny_config(vocab_size=320).num_params < 1.3e6


def test_r1_distill_qwen_and_yarn(tmp_path: Path) -> None:
    """Qwen2's architecture, untied, and the long-context setting of Qwen's cards."""
    distill = QWEN2_5_0_5B | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
    }
    cfg = read(tmp_path, distill)
    assert cfg.num_params == 7_615_616_512 and cfg.rope_theta == 1e4 and not cfg.tie_embeddings

    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    scaling = read(tmp_path, distill | {"rope_scaling": yarn}).rope_scaling
    assert scaling is not None and scaling.original_max_positions == 32768
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    mscale = yarn | {"mscale": 0.707, "mscale_all_dim": 0.5}
    scaling = read(tmp_path, distill | {"rope_scaling": mscale}).rope_scaling
    want = (0.0707 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert scaling is not None and scaling.attention_factor == pytest.approx(want)


def test_smollm3_has_layers_without_positions(tmp_path: Path) -> None:
    fields = {k: v for k, v in LLAMA_3_2_1B.items() if k != "rope_scaling"}
    cfg = read(tmp_path, fields | {"model_type": "smollm3", "num_hidden_layers": 8})
    assert cfg.rope_layers == (True, True, True, False) * 2
    given = {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}
    assert read(tmp_path, fields | given).rope_layers == (True, False, True)
