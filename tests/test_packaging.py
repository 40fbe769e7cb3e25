"""What every distribution must bring, and what must not differ between them."""

import re
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = [path.name for path in PACKAGES]


def project(package: Path) -> dict:
    return tomllib.loads((package / "pyproject.toml").read_text())["project"]


def test_nine_packages_and_the_workspace_knows_them():
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert len(NAMES) == 9
    assert sorted(root["tool"]["uv"]["sources"]) == NAMES
    wanted = {re.split(r"[\[<>=]", item)[0] for item in root["project"]["dependencies"]}
    assert wanted == set(NAMES)
    assert sorted(root["tool"]["coverage"]["run"]["source_pkgs"]) == sorted(
        name.replace("-", "_") for name in NAMES
    )


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_package_is_complete(package):
    module = package.name.replace("-", "_")
    metadata = project(package)
    assert metadata["name"] == package.name
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert metadata["version"] == version(package.name)
    assert metadata["requires-python"] == ">=3.11"
    assert metadata["license"] == "MIT"
    assert (package / "LICENSE").read_text().startswith("MIT License")
    assert (package / "src" / module / "py.typed").is_file()
    assert f"## {metadata['version']}" in (package / "CHANGELOG.md").read_text()
    readme = (package / "README.md").read_text()
    assert f"pip install {package.name}" in readme
    assert "```python" in readme, "a README shows an example"
    assert "<!-- methods:begin -->" in readme


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_dependants_allow_a_range_of_cv_core(package):
    if package.name == "cv-core":
        return
    major, minor, _ = project(ROOT / "packages" / "cv-core")["version"].split(".")
    wanted = f"cv-core>={major}.{minor},<{major}.{int(minor) + 1}"
    assert wanted in project(package)["dependencies"]


def test_every_package_announces_its_methods():
    announced = {point.name: point.value for point in entry_points(group="cvlab.methods")}
    assert announced == {name: f"{name.replace('-', '_')}.methods" for name in NAMES}


def test_constraints_name_versions_only():
    for line in (ROOT / "tools" / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( ; .+)?", line), line
