"""Live against transformers on torch: every family, logits, gradients and generation.

    make parity

writes the table `results/parity.md`. Without torch these tests are skipped, and the committed
arrays of `tests/data/hf_goldens` stand in for them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import FORWARD, Gap, gap, logits_of, measure
from flax import traverse_util
from jax.sharding import Mesh
from small_model import FAMILIES, random_params

from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.hf import hf_names, to_hf
from persrm_jax.models.hf_export import export_hf
from persrm_jax.models.load import load_model
from persrm_jax.models.params import Params, param_specs
from persrm_jax.models.peft import export_adapter
from persrm_jax.models.trainable import TrainableConfig, join, split
from persrm_jax.sampling import Ending, SamplingConfig, make_generate, sequence_keys
from persrm_jax.tokenizer import byte_tokenizer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.hf

B, T = 3, 40
LENGTHS = np.array([40, 31, 17])
PROMPT = 12
"""Tokens of each row that carry no loss."""
Table = dict[tuple[str, str], Gap]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """(family, check) -> gap; written where PARITY_TABLE says."""
    found: Table = {}
    yield found
    if path := os.environ.get("PARITY_TABLE"):
        Path(path).write_text(_markdown(found))


def _markdown(table: Table) -> str:
    import transformers

    lines = [
        "# Numbers against transformers",
        "",
        "Tiny random models of every family. Relative L2 error and, in brackets, the largest "
        f"absolute one. transformers {transformers.__version__}, torch {torch.__version__}, "
        f"jax {jax.__version__}, CPU. Command: `make parity`.",
        "",
    ]
    families = list(dict.fromkeys(family for family, _ in table))
    checks = list(dict.fromkeys(check for _, check in table))
    lines += [f"| check | {' | '.join(families)} |", "| --- |" + " --- |" * len(families)]
    for check in checks:
        cells = [table.get((family, check)) for family in families]
        shown = ["" if g is None else f"{g.l2:.1e} ({g.max:.1e})" for g in cells]
        lines.append(f"| {check} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Params, Any]:
    """A family's name, our random parameters, and the same in transformers."""
    from transformers import AutoModelForCausalLM

    name = request.param
    params = random_params(FAMILIES[name], seed=4)
    folder = tmp_path_factory.mktemp("hf") / "model"
    export_hf(folder, FAMILIES[name], params, byte_tokenizer())
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert theirs.dtype == torch.float32
    return name, params, theirs.eval()


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and which are real; padding is on the right."""
    tokens = np.random.default_rng(7).integers(3, 300, (B, T)).astype(np.int32)
    real = np.arange(T) < LENGTHS[:, None]
    return tokens, np.tile(np.arange(T, dtype=np.int32), (B, 1)), real


def test_logits(pair: tuple[str, Params, Any], table: Table) -> None:
    name, params, theirs = pair
    tokens, positions, real = rows()
    with torch.no_grad():
        want = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long()).logits
    found = logits_of(
        params, FAMILIES[name], ComputeConfig(), tokens, positions, real.astype(np.int32)
    )
    table[name, "logits, float32"] = gap(found[real], want.numpy()[real])
    assert table[name, "logits, float32"].l2 < 1e-5


def test_logits_in_bfloat16_err_as_theirs_do(pair: tuple[str, Params, Any], table: Table) -> None:
    """Weights and activations in bfloat16, against transformers' float32 logits of those weights.
    Bound: one and a half of transformers' own error."""
    import copy

    name, params, theirs = pair
    cfg, (tokens, positions, real) = FAMILIES[name], rows()
    half = copy.deepcopy(theirs).bfloat16()
    ids, mask = torch.tensor(tokens).long(), torch.tensor(real).long()
    with torch.no_grad():
        rough = half(ids, attention_mask=mask).logits.float().numpy()
        exact = copy.deepcopy(half).float()(ids, attention_mask=mask).logits.numpy()
    found = logits_of(
        jax.tree.map(lambda w: w.astype(jnp.bfloat16), params),
        cfg,
        ComputeConfig(dtype="bfloat16"),
        tokens,
        positions,
        real.astype(np.int32),
    )
    ours, their = gap(found[real], exact[real]), gap(rough[real], exact[real])
    table[name, "logits, bfloat16"] = ours
    table[name, "logits, bfloat16, transformers' own"] = their
    assert 1e-4 < ours.l2 < 1.5 * their.l2


