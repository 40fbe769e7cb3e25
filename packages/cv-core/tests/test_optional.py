"""A missing library is named with its install line; what is wrong inside one stays visible."""

import math

import pytest
from cv_core.optional import require

ASKING = {"package": "cv-core", "extra": "lab", "purpose": "Drawing"}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder of real modules that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_installed_library_is_returned():
    assert require("math", **ASKING) is math


@pytest.mark.parametrize("module", ["absent_library", "absent_library.part"])
def test_a_missing_library_comes_with_its_install_line(module):
    with pytest.raises(ImportError) as caught:
        require(module, **ASKING)
    assert str(caught.value) == (
        'Drawing needs absent_library, which is not installed: pip install "cv-core[lab]"'
    )


def test_a_missing_part_of_a_library_is_named(library):
    (library / "only_a_part_lib").mkdir()
    (library / "only_a_part_lib" / "__init__.py").touch()
    with pytest.raises(ImportError, match=r"needs only_a_part_lib\.more, which"):
        require("only_a_part_lib.more", **ASKING)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("import absent_dependency", "absent_dependency"),
        ("import broken_library.lost", "broken_library.lost"),  # a damaged installation
        ("raise ModuleNotFoundError('build it first')", None),
    ],
)
def test_what_is_wrong_inside_a_library_is_raised_as_it_is(library, content, name):
    (library / "broken_library").mkdir()
    (library / "broken_library" / "__init__.py").write_text(content)
    with pytest.raises(ModuleNotFoundError) as caught:
        require("broken_library", **ASKING)
    assert caught.value.name == name
    assert "pip install" not in str(caught.value)
