"""The sizes that the house allows; the layers are checked by import-linter, the rest by ruff and pyright."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for folder in ("app", "sandbox", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.parts
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small_enough_to_read(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 50, node.name


def test_every_setting_is_in_the_example_with_its_default() -> None:
    from dotenv import dotenv_values

    from app.settings import Settings

    listed = set(dotenv_values(ROOT / ".env.example"))
    assert listed == {name.upper() for name in Settings.model_fields}
    example = Settings(_env_file=ROOT / ".env.example")  # type: ignore[call-arg]
    assert example == Settings(_env_file=None)  # type: ignore[call-arg]


def test_only_the_composition_root_and_the_start_read_settings() -> None:
    allowed = {"settings.py", "bootstrap.py", "main.py", "__main__.py"}
    for path in (ROOT / "app").rglob("*.py"):
        if path.parent == ROOT / "app" and path.name in allowed:
            continue
        assert "app.settings" not in path.read_text(), path
