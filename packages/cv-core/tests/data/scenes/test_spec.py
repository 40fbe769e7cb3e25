import pytest
from cv_core.data.scenes.spec import SceneSpec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": (3, 2)}, r"objects\[1\] must be at least 3"),
        ({"scale": (0.5, 0.2)}, r"scale\[1\] must lie in \[0.5, 1\]"),
        ({"max_overlap": 1.5}, "max_overlap must lie in"),
        ({"colours": ("red", "grene")}, "Did you mean 'green'"),
        ({"colours": ()}, "at least one colour"),
        ({"appearance": "inks"}, "appearance must be one of"),
        ({"height": 4}, "height must be at least 8"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        SceneSpec(**options)


def test_names():
    assert SceneSpec().name_of(7) == "7"
    assert SceneSpec(names=("boot", "bag")).name_of(1) == "bag"
    with pytest.raises(ValueError, match="label must be at least 0 and at most 1"):
        SceneSpec(names=("boot", "bag")).name_of(2)
