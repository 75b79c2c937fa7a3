"""What a reader relies on and no linter checks: the engine knows no task, files stay short, options are one word."""

import ast
import re
from pathlib import Path

import pytest

from common.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ROOT / f"{name}.py" for name in ("make_folds", "train", "infer", "ensemble")]
ENGINE = sorted((ROOT / "common" / "engine").glob("*.py"))
COMPETITIONS = {"biomass", "glacier", "rts", "landslide", *TASKS}


def without_docstrings(source: str) -> str:
    """The source as Python sees it (no comments), its docstrings taken out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("path", [*SCRIPTS, *ENGINE], ids=lambda path: path.stem)
def test_scripts_and_engine_name_no_task(path):
    words = set(re.findall(r"[a-z]+", without_docstrings(path.read_text()).lower()))
    assert not words & COMPETITIONS


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_arrows_never_run_back_up():
    """scripts -> tasks -> the rest; the engine knows no task, and nothing below imports a script."""
    scripts = {path.stem for path in SCRIPTS}
    for path in sorted((ROOT / "common").rglob("*.py")):
        imports = imports_of(path)
        assert not imports & scripts, path
        if "tasks" not in path.parts and path.name != "session.py":
            assert not any(name.startswith("common.tasks") for name in imports), path


def test_no_star_and_no_re_exports():
    for path in sorted((ROOT / "common").rglob("*.py")):
        source = path.read_text()
        assert not re.search(r"^from .* import \*", source, re.M), path
        if path.name == "__init__.py" and path.parent.name != "tasks":
            found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
            if path.parent.name == "common":  # what must be set before torch loads
                assert [ast.unparse(node) for node in found] == ["import os"], path
            else:
                assert not source.strip(), path
        assert path.name != "utils.py"


def test_files_stay_short():
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines())
            for path in [*SCRIPTS, *(ROOT / "common").rglob("*.py")]}  # fmt: skip
    assert not {name: lines for name, lines in long.items() if lines > 310}


def test_torchrun_is_told_where_its_own_options_end():
    """Without `--` it takes train.py's --run for an abbreviation of its --run-path and stops."""
    shown = [ROOT / "README.md", *SCRIPTS, *(ROOT / "recipes").iterdir()]
    commands = [
        match for path in shown if path.is_file() for match in re.findall(r"torchrun --nproc.*", path.read_text())
    ]
    assert len(commands) >= 4
    for command in commands:
        assert re.match(r"torchrun --nproc-per-node \S+ -- \w+\.py", command), command