def test_gradients_of_an_sft_batch(pair: tuple[str, Params, Any], table: Table) -> None:
    name, params, theirs = pair
    cfg, (tokens, positions, real) = FAMILIES[name], rows()
    scored = real & (np.arange(T) >= PROMPT)
    labels = torch.tensor(np.where(scored, tokens, -100)).long()
    theirs.zero_grad()
    out = theirs(
        torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long(), labels=labels
    )
    out.loss.backward()
    want = {n: p.grad.numpy() for n, p in theirs.named_parameters()}

    def loss(params: Params) -> jax.Array:
        hidden = FORWARD(params, cfg, tokens, positions, real.astype(np.int32), ComputeConfig())
        logprobs = jax.nn.log_softmax(hidden[:, :-1] @ vocab_weight(params).T)
        picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * scored[:, 1:]) / scored[:, 1:].sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert abs(float(value) - out.loss.item()) < 1e-5 * out.loss.item()
    flat = traverse_util.flatten_dict(grads)
    gaps = []
    for path, spec in param_specs(cfg):
        for i, tensor in enumerate(hf_names(path, spec)):
            leaf = flat[path][i] if path[0] == "layers" else flat[path]
            gaps.append(gap(to_hf(np.asarray(leaf), path, spec, cfg), want[tensor]))
    assert len(gaps) == len(want)
    worst = max(gaps)
    table[name, "gradients, worst tensor, float32"] = worst
    assert worst.l2 < 1e-4


# Transformers' own, at PEFT's use of it.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_in_peft(
    pair: tuple[str, Params, Any], table: Table, tmp_path: Path, mesh: Mesh
) -> None:
    import copy

    from peft import PeftModel

    name, params, theirs = pair
    cfg, (tokens, positions, real) = FAMILIES[name], rows()
    lora = TrainableConfig(lora_rank=4, lora_targets=("q", "v", "o", "down"))
    adapters, _ = split(params, cfg, lora, jax.random.key(0), mesh)
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, "f4"), adapters)
    export_adapter(tmp_path / "adapter", adapters, lora, base="base")
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "adapter").eval()
        ids, mask = torch.tensor(tokens).long(), torch.tensor(real).long()
        want = adapted(input_ids=ids, attention_mask=mask).logits.numpy()
        plain = theirs(ids, attention_mask=mask).logits.numpy()
    found = logits_of(
        join(adapters, params, lora), cfg, ComputeConfig(), tokens, positions, real.astype(np.int32)
    )
    assert gap(plain[real], want[real]).l2 > 0.01, "the adapter does something"
    table[name, "logits with an adapter in PEFT, float32"] = gap(found[real], want[real])
    assert table[name, "logits with an adapter in PEFT, float32"].l2 < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contract(pair: tuple[str, Params, Any], table: Table, dtype: str) -> None:
    name, params, _ = pair
    for check, found in measure(FAMILIES[name], params, ComputeConfig(dtype=dtype)).items():
        table[name, f"{check}, {dtype}"] = found
        assert found.l2 < (1e-5 if dtype == "float32" else 0.02), check


def test_greedy_text(pair: tuple[str, Params, Any], table: Table) -> None:
    """The ids that both generate from a prompt, where no two logits are within rounding."""
    name, params, theirs = pair
    prompt = rows()[0][:1, :PROMPT]
    with torch.no_grad():
        want = theirs.generate(
            torch.tensor(prompt).long(), max_new_tokens=16, do_sample=False, eos_token_id=2
        )
    generate = make_generate(
        FAMILIES[name], SamplingConfig(16, temperature=0.0), ending=Ending((2,), 0)
    )
    keys = sequence_keys(jax.random.key(0), 1)
    out = generate(params, prompt, np.ones_like(prompt, bool), keys)
    found = np.asarray(out.tokens)[np.asarray(out.mask)].tolist()
    assert found == want[0, PROMPT:].tolist()


def test_an_exported_smollm2_writes_the_same_text(tmp_path: Path, mesh: Mesh) -> None:
    """Our copy of it -> our model folder -> Hugging Face -> transformers, against our sampler."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from experiments.convert import main

    main(["--from", "smollm2", "--to", str(tmp_path / "ours")])
    main(["--from", str(tmp_path / "ours"), "--to", str(tmp_path / "hf")])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = load_model(tmp_path / "ours", mesh, "float32")
    chat = [{"role": "user", "content": "List three ways to shorten an essay."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == model.tokenizer.encode_chat(chat)
    with torch.no_grad():
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    generate = make_generate(
        model.config,
        SamplingConfig(24, temperature=0.0),
        ending=Ending(model.tokenizer.end_ids, model.tokenizer.pad_id),
    )
    prompt = np.array([ids], np.int32)
    ours = generate(
        model.params, prompt, np.ones_like(prompt, bool), sequence_keys(jax.random.key(0), 1)
    )
    text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert len(text) > 40
    assert model.tokenizer.decode(np.asarray(ours.tokens)[0]) == text
