"""What a local model writes depends on the request alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from persrm_jax.data.local_writer import LocalConfig, make_local_writer, padded
from persrm_jax.data.writers import Request, Writer, Written
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.load import Model, new_model
from persrm_jax.sampling import SamplingConfig
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import byte_tokenizer

CFG = LocalConfig(batch_size=4, sampling=SamplingConfig(max_new_tokens=12, temperature=1.0))
REQUESTS = [
    Request(f"r{i}", ({"role": "user", "content": "word " * (1 + 7 * (i % 3))},)) for i in range(11)
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshShape(1, 1))


@pytest.fixture(scope="module")
def model(mesh: Mesh) -> Model:
    return new_model(byte_tokenizer(), jax.random.key(0), mesh, "float32")


@pytest.fixture(scope="module")
def writer(model: Model, mesh: Mesh) -> Writer:
    return make_local_writer(model, CFG, compute=ComputeConfig(), mesh=mesh)


def write(writer: Writer, mesh: Mesh, requests: list[Request]) -> list[Written]:
    with jax.set_mesh(mesh):
        return [*writer(iter(requests))]


def test_a_text_depends_on_its_request_alone(writer: Writer, mesh: Mesh) -> None:
    # Whole sentences are few in noise: what was drawn is compared by its number of tokens too.
    all_of_them = write(writer, mesh, REQUESTS)
    assert len(all_of_them) == 11
    order = np.random.default_rng(0).permutation(11).tolist()
    mixed = write(writer, mesh, [REQUESTS[i] for i in order])
    assert [mixed[order.index(i)] for i in range(11)] == all_of_them
    assert write(writer, mesh, REQUESTS[6:7]) == all_of_them[6:7]
    lengths = [len(r.messages[0]["content"]) for r in REQUESTS]
    given = [w.prompt_tokens for w in all_of_them]
    assert np.argsort(given, kind="stable").tolist() == np.argsort(lengths, kind="stable").tolist()
    assert all(0 < w.completion_tokens <= 12 for w in all_of_them)


def test_other_tries_give_other_texts(model: Model, mesh: Mesh) -> None:
    cfg = replace(CFG, sampling=replace(CFG.sampling, stop=("e", "a", "o", " ")))
    writer = make_local_writer(model, cfg, compute=ComputeConfig(), mesh=mesh)
    tries = [replace(REQUESTS[0], attempt=attempt) for attempt in range(8)]
    found = write(writer, mesh, tries)
    assert len({w.completion_tokens for w in found}) > 1
    assert write(writer, mesh, tries[3:4]) == found[3:4]


def test_what_is_cut_off_or_too_long_is_a_fault(writer: Writer, mesh: Mesh) -> None:
    for written in write(writer, mesh, REQUESTS[:3]):
        assert (written.text is None) == bool(written.fault)
    long = Request("long", ({"role": "user", "content": "x" * 10_000},))
    (written,) = write(writer, mesh, [long])
    assert written.text is None and written.fault.startswith("long prompt: 10")


def test_prompts_are_padded_by_their_own_length() -> None:
    assert [padded(n) for n in (1, 128, 129, 1000)] == [128, 128, 256, 1024]
