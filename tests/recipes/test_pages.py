"""The recipes' pages: what is on them is tested, and they can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .page import RECIPES, blocks

HERE = Path(__file__).parent
PAGES = sorted(page.name for page in RECIPES.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_named_and_tested(page: str) -> None:
    """No example that nobody has run (what is for a shell or a browser is text)."""
    text = (RECIPES / page).read_text()
    assert len(re.findall(r"^```(?:python|sql|plpgsql)$", text, re.MULTILINE)) == len(blocks(page)) > 0
    test = (HERE / f"test_{page.removesuffix('.md')}.py").read_text()
    for name in blocks(page):
        assert f'"{name}"' in test or f'*blocks("{page}")' in test, f"{name} is not tested"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_can_be_found_and_says_what_is_guaranteed(page: str) -> None:
    """One title, what is guaranteed, the pitfalls, and a link from the README; its own links lead somewhere."""
    text = (RECIPES / page).read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^# .+$", prose, re.MULTILINE) == [text.splitlines()[0]]
    assert {"What is guaranteed", "Pitfalls"} <= set(re.findall(r"^## (.+)$", prose, re.MULTILINE))
    assert "(../reliability.md)" in text
    for link in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (RECIPES / link).exists(), link
    assert f"(docs/recipes/{page})" in (RECIPES.parents[1] / "README.md").read_text()
