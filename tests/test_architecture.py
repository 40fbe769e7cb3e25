"""The shape of the house: which imports are allowed, and one stem for one paper."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = [path.name for path in PACKAGES]

# From the bottom; a module may import from its own group and from groups below.
LAYERS = [
    {"checks", "files", "optional", "random", "registry"},
    {"numerics", "imaging"},
    {"data"},
    {"nn"},
    {"models", "losses"},
    {"explain", "metrics"},
    {"engine"},
    {"experiment"},
    {"report"},
    {"cli", "methods", "experiments"},
    {"testing"},
]

# Distributions whose import name is another.
IMPORT_NAMES = {
    "faster-coco-eval": "faster_coco_eval",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "torch-geometric": "torch_geometric",
    "dask[distributed]": "distributed",
}
# Installed with a declared dependency, and documented as such by it.
COME_ALONG = {"threadpoolctl": "scikit-learn", "markupsafe": "jinja2"}


def sources(package: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((package / "src").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, tree: ast.Module) -> Iterator[str]:
    """Every module that a file names in an import, relative ones made absolute."""
    parts = path.with_suffix("").parts
    dotted = parts[parts.index("src") + 1 :]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(dotted[: len(dotted) - node.level])
            yield f"{base}.{node.module}" if node.module else base


def layer(module: str) -> int:
    """The layer of a dotted name inside cv-core; the package itself lies below everything."""
    parts = module.split(".")
    if len(parts) < 2:
        return -1
    for height, group in enumerate(LAYERS):
        if parts[1] in group:
            return height
    return -1 if parts[1] == "__version__" else pytest.fail(f"{module} has no layer")


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_packages_import_only_cv_core_and_themselves(package):
    ours = {name.replace("-", "_") for name in NAMES}
    allowed = {package.name.replace("-", "_"), "cv_core"}
    for path, tree in sources(package):
        for module in imported(path, tree):
            top = module.partition(".")[0]
            assert top not in ours - allowed, f"{path.name} imports {module}"


def test_cv_core_imports_point_down():
    for path, tree in sources(ROOT / "packages" / "cv-core"):
        parts = path.with_suffix("").relative_to(ROOT / "packages/cv-core/src").parts
        if parts == ("cv_core", "__init__"):
            continue
        height = layer(".".join(parts))
        for module in imported(path, tree):
            if module.startswith("cv_core."):
                assert layer(module) <= height, f"{'.'.join(parts)} imports {module}, above it"


def test_cv_core_names_no_other_package():
    others = [name.replace("-", "_") for name in NAMES if name != "cv-core"]
    for path, tree in sources(ROOT / "packages" / "cv-core"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue  # the test above
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = [name for name in others if re.search(rf"\b{name}\b", node.value)]
                docstring = "\n" in node.value or " " in node.value
                assert not named or docstring, f"{path.name} names {named}"


def requirements(package: Path) -> set[str]:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    listed = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        listed += extra
    names = {re.split(r"[<>=;~! ]", item)[0] for item in listed}
    return {IMPORT_NAMES.get(name, name.partition("[")[0].replace("-", "_")) for name in names}


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_every_import_is_a_declared_dependency(package):
    """uv does not notice a member importing what only a sibling declares."""
    declared = requirements(package) | {package.name.replace("-", "_")} | set(COME_ALONG)
    if package.name != "cv-core":
        declared |= requirements(ROOT / "packages" / "cv-core")
    for path, tree in sources(package):
        for module in imported(path, tree):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names:
                assert top in declared, f"{path.relative_to(ROOT)} imports undeclared {top}"


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_one_paper_one_stem(package):
    source = package / "src" / package.name.replace("-", "_")
    methods = {path.stem for path in (source / "methods").glob("[!_]*.py")}
    experiments = {path.stem for path in (source / "experiments").glob("[!_]*.py")}
    tests = {path.stem.removeprefix("test_") for path in package.glob("tests/methods/test_*.py")}
    reports = {path.stem.replace("-", "_") for path in package.glob("reports/*.json")}
    assert experiments == methods, "every method has one experiment of its stem"
    assert methods <= tests, "every method has a test file of its stem"
    assert reports == methods, "every method has a committed report of its slug"


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_no_grab_bags(package):
    for path in package.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, path
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 550, f"{path.relative_to(ROOT)} has {lines} lines: split it"


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_nothing_imports_the_tests_toolbox(package):
    for path, tree in sources(package):
        if "testing" not in path.parts:
            for module in imported(path, tree):
                assert not module.startswith("cv_core.testing"), f"{path.name} imports {module}"
