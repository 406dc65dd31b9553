"""Rules of size and structure. import-linter checks the layers; ruff and pyright check the rest."""

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAX_MODULE_LINES = 400
"""Maximum number of lines of a module, docstrings and comments included."""

MAX_FUNCTION_LINES = 50
"""Maximum number of lines of a function, without its docstring."""

MAX_APP_CODE_LINES = 25_000
"""Maximum number of lines of code in `app/`, without docstrings, comments and blank lines."""

MAX_INFRASTRUCTURE_CODE_LINES = 15_000
"""Maximum number of lines of code in `app/infrastructure/`."""

MAX_INFRASTRUCTURE_MODULES = 124
"""Maximum number of modules in `app/infrastructure/`."""

MAX_SINGLE_IMPORTERS = 77
"""Maximum number of modules in `app/` and `sandbox/` that exactly one other module imports."""

MAX_DUPLICATE_CLASS_NAMES = 0
"""Maximum number of class names that a program (`app/` or `sandbox/`) defines more than once."""

_IGNORED_TOKENS = frozenset(
    (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
)


def modules_in(*folders: str) -> list[Path]:
    """Return the modules below `folders`, without tests."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "tests" not in path.parts)


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text())


def dotted_name(path: Path) -> str:
    """Return the name of a module, such as `app.main`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def code_lines(path: Path) -> int:
    """Return the number of lines of code of a module. A docstring is any expression that is only a string."""
    docstrings: set[int] = set()
    for node in ast.walk(parse(path)):
        for statement in getattr(node, "body", ()) if isinstance(getattr(node, "body", ()), list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                if isinstance(statement.value.value, str):
                    docstrings |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in _IGNORED_TOKENS:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def imported_names(path: Path) -> Iterator[str]:
    """Return the names that a module imports with `from`; they may be modules, or members of modules."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules_in("app", "sandbox", "bench"), ids=dotted_name)
def test_modules_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert (node.end_lineno or 0) - node.lineno + 1 - docstring <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize(
    ("folder", "limit"), [("app", MAX_APP_CODE_LINES), ("app/infrastructure", MAX_INFRASTRUCTURE_CODE_LINES)]
)
def test_lines_of_code_stay_within_the_limit(folder: str, limit: int) -> None:
    assert sum(code_lines(path) for path in modules_in(folder)) <= limit


def test_number_of_infrastructure_modules_stays_within_the_limit() -> None:
    assert len(modules_in("app/infrastructure")) <= MAX_INFRASTRUCTURE_MODULES


def test_number_of_modules_with_one_importer_stays_within_the_limit() -> None:
    paths = {dotted_name(path): path for path in modules_in("app", "sandbox")}
    importers: defaultdict[str, set[Path]] = defaultdict(set)
    for path in paths.values():
        for name in imported_names(path):
            if name in paths and paths[name] != path:
                importers[name].add(path)
    single = sorted(name for name in paths if not name.endswith("__init__") and len(importers[name]) == 1)
    assert len(single) <= MAX_SINGLE_IMPORTERS, single


def test_class_names_are_unique_within_a_program() -> None:
    duplicates: list[str] = []
    for program in ("app", "sandbox"):
        modules: defaultdict[str, set[str]] = defaultdict(set)
        for path in modules_in(program):
            for node in ast.walk(parse(path)):
                if isinstance(node, ast.ClassDef):
                    modules[node.name].add(dotted_name(path))
        duplicates += [f"{name}: {sorted(names)}" for name, names in modules.items() if len(names) > 1]
    assert len(duplicates) <= MAX_DUPLICATE_CLASS_NAMES, duplicates


def test_env_example_lists_every_setting_with_its_default() -> None:
    from dotenv import dotenv_values

    from app.settings import Settings

    listed = set(dotenv_values(ROOT / ".env.example"))
    assert listed == {name.upper() for name in Settings.model_fields}
    example = Settings(_env_file=ROOT / ".env.example")  # type: ignore[call-arg]
    assert example == Settings(_env_file=None)  # type: ignore[call-arg]


def test_only_the_composition_root_and_the_entry_points_read_settings() -> None:
    allowed = {
        *("settings.py", "model_config.py", "providers.py", "bootstrap.py", "main.py", "__main__.py"),
        *("own_secrets.py", "observability.py", "check_model.py", "backup.py", "verify_audit.py"),
    }
    for path in modules_in("app"):
        if path.parent == ROOT / "app" and path.name in allowed:
            continue
        assert not any(name.startswith("app.settings") for name in imported_names(path)), path


def test_every_tool_names_the_toolkit_that_lists_it() -> None:
    from app.domain.services.tools.registry import TOOLKITS

    for toolkit, tools in TOOLKITS.items():
        for tool in tools:
            assert tool.toolkit in (toolkit, ""), tool.spec.name
