"""The shape of the code: sizes, names, what may not be used, and what may not lie in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 6
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
BINARIES = {
    ".pkl", ".pt", ".pth", ".bin", ".safetensors", ".onnx", ".npy", ".npz", ".parquet", ".arrow", ".feather", ".db",
    ".sqlite", ".zip", ".gz", ".tar", ".whl", ".so", ".pyc", ".dat", ".csv",
}  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.}/-])/(?:work|farm|root|home|Users)/\w")
REGISTRY = re.compile(r"(?:index-url|find-links|trusted-host)|(?:files\.pythonhosted|pypi)\.org/(?:simple|packages)")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")


def tracked(*patterns: str) -> list[Path]:
    """Files git knows, or would after ``git add`` (so that a new file is checked before it is committed)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # an unpacked archive: no git
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".git"} & set(p.relative_to(ROOT).parts)]
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def sources() -> list[Path]:
    return [p for p in tracked("*.py") if p.suffix == ".py"]


def trees(under: str = "") -> Iterator[tuple[str, ast.Module]]:
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(under):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.lineno} {node.name}", node


def texts(*patterns: str) -> Iterator[tuple[str, str]]:
    for path in tracked(*patterns):
        if path.suffix not in BINARIES:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def hits(pattern: re.Pattern[str], *patterns: str) -> list[str]:
    return [
        f"{name}:{number} {line.strip()[:80]}"
        for name, text in texts(*patterns)
        if name != "tests/architecture/test_shape.py"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_sources_are_found() -> None:
    assert any(path.name == "config.py" for path in sources())


def test_platform_is_a_source_root_and_tests_are_no_packages() -> None:
    """``platform`` is a standard-library module too: with an __init__.py here torch, ray and pytest fail to import."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not (ROOT / "tests" / "platform").exists()
    assert not [p for p in (ROOT / "platform").rglob("*.py") if p.name.startswith(("test_", "conftest"))]


def test_importing_torch_and_ray_works_from_the_checkout() -> None:
    code = "import platform, torch, ray; print(platform.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    assert str(ROOT / "platform") not in found.stdout


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    assert [
        f"{where}: {node.end_lineno - node.lineno + 1} lines"
        for where, node in functions()
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ] == []


def test_functions_take_few_parameters() -> None:
    found = []
    for where, node in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > PARAMETERS:
            found.append(f"{where}: {count} parameters; pass a spec")
    assert found == []


def test_modules_are_named_after_what_they_do() -> None:
    parts = {p.relative_to(ROOT).as_posix(): set(p.relative_to(ROOT).with_suffix("").parts) for p in sources()}
    assert [name for name, found in parts.items() if found & BANNED_NAMES] == []


def test_every_module_says_what_it_does() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree) and not name.startswith("tests/")] == []


def test_every_library_module_postpones_annotations_but_no_serve_builder_does() -> None:
    """Serve passes a dict instead of the typed arguments to a builder whose file postpones annotations."""

    def postpones(tree: ast.Module) -> bool:
        return any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)

    library = [name for name, tree in trees("platform/rayrank/") if _has_code(tree) and not postpones(tree)]
    allowed = [name for name, text in texts("platform/rayrank/*.py") if "FastAPI" in text or "serve.ingress" in text]
    assert [name for name in library if name not in allowed] == []
    assert [name for name, tree in trees("serve_apps/") if postpones(tree)] == []


def _has_code(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def test_no_pickle_and_no_unsafe_loading() -> None:
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{name}: imports {m}" for m in modules if m.split(".")[0] in {"pickle", "dill", "shelve", "joblib"}
            ]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                found += [] if safe else [f"{name}:{node.lineno} torch.load without weights_only=True"]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"eval", "exec", "yaml.unsafe_load"}:
                found.append(f"{name}:{node.lineno} {ast.unparse(node.func)}")
    assert found == []


def test_nothing_is_left_unfinished() -> None:
    assert hits(UNFINISHED, "*.py") == []


def test_no_path_of_a_machine_and_no_registry_address() -> None:
    assert hits(MACHINE_PATH) == []
    assert hits(REGISTRY) == []


def test_no_binary_and_no_data_is_tracked() -> None:
    large = [p for p in tracked() if p.suffix.lower() in BINARIES or p.stat().st_size > 500_000]
    assert [p.relative_to(ROOT).as_posix() for p in large] == []
    assert [p.relative_to(ROOT).as_posix() for p in tracked() if p.is_symlink()] == []


def test_no_work_at_import_time() -> None:
    """Modules define things; a module-level call that opens, prints or starts something does not belong there."""
    banned = {"print", "open", "ray.init", "serve.start", "serve.run", "os.makedirs", "mlflow.set_tracking_uri"}
    found = [
        f"{name}:{node.lineno} {ast.unparse(node.value)[:60]}"
        for name, tree in trees("platform/rayrank/")
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in banned
    ]
    assert found == []
