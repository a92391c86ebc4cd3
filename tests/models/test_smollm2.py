"""The real pretrained model of the registry against transformers, through committed greedy ids
(`tests/data/make_smollm2_greedy.py` made them with torch)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from persrm_jax.data.batches import left_pad
from persrm_jax.models.load import load_pretrained
from persrm_jax.sampling import Ending, SamplingConfig, make_generate, sequence_keys

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parents[1] / "data" / "smollm2_greedy.json"


def test_greedy_ids_equal_transformers(mesh: Mesh) -> None:
    prompts = json.loads(GOLDEN.read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 5
    model = load_pretrained("smollm2", mesh, "float32")
    ids = [model.tokenizer.encode_chat(prompt["messages"]) for prompt in prompts]
    assert ids == [prompt["prompt_ids"] for prompt in prompts]
    generate = make_generate(
        model.config,
        SamplingConfig(max_new_tokens=24, temperature=0.0),
        ending=Ending(model.tokenizer.end_ids, model.tokenizer.pad_id),
    )
    tokens, mask = left_pad(ids, model.tokenizer.pad_id)
    out = generate(model.params, tokens, mask, sequence_keys(jax.random.key(0), len(ids)))
    np.testing.assert_array_equal(out.tokens, [prompt["greedy_ids"] for prompt in prompts])
