"""Writes hf_goldens/NAME/: tiny random transformers models and the logits that they compute.

Needs torch and transformers 5:

    python tests/data/make_hf_goldens.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

WITH_GRADIENTS = ("qwen3", "llama3")
FOLDER = Path(__file__).parent / "hf_goldens"
VOCAB, LENGTH, LENGTHS = 96, 24, (24, 17)
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-3,
    bos_token_id=None,
    eos_token_id=None,
    attn_implementation="eager",
)


def models() -> dict[str, torch.nn.Module]:
    """Each covers what the others lack; the Llamas are in bfloat16 on disk."""
    # Rotary wavelengths 6, 20, 63 and 199, of 64 trained positions: one is kept, two are blended,
    # one is stretched.
    llama3 = dict(
        rope_type="llama3",
        rope_theta=100.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    return {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
        "qwen3": Qwen3ForCausalLM(
            Qwen3Config(
                **SIZES,
                head_dim=12,
                tie_word_embeddings=True,
                rope_parameters=dict(rope_type="default", rope_theta=500.0),
            )
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(**SIZES | dict(num_key_value_heads=1), tie_word_embeddings=True)
        ),
        "llama3": LlamaForCausalLM(
            LlamaConfig(
                **SIZES,
                tie_word_embeddings=False,
                rope_parameters=llama3,
                attention_bias=True,
                mlp_bias=True,
            )
        ),
        "linear": Qwen3ForCausalLM(
            Qwen3Config(
                **SIZES,
                tie_word_embeddings=True,
                rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=3.0),
            )
        ),
        "yarn": Qwen2ForCausalLM(
            Qwen2Config(
                **SIZES,
                tie_word_embeddings=True,
                # Of four frequencies the first is kept, two are blended, the last is stretched.
                rope_parameters=dict(
                    rope_type="yarn",
                    rope_theta=500.0,
                    factor=4.0,
                    beta_fast=4.0,
                    beta_slow=0.25,
                    original_max_position_embeddings=64,
                ),
            )
        ),
        "smollm3": SmolLM3ForCausalLM(
            SmolLM3Config(
                **SIZES | dict(pad_token_id=None),
                tie_word_embeddings=True,
                no_rope_layers=[1, 0],
                rope_parameters=dict(rope_type="default", rope_theta=500.0),
            )
        ),
    }


def main() -> None:
    torch.manual_seed(0)
    for name, model in models().items():
        half = name.startswith("llama")
        with torch.no_grad():
            for path, p in model.named_parameters():
                center = 1.0 if "norm" in path else 0.0
                # Large enough that attention is far from uniform.
                p.copy_(center + 0.3 * torch.randn_like(p))
                if half:
                    p.copy_(p.bfloat16().float())
        tokens = torch.randint(0, VOCAB, (len(LENGTHS), LENGTH))
        mask = torch.arange(LENGTH)[None] < torch.tensor(LENGTHS)[:, None]
        with torch.no_grad():
            logits = model.eval()(input_ids=tokens, attention_mask=mask.long()).logits
        arrays = dict(
            tokens=tokens.numpy().astype(np.int32), mask=mask.numpy(), logits=logits.numpy()
        )
        if name in WITH_GRADIENTS:
            labels = torch.where(mask, tokens, -100)  # a loss on all real tokens but the first
            loss = model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss
            loss.backward()
            arrays["loss"] = loss.detach().numpy()
            arrays |= {f"gradient {n}": p.grad.numpy() for n, p in model.named_parameters()}
        folder = FOLDER / name
        (model.bfloat16() if half else model).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "model.safetensors").chmod(0o644)
        np.savez_compressed(folder / "golden.npz", **arrays)


if __name__ == "__main__":
    main()
