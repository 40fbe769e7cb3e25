"""Cards, and how they are found: with real packages that announce themselves to the interpreter."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cv_core.registry import Card, Entry, Reference, discover, read_index

REFERENCE = Reference(title="A Title", authors="A. One, B. Two", venue="Venue", year=2020)
CARD = Card(
    slug="eog-pruning",
    title="prunes",
    reference=REFERENCE,
    kind="function",
    objects=("cv_x.methods.eog_pruning.prune",),
    examples=list,
)
MODULE = """
from cv_core.registry import Card, Reference
CARD = Card(slug={slug!r}, title="t", kind="function", objects=("a.b",), examples=list,
            reference=Reference(title="t", authors="a", venue="v", year=2020))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes a distribution with one method, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def make(package: str, stem: str, content: str) -> Path:
        module = package.replace("-", "_")
        methods = tmp_path / module / "methods"
        methods.mkdir(parents=True)
        for folder in (methods, methods.parent):
            (folder / "__init__.py").touch()
        (methods / f"{stem}.py").write_text(content)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = f"[cvlab.methods]\n{package} = {module}.methods\n"
        (info / "entry_points.txt").write_text(points)
        return tmp_path / module

    yield make
    for name in set(sys.modules) - known:
        if name.startswith("zz_"):
            del sys.modules[name]


def test_a_package_is_found_by_its_entry_point(install):
    install("zz-one", "first_method", MODULE.format(slug="first-method"))
    found = discover("zz-one")
    assert list(found) == ["first-method"]
    assert found["first-method"].package == "zz-one"
    assert found["first-method"].experiment_module == "zz_one.experiments.first_method"
    assert "zz_one.methods.first_method" in sys.modules


def test_private_modules_are_no_methods(install):
    install("zz-private", "_shared", "raise RuntimeError('imported')")
    assert discover("zz-private") == {}


def test_two_cards_of_one_slug_are_refused(install):
    for package in ("zz-one", "zz-two"):
        install(package, "same_name", MODULE.format(slug="same-name"))
    with pytest.raises(ValueError, match="'same-name': in zz-one and in zz-two"):
        discover()


@pytest.mark.parametrize(
    ("content", "message"),
    [("CARD = 3", "must end in a CARD"), (MODULE.format(slug="other"), "must match the module")],
)
def test_a_module_without_its_card_is_refused(install, content, message):
    install("zz-bad", "method", content)
    with pytest.raises(ValueError, match=message):
        discover("zz-bad")


def test_index_is_read_without_importing(install):
    folder = install("zz-index", "method", "raise RuntimeError('imported')")
    row = {"package": "zz-index", "slug": "method"}
    (folder / "index.json").write_text(json.dumps([row]))
    assert row in read_index()
    assert "zz_index.methods" not in sys.modules


@pytest.mark.parametrize("slug", ["EOG", "eog_pruning", "-eog", "eog-", "", "eog\n", "a--b"])
def test_a_slug_is_in_kebab_case(slug):
    with pytest.raises(ValueError, match="kebab case"):
        replace(CARD, slug=slug)


def test_a_card_is_checked():
    with pytest.raises(ValueError, match="Did you mean 'function'"):
        replace(CARD, kind="funtion")
    with pytest.raises(ValueError, match="Did you mean 'deterministic'"):
        replace(CARD, properties=("determinstic",))
    with pytest.raises(ValueError, match="at least one public object"):
        replace(CARD, objects=())


def test_names_derived_from_a_slug():
    entry = Entry(package="cv-x", card=CARD)
    assert CARD.stem == "eog_pruning"
    assert entry.import_package == "cv_x"
    assert entry.experiment_module == "cv_x.experiments.eog_pruning"


def test_a_reference_reads_as_printed():
    assert str(REFERENCE) == "A. One, B. Two: A Title. Venue, 2020."
    assert str(replace(REFERENCE, pages="1-9")) == "A. One, B. Two: A Title. Venue, 2020, pp. 1-9."
