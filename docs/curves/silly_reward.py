"""A reward that pays for a word, for `docs/reading-the-curves.md`: what a policy makes of it shows
how reward hacking looks."""

from collections.abc import Sequence

from persrm_jax.rl.rewards import CompletionRecord


def pays_for_high(records: Sequence[CompletionRecord]) -> list[float]:
    """0.2 for each time that a completion says `high`."""
    return [0.2 * record.text.split().count("high") for record in records]
