"""The lists of pairs are read by document id; numbers that are off end with an error."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import ccat50

STYLES = {
    "ann": "Well, I never! The {} is such a lovely thing, is it not, my dear?",
    "bob": "Report on {}: quantity measured. Result recorded. No further remarks.",
    "cy": "so i went and saw the {} and then i went home and then i slept",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people whose styles differ wholly, all writing about the same two things."""
    stories = [
        {"author": author, "split": split, "doc_id": f"{author}-{split}-{thing}",
         "text": style.format(thing)}
        for author, style in STYLES.items() for split in ("train", "test")
        for thing in ("garden", "engine")
    ]  # fmt: skip
    with gzip.open(tmp_path / "ccat50.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(story) + "\n" for story in stories)
    rows = [
        {"author": author, "exemplar_ids": [f"{author}-train-garden", f"{author}-train-engine"],
         "chosen_id": f"{author}-test-engine", "rejected_id": f"{other}-test-engine",
         "rejected_author": other}
        for author in STYLES for other in STYLES if author != other
    ]  # fmt: skip
    for name in ccat50.LISTS:
        (tmp_path / f"pairs_{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_pairs_hold_the_texts_that_the_lists_name(folder: Path) -> None:
    texts, fit_texts = ccat50.read_stories(folder)
    assert (len(texts), len(fit_texts)) == (12, 6)
    first, *_ = ccat50.read_pairs(folder / "pairs_topic.jsonl", "other_author_same_topic", texts, 1)
    assert first.exemplars == (STYLES["ann"].format("garden"),)
    assert (first.chosen, first.rejected) == tuple(
        STYLES[name].format("engine") for name in ("ann", "bob")
    )


def test_what_is_off_is_named_and_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    with pytest.raises(
        ValueError, match=r"off by more than 0.02.*char_ngrams on random pairs, k ="
    ):
        ccat50.main(["--data", str(folder), "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 16
    found = {(row["scorer"], row["pairs"], row["k"]): row["accuracy"] for row in rows}
    assert found["char_ngrams", "topic", 4] == found["stylometry", "random", 1] == 1.0
    with pytest.raises(ValueError, match=r"nowhere/ccat50.jsonl.gz: no such file"):
        ccat50.main(["--data", str(tmp_path / "nowhere")])
