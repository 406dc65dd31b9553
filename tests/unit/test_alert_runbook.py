"""`docs/alerts.md` explains every alert of `deploy/prometheus/alerts.yml`, and no other."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
PAGE = (ROOT / "docs/alerts.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_alerts_and_sections_are_the_same_in_the_same_order() -> None:
    assert list(SECTIONS) == [rule["alert"] for rule in RULES]


def test_section_says_what_to_look_at_and_what_to_do() -> None:
    for name, text in SECTIONS.items():
        assert "- **Look at**" in text, name
        assert "- **Do:**" in text, name


def test_links_of_alerts_and_of_the_page_lead_to_sections() -> None:
    anchors = {name.lower() for name in SECTIONS}
    assert {rule["annotations"]["runbook_url"] for rule in RULES} == {f"docs/alerts.md#{name}" for name in anchors}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
    operations = (ROOT / "docs/operations.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", operations, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(operations\.md#([\w-]+)\)", PAGE)) <= headings
