"""The documents name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "results").rglob("*.md"),
]
_LINK = re.compile(r"\[(`?)([^\]`]*)\1\]\(([^)#\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_code_to_its_definition(page: Path) -> None:
    for code, text, target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = page.parent / target
        assert path.exists(), f"{target}: no such file"
        if code and path.suffix == ".py" and text.isidentifier():
            defined = re.search(rf"^(def|class) {text}\b", path.read_text("utf-8"), re.MULTILINE)
            assert defined, f"{target}: defines no {text}"


def test_the_method_names_functions() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert sum(bool(code) for code, _, _ in _LINK.findall(page)) > 30
