"""Documents of authors who draw their words at random, for tests of splits and pairs."""

import numpy as np

from persrm_jax.data.splits import PairConfig
from persrm_jax.types import Document

WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
CFG = PairConfig(num_exemplars=2, num_train=31, num_dev=10, num_test=20, num_seen=11, topic_pool=5)


def random_corpus(
    seed: int, num_authors: int = 9, texts: int = 8, length: int = 30
) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [
        Document(
            author=f"author-{a}",
            doc_id=f"{a}/{i}",
            domain=f"domain-{a % 2}",
            split="train" if i % 2 else "test",
            text=" ".join(rng.choice(WORDS, length)),
            prompt=f"prompt {a}/{i}",
        )
        for a in range(num_authors)
        for i in range(texts)
    ]
