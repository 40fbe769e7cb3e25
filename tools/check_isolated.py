"""Check a package in an environment that holds its wheel and nothing else of ours but cv-core.

``python tools/check_isolated.py cv-graph DIST``: the wheel and the source archive hold what they
must, the package imports without heavy libraries, its README's example runs, and without the
``lab`` extra the command line says how to install it. Import times are printed, not judged.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

HEAVY = ("matplotlib", "lightning_fabric", "torchmetrics", "torchvision", "sklearn", "pandas")
ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )


def check_archives(package: str, dist: Path) -> None:
    module = package.replace("-", "_")
    (wheel,) = dist.glob(f"{module}-*.whl")
    (archive,) = dist.glob(f"{module}-*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (f"{module}/py.typed", f"{module}/index.json", f"{module}/__init__.py"):
        assert wanted in names, f"the wheel lacks {wanted}"
    assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its licence"
    strays = [name for name in names if not name.startswith((f"{module}/", f"{module}-"))]
    assert not strays, f"the wheel installs outside its package: {strays}"
    with tarfile.open(archive) as opened:
        members = {name.partition("/")[2] for name in opened.getnames()}
    for wanted in (
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "pyproject.toml",
        f"src/{module}/__init__.py",
    ):
        assert wanted in members, f"the source archive lacks {wanted}"


def check_alone(package: str) -> None:
    ours = sorted(
        name for item in distributions() if (name := item.metadata["Name"]).startswith("cv-")
    )
    assert set(ours) <= {"cv-core", package}, f"not alone: {ours}"
    try:
        version("typer")
    except PackageNotFoundError:
        return
    raise AssertionError("the lab extra is installed; this check is about life without it")


def check_imports(package: str) -> None:
    module = package.replace("-", "_")
    done = run_python(
        f"import sys, {module}; print({module}.__version__, "
        f"*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    shown, *heavy = done.stdout.split()
    assert shown == version(package), f"{module}.__version__ is {shown}"
    assert not heavy, f"import {module} brings {heavy}"
    names = f"[getattr({module}, name) for name in getattr({module}, '__all__', [])]"
    done = run_python(f"import {module}; {names}")
    assert done.returncode == 0, f"a public name cannot be imported:\n{done.stderr}"
    times = {}
    for what in ("torch", module):
        start = time.perf_counter()
        run_python(f"import {what}")
        times[what] = time.perf_counter() - start
    print(f"{package}: import {times[module]:.2f} s, torch alone {times['torch']:.2f} s")


def check_readme(package: str) -> None:
    text = (ROOT / "packages" / package / "README.md").read_text(encoding="utf-8")
    assert f"pip install {package}" in text, "the README lacks its install line"
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert examples, "the README lacks an example"
    done = run_python(examples[0])
    assert done.returncode == 0, f"the README's example fails:\n{done.stderr}"


def check_command_line() -> None:
    done = run_python("from cv_core.cli import main; main()")
    assert done.returncode == 2, "cvlab without its extra must end with exit code 2"
    assert 'pip install "cv-core[lab]"' in done.stderr, done.stderr


def main() -> None:
    package, dist = sys.argv[1], Path(sys.argv[2])
    check_archives(package, dist)
    check_alone(package)
    check_imports(package)
    check_readme(package)
    check_command_line()
    print(f"{package}: sound on its own")


if __name__ == "__main__":
    main()
