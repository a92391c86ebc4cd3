"""A model from where it is named: from scratch, the registry, a folder, or the Hugging Face hub."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from persrm_jax import checkpoint
from persrm_jax.checkpoint import load_tree, save_tree
from persrm_jax.distributed import on_main
from persrm_jax.jsonl import write_text
from persrm_jax.models import hf
from persrm_jax.models.config import SIZES, ModelConfig, RopeScaling, tiny_config
from persrm_jax.models.gguf import smollm2_folder
from persrm_jax.models.hf import load_hf_params
from persrm_jax.models.hf_config import load_config
from persrm_jax.models.params import Params, abstract_params, init_params
from persrm_jax.models.peft import base_of, is_adapter, load_adapter
from persrm_jax.models.trainable import merge
from persrm_jax.tokenizer import Tokenizer

FROM_SCRATCH = "tiny"
REGISTRY = "smollm2"


@dataclass(frozen=True)
class Model:
    """A decoder's config and weights, and the tokenizer it was trained with."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def new_model(tokenizer: Tokenizer, key: jax.Array, mesh: Mesh, dtype: str) -> Model:
    """The small model of the `tiny` preset, from random weights."""
    # A multiple of 64, so that any mesh up to that side divides the vocabulary.
    config = tiny_config(-(-tokenizer.vocab_size // 64) * 64)
    return Model(config, init_params(config, key, mesh, dtype), tokenizer)


def pretrained_folder(source: str) -> Path:
    """The local folder of `smollm2`, of a path, or of a hub id (downloaded once).

    Raises:
        ValueError: `source` is none of these.
    """
    if source == REGISTRY:
        return smollm2_folder()
    if Path(source).is_dir():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"model {source}: no such folder, and not {FROM_SCRATCH}, {REGISTRY} or a Hugging "
            "Face id such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {source}: could not be fetched from the hub ({reason})") from None


def is_model(folder: Path) -> bool:
    """Whether `folder` holds a saved model or an adapter."""
    return (folder / "model.json").is_file() or is_adapter(folder)


def model_folder(path: Path) -> Path:
    """The saved model or adapter that `path` names: itself, or the SFT model of a run.

    Raises:
        ValueError: neither.
    """
    for folder in (path, path / "sft" / "model"):
        if is_model(folder):
            return folder
    raise ValueError(
        f"--init {path}: holds no model; expected a run folder, its sft/model or rft/model, or a "
        "LoRA adapter's folder"
    )


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a pretrained or saved model."""
    folder = pretrained_folder(source)
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(folder))
    return Tokenizer.load(folder / "tokenizer" if (folder / "model.json").is_file() else folder)


def read_config(source: str) -> ModelConfig:
    """The config of a pretrained or saved model; of `tiny`, all but its vocabulary. Those of
    well-known hub ids are known without the hub."""
    if source == FROM_SCRATCH:
        return tiny_config(vocab_size=64)
    if source in SIZES and not Path(source).is_dir():
        return SIZES[source]
    folder = pretrained_folder(source)
    if is_adapter(folder):
        return read_config(base_of(folder))
    return saved_config(folder) if (folder / "model.json").is_file() else load_config(folder)


def load_pretrained(source: str, mesh: Mesh, dtype: str) -> Model:
    """Loads a folder that `save_model` wrote, a Hugging Face folder, `smollm2`, or a hub id; or
    an adapter's folder, merged into the model that it names.

    Raises:
        ValueError: no such model, or one that is broken, incomplete or not supported.
    """
    folder = pretrained_folder(source)
    if is_adapter(folder):
        base = load_pretrained(base_of(folder), mesh, dtype)
        adapter, cfg = load_adapter(folder, base.config, mesh)
        tokenizer = _fitting_tokenizer(folder, base.config)
        return Model(base.config, merge(adapter, base.params, cfg), tokenizer)
    if (folder / "model.json").is_file():
        return load_model(folder, mesh, dtype)
    config = load_config(folder)
    tokenizer = _fitting_tokenizer(folder, config)
    return Model(config, load_hf_params(folder, config, mesh, dtype), tokenizer)


def _fitting_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens and its model "
            f"{config.vocab_size:,}: they do not belong together"
        )
    return tokenizer


def stored_dtype(source: str) -> str:
    """The one dtype in which a model's weights are stored.

    Raises:
        ValueError: they are stored in several.
    """
    folder = pretrained_folder(source)
    if is_adapter(folder):
        return stored_dtype(base_of(folder))
    saved = (folder / "model.json").is_file()
    found = checkpoint.stored_dtypes(folder / "params") if saved else hf.stored_dtypes(folder)
    if len(found) != 1:
        dtypes = ", ".join(sorted(found))
        raise ValueError(f"{folder}: its weights are stored as {dtypes}; name one by --dtype")
    return found.pop()


def save_model(folder: Path, model: Model) -> None:
    """Writes `model.json`, `params/` and `tokenizer/`; the folder then needs nothing else."""
    save_tree(folder / "params", model.params)

    def write_rest() -> None:
        model.tokenizer.save(folder / "tokenizer")
        fields = dataclasses.asdict(model.config)
        write_text(folder / "model.json", json.dumps(fields, indent=2) + "\n")

    on_main(write_rest)


def load_model(folder: Path, mesh: Mesh, dtype: str) -> Model:
    """Reads a folder that `save_model` wrote, or an adapter's, onto any mesh.

    Raises:
        ValueError: it is no such folder.
    """
    if is_adapter(folder):
        return load_pretrained(str(folder), mesh, dtype)
    config = saved_config(folder)
    params = load_tree(folder / "params", abstract_params(config, mesh, dtype))
    return Model(config, params, Tokenizer.load(folder / "tokenizer"))


def saved_config(folder: Path) -> ModelConfig:
    """The config of a folder that `save_model` wrote.

    Raises:
        ValueError: it is no such folder.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise ValueError(f"{folder}: holds no model.json; expected a model that a run saved")
    fields = json.loads(path.read_text(encoding="utf-8"))
    if scaling := fields["rope_scaling"]:
        fields["rope_scaling"] = RopeScaling(**scaling)
    if layers := fields.get("rope_layers"):
        fields["rope_layers"] = tuple(layers)
    return ModelConfig(**fields)
