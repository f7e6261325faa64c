"""Imports go downwards only. The contracts are in pyproject.toml; here they run, and here is what they cannot say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "platform" / "rayrank"
PURE = ("batch.py", "features", "metrics", "models", "objectives")
FILES = {"open", "os.environ", "os.getenv", "Path", "requests.get", "urlopen"}


def imported(path: Path) -> set[str]:
    """Top packages that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_import_contracts_hold() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-logo", "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert linted.returncode == 0, linted.stdout[-4000:] + linted.stderr[-1000:]
    assert "0 broken" in linted.stdout


def test_ray_and_mlflow_have_one_importer_each() -> None:
    for path in LIBRARY.rglob("*.py"):
        inside = path.relative_to(LIBRARY).parts[0]
        assert "ray" not in imported(path) or inside == "on_ray", path
        assert "mlflow" not in imported(path) or inside.startswith("tracking"), path


def test_entry_points_are_thin() -> None:
    for path in [*(ROOT / "jobs").glob("*.py"), *(ROOT / "serve_apps").glob("*.py"), LIBRARY / "__main__.py"]:
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        assert statements <= 40, f"{path.name}: {statements} statements; logic belongs in the pipeline"


def test_pure_pieces_touch_no_files_network_or_environment() -> None:
    found = []
    for path in [
        file for name in PURE for file in ((LIBRARY / name).rglob("*.py") if "." not in name else [LIBRARY / name])
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = (
                ast.unparse(node.func)
                if isinstance(node, ast.Call)
                else ast.unparse(node)
                if isinstance(node, ast.Attribute)
                else ""
            )
            if called in FILES:
                found.append(f"{path.relative_to(LIBRARY)}:{node.lineno} {called}")
    assert found == []


def test_pipeline_functions_never_print_or_read_argv() -> None:
    found = []
    for path in (LIBRARY / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            prints = isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "input"}
            reads = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv"
            if prints or reads:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_importing_the_vocabulary_is_cheap() -> None:
    code = (
        "import sys, rayrank.config, rayrank.schema, rayrank.messages, rayrank.locations\n"
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


def test_what_only_text_encoders_need_is_imported_late() -> None:
    slow = {"transformers", "peft", "accelerate", "torch._dynamo"}
    code = f"import sys, rayrank.pipeline.distill, rayrank.ranking.graph; print(*sorted({slow!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    assert not done.stdout.split(), "several seconds and 120 MB in every process of a job"
