import numpy as np
import pytest
from cv_core.data.scenes.caption import describe, relation
from cv_core.data.scenes.compose import compose
from cv_core.data.scenes.scene import Attributes
from cv_core.data.scenes.spec import SceneSpec
from sklearn.datasets import load_digits


@pytest.mark.parametrize(
    ("there", "word"),
    [((9, 3), "left of"), ((-9, 3), "right of"), ((3, 9), "above"), ((3, -9), "below")],
)
def test_relation_follows_the_larger_distance(there, word):
    assert relation(np.zeros(2), np.array(there, dtype=float)) == word


def test_nothing_one_and_sizeless():
    assert describe((), np.zeros((0, 4))) == "an empty scene"
    assert describe([Attributes("7", "red")], np.array([[0.0, 0, 4, 4]])) == "a red 7"


def test_captions_of_scenes_agree_with_their_boxes():
    data = load_digits()
    glyphs = (data.images / 16).astype(np.float32)
    plain = np.full((1, 3, 96, 96), 0.5, np.float32)
    spec = SceneSpec(height=96, width=96, objects=(2, 2), scale=(0.15, 0.3), max_overlap=0.0)
    words = {"left of": 0, "right of": 0, "above": 0, "below": 0}
    for seed in range(40):
        scene = compose(spec, glyphs, data.target, plain, np.random.default_rng(seed))
        word = next(w for w in words if f" {w} a " in scene.caption)
        words[word] += 1
        said = [part.split()[-1] for part in scene.caption.split(f" {word} a ")]
        boxes = scene.boxes.numpy()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        first, second = np.argsort(centres[:, 0], kind="stable")
        assert said == [str(int(scene.labels[first])), str(int(scene.labels[second]))]
        right, down = centres[second] - centres[first]
        held = {"left of": right >= abs(down), "above": down > right, "below": -down > right}
        assert held[word]
    assert words["right of"] == 0  # objects are named from left to right
    assert min(words["left of"], words["above"], words["below"]) > 0
