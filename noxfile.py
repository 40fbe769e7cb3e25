"""Every check by name. ``nox`` runs what must pass; ``nox --list`` shows the rest.

Packages are read from ``packages/``; nothing is listed by hand. Sessions install with uv and take
versions from ``tools/constraints.txt``, unless they are about versions themselves.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
BACKENDS = ["default", "cpu", "cu126", "cu130", "auto"]
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
# Peers that ask for versions or libraries nothing else can live with, and work without them.
ALONE = ["grad-cam>=1.5.5", "torchattacks>=3.5.1"]

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "unit", "peers", "smoke", "isolated"]
# A missing interpreter is skipped, unless the user asks for it by name.
nox.options.error_on_missing_interpreters = any("python=" in word for word in sys.argv)


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of the workspace."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return list(groups[name])


def extras(package: str) -> str:
    """Return a package's extras that its own tests need, as in ``cv-core[dask,lab,ray]``."""
    path = ROOT / "packages" / package / "pyproject.toml"
    names = tomllib.loads(path.read_text())["project"].get("optional-dependencies", {})
    return ",".join(sorted(names))


def editable(*packages: str) -> list[str]:
    """Return the arguments that install packages from the checkout with all their extras."""
    found: list[str] = []
    for package in dict.fromkeys(["cv-core", *packages]):
        found += ["-e", f"packages/{package}[{extras(package)}]"]
    return found


def environment() -> dict[str, str]:
    """Return the variables of a test run: data beside the checkout is used where it lies there."""
    variables = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    # Hundreds of tests start an interpreter of their own: let byte code be kept, come what may.
    variables["PYTHONDONTWRITEBYTECODE"] = ""
    # Under `uv run nox`, ray would start its workers by `uv run` too, which first brings the
    # session's environment to the newest versions, in the middle of the tests.
    variables["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    data = ROOT.parent / "shared" / "data"
    if "CV_DATA" not in os.environ and data.is_dir():
        variables["CV_DATA"] = str(data)
    return variables


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest; extra words after ``--`` go to it too."""
    session.run("python", "-m", "pytest", *arguments, *session.posargs, env=environment())


def install(session: nox.Session, *what: str, backend: str = "default") -> None:
    """Install with the constraints, and torch built for a backend where one is asked for."""
    arguments = ["--constraint", str(CONSTRAINTS)] if backend == "default" else []
    if backend != "default":
        arguments += ["--torch-backend", backend]
    session.install(*arguments, *what)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    install(session, *group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, package by package's sources."""
    install(session, *group("types"), *editable(*PACKAGES))
    session.run("mypy", *(f"packages/{package}/src" for package in PACKAGES))


@nox.session
def unit(session: nox.Session) -> None:
    """All tests of all packages and of ``tests/``, in one environment, on the default Python."""
    install(session, *group("test"), *editable(*PACKAGES))
    pytest(
        session, "-n", "2", "-m", "not smoke", "--ignore-glob=*test_peers_*", "tests", "packages"
    )


@nox.session
def smoke(session: nox.Session) -> None:
    """The smoke run of every experiment, with every annotated shape checked on the way."""
    install(session, *group("test"), *editable(*PACKAGES))
    modules = ",".join(package.replace("-", "_") for package in PACKAGES)
    hook = f"--jaxtyping-packages={modules},shape_checker.checked"
    pytest(session, "-n", "2", hook, "-m", "smoke", "tests")


@nox.session
def peers(session: nox.Session) -> None:
    """Equality with the libraries that offer the same thing."""
    install(session, *group("test"), *group("peers"), *editable(*PACKAGES))
    install(session, "--no-deps", *ALONE)
    files = sorted(str(path) for path in ROOT.glob("packages/*/tests/**/test_peers_*.py"))
    pytest(session, *files)


@nox.session
@nox.parametrize(
    "python,package", [(python, package) for python in PYTHONS for package in PACKAGES]
)
def tests(session: nox.Session, package: str) -> None:
    """One package's tests on one Python, with nothing else of ours but cv-core."""
    install(session, *group("test"), *editable(package))
    run_package_tests(session, package)


@nox.session
@nox.parametrize(
    "backend,package", [(backend, package) for backend in BACKENDS for package in PACKAGES]
)
def torch(session: nox.Session, backend: str, package: str) -> None:
    """One package's tests on one build of torch."""
    install(session, *group("test"), *editable(package), backend=backend)
    run_package_tests(session, package)


@nox.session
@nox.parametrize(
    "backend,package", [(backend, package) for backend in BACKENDS[2:] for package in PACKAGES]
)
def cuda(session: nox.Session, backend: str, package: str) -> None:
    """One package's tests with a GPU, whose absence is a failure."""
    install(session, *group("test"), *editable(package), backend=backend)
    session.env["CV_REQUIRE_CUDA"] = "1"
    session.run(
        "python", "-c", "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'"
    )
    run_package_tests(session, package)


@nox.session
@nox.parametrize("package", PACKAGES)
def lowest(session: nox.Session, package: str) -> None:
    """One package's tests with the lowest versions that its metadata allow."""
    session.install("--resolution", "lowest-direct", *group("test"), *editable(package))
    run_package_tests(session, package)


def run_package_tests(session: nox.Session, package: str) -> None:
    """Run a package's own tests; the peers have a session of their own."""
    pytest(session, "-n", "2", "--ignore-glob=*test_peers_*", f"packages/{package}/tests")


@nox.session
@nox.parametrize("package", PACKAGES)
def build(session: nox.Session, package: str) -> None:
    """Build a package's wheel and source archive into ``dist/``."""
    session.run(
        "uv", "build", "--no-sources", "--package", package, "--out-dir", "dist", external=True
    )


@nox.session
@nox.parametrize("package", PACKAGES)
def isolated(session: nox.Session, package: str) -> None:
    """One package from its wheel, beside nothing of ours but cv-core: install, import, example."""
    dist = Path(session.create_tmp()) / "dist"
    for name in dict.fromkeys(["cv-core", package]):
        session.run(
            "uv", "build", "-q", "--no-sources", "--package", name, "--out-dir", str(dist),
            external=True,
        )  # fmt: skip
    wheel = next(dist.glob(f"{package.replace('-', '_')}-*.whl"))
    install(session, "--reinstall-package", package, "--reinstall-package", "cv-core",
            "--find-links", str(dist), str(wheel))  # fmt: skip
    session.run("python", "tools/check_isolated.py", package, str(dist))


@nox.session
def bench(session: nox.Session) -> None:
    """Race ours against the peers; ``nox -s bench -- cv-core`` for one package's races."""
    install(session, *group("test"), *group("peers"), *editable(*PACKAGES))
    install(session, "--no-deps", *ALONE)
    for package in session.posargs or PACKAGES:
        for script in sorted(ROOT.glob(f"packages/{package}/benchmarks/bench_*.py")):
            session.run("python", str(script), env={"OMP_NUM_THREADS": "2"})
    session.run("python", "tools/index.py")


@nox.session
def reports(session: nox.Session) -> None:
    """Make the committed reports; ``nox -s reports -- icce anmmf`` for some of them."""
    install(session, *editable(*PACKAGES))
    session.run("python", "tools/reports.py", *session.posargs, env=environment())
    session.run("python", "tools/index.py")
