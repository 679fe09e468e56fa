"""The rules on where code lives: which way imports go, what the package exports, what the README names."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
# A module imports from its own level or the ones before it; within a level there are no circles.
LEVELS = [
    {"schema", "errors", "config"},
    {"prompts", "parsers", "metrics", "adapters", "bloom", "decoding", "weights", "grounding", "spans", "windows"}
    | {"files", "textfiles", "rows", "readers", "tables", "exports", "store", "queue", "corrections", "versions"}
    | {"statistics", "reports"},
    {"pipeline", "remote"},
    {"registry"},
    {"language", "entities"},
    {"analysis"},
    {"batch"},
    {"cluster"},
    {"evaluation"},
    {"runs", "sweep"},
]
EDGES = {
    "streamlit",
    "fastapi",
    "ui",
    "api",
    "accounts",
    "gateway",
    "messages",
    "plots",
    "pages",
    "components",
    "training",
    "benchmarks",
    "streamlit_app",
    "tests",
}
CORE = sorted(path.stem for path in (ROOT / "chains").glob("*.py") if path.stem not in {"__init__", "__main__"})


def imports(path):
    """The dotted names that a file imports anywhere, ``from a import b`` as ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def core_imports(module):
    """The modules of ``chains`` that one of them imports; ``from chains import load`` counts as ``load``."""
    parts = [name.split(".") for name in imports(ROOT / "chains" / f"{module}.py")]
    return {part[1] for part in parts if part[0] == "chains" and len(part) > 1}


def level_of(module):
    return next((number for number, level in enumerate(LEVELS) if module in level), None)


@pytest.mark.parametrize("module", CORE)
def test_a_core_module_has_a_level_and_imports_from_no_higher_one(module):
    assert level_of(module) is not None, f"say in LEVELS where chains/{module}.py belongs"
    for name in core_imports(module):
        assert level_of(name) is not None, f"{module} imports {name!r} from the package instead of its module"
        assert level_of(name) <= level_of(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_edge(module):
    roots = {name.split(".")[0] for name in imports(ROOT / "chains" / f"{module}.py")}
    assert not roots & EDGES


def test_no_core_modules_import_each_other_in_a_circle():
    left = {module: core_imports(module) for module in CORE}
    while left:
        free = {module for module, needed in left.items() if not needed & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {module: needed for module, needed in left.items() if module not in free}


@pytest.mark.parametrize(
    "module",
    ["schema", "errors", "config", "prompts", "parsers", "spans", "windows", "textfiles", "rows", "readers", "tables"]
    + ["files", "exports", "store", "remote", "queue", "corrections", "versions"],
)
def test_modules_that_know_no_model_import_neither_torch_nor_transformers(module):
    path = ROOT / "chains" / f"{module}.py"
    if path.exists():
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}


def test_pages_import_only_streamlit_the_shared_modules_chains_and_the_standard_library():
    allowed = {"streamlit", "accounts", "ui", "plots", "components", "chains", *sys.stdlib_module_names}
    for path in sorted((ROOT / "pages").glob("*.py")):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path.name


def test_plots_know_no_streamlit():
    path = ROOT / "plots.py"
    if path.exists():
        assert not {name.split(".")[0] for name in imports(path)} & {"streamlit", "ui"}


def test_the_package_exports_exactly_its_all():
    import chains

    tree = ast.parse((ROOT / "chains" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(typed) == sorted(chains.__all__) == chains.__all__
    for name, home in typed.items():
        assert getattr(chains, name) is getattr(importlib.import_module(home), name)
        assert name in importlib.import_module(home).__all__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        chains.nonsense  # noqa: B018


@pytest.mark.parametrize("module", CORE)
def test_all_of_a_module_names_what_it_has(module):
    home = importlib.import_module(f"chains.{module}")
    assert all(hasattr(home, name) for name in home.__all__)
    assert len(set(home.__all__)) == len(home.__all__)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'langchain_core', 'pandas', 'pydantic'}"
    program = f"import sys, chains, chains.errors, chains.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_dashboard_alone_loads_nothing_of_rest():
    program = "import sys, ui; print({'fastapi', 'prometheus_client', 'api', 'gateway', 'messages'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_model_is_imported_without_what_only_other_models_need():
    program = "import sys, chains.pipeline; print({'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")
def test_the_readme_names_every_setting():
    settings = set(re.findall(r"\"(BLOOM_LENS_[A-Z_]+)\"", (ROOT / "chains" / "config.py").read_text(encoding="utf-8")))
    assert settings and settings <= set(re.findall(r"BLOOM_LENS_[A-Z_]+", README.read_text(encoding="utf-8")))


@pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")
def test_the_readme_names_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "chains", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^    ([a-z]+) ", done.stdout, re.MULTILINE)
    assert {"detect", "entities"} <= set(commands)
    readme = README.read_text(encoding="utf-8")
    assert [command for command in commands if f"python -m chains {command}" not in readme] == []
