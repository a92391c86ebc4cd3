"""Best of n: of several drafts the one that fits the person best, without a service.

python examples/best_of_n.py --run RUN --exemplars LETTERS/ --drafts DRAFTS.jsonl
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.score import read_candidates, read_exemplars
from persrm_jax.evaluation import Judge


@dataclass(frozen=True)
class Config:
    """What to choose from."""

    run: Path
    """Folder of a run that trained a judge."""
    exemplars: Path
    """What the person wrote: a folder of .txt and .md files, or JSON Lines with `text`."""
    drafts: Path
    """JSON Lines with `id` and `text`."""
    n: int = 1
    """Answers of the judge to each question."""


def main(cfg: Config) -> None:
    """Prints the best draft, and why."""
    judge = Judge.load(cfg.run)
    drafts = read_candidates(cfg.drafts)
    best, found = judge.best_of(
        read_exemplars(cfg.exemplars), [draft.text for draft in drafts], n=cfg.n
    )
    print(f"{drafts[best].id}: {found.score:.2f} (spread {found.spread:.2f})")
    print(drafts[best].text)
    print(f"\nthe judge: {found.reasoning[0]}")


if __name__ == "__main__":
    main(tyro.cli(Config))
