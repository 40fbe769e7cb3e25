"""What pasting changes and what it leaves, where it pastes, and how objects are cut out."""

import pytest
import torch
from cv_segmentation import context_decoupling
from cv_segmentation.context_decoupling import ContextDecoupling, cut_objects

SIDE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cut(height=8, width=6, seed=0):
    rgb = torch.rand(3, height, width, generator=generator(seed))
    mask = torch.zeros(height, width)
    mask[2:-2, 2:-2] = 1.0
    return rgb, mask


@pytest.fixture
def image():
    return torch.rand(3, SIDE, SIDE, generator=generator(9))


@pytest.mark.parametrize("blur", [1, 3, 5])
def test_property_6_outside_the_blurred_mask_nothing_changes_and_labels_are_the_union(image, blur):
    objects = {c: [cut(seed=c), cut(9, 9, seed=c + 10)] for c in (0, 2, 3)}
    decouple = ContextDecoupling(objects, blur=blur)
    labels, before = torch.tensor([1, 0, 0, 0]), image.clone()
    pasted = set()
    for seed in range(40):
        changed, after, opacity = decouple(image, labels, generator(seed))
        outside = opacity == 0
        assert torch.equal(changed[:, outside], image[:, outside])
        assert not torch.equal(changed, image)
        assert opacity.max() <= 1
        added = after - labels
        assert added.sum() == 1
        assert after[0] == 1
        pasted.add(int(added.argmax()))
    assert pasted == {2, 3}  # absent, and there are objects
    assert torch.equal(image, before)
    assert labels.tolist() == [1, 0, 0, 0]


def test_a_hard_upright_object_of_its_own_size_is_pasted_pixel_by_pixel(image):
    rgb, mask = cut(10, 8)
    decouple = ContextDecoupling({0: [(rgb, mask)]}, scale=(1.0, 1.0), angle=0.0, blur=1)
    changed, _, opacity = decouple(image, torch.zeros(1), generator())
    assert opacity.unique().tolist() == [0, 1]
    rows, columns = opacity.any(1).nonzero()[:, 0], opacity.any(0).nonzero()[:, 0]
    assert (len(rows), len(columns)) == (6, 4)
    found = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    torch.testing.assert_close(found, rgb[:, 2:-2, 2:-2])


def test_the_edge_is_a_gaussian_mean_of_the_mask(image):
    rgb, mask = torch.ones(3, 9, 9), torch.ones(9, 9)
    decouple = ContextDecoupling({0: [(rgb, mask)]}, scale=(1.0, 1.0), angle=0.0, blur=3)
    changed, _, opacity = decouple(image, torch.zeros(1), generator())
    taps = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / 0.8) ** 2)
    taps = taps / taps.sum()
    hard = torch.zeros(SIDE, SIDE)
    top, left = (int((opacity > 0.5).any(axis).nonzero()[0]) for axis in (1, 0))
    # where the object touches the border, its rim lies outside
    hard[top : top + 9, left : left + 9] = 1.0
    expected = torch.zeros(SIDE, SIDE)
    for i in range(SIDE):
        for j in range(SIDE):
            for a in range(3):
                for b in range(3):
                    y, x = i + a - 1, j + b - 1
                    if 0 <= y < SIDE and 0 <= x < SIDE:
                        expected[i, j] += taps[a] * taps[b] * hard[y, x]
    torch.testing.assert_close(opacity, expected)
    torch.testing.assert_close(changed, opacity + (1 - opacity) * image)


def test_a_quarter_turn_is_exact(image, monkeypatch):
    rgb = torch.rand(3, 8, 6, generator=generator())
    given = iter([0.0, 90.0, 1.0])  # whether to paste, the angle, the factor
    monkeypatch.setattr(context_decoupling, "_uniform", lambda *_: next(given))
    decouple = ContextDecoupling({0: [(rgb, torch.ones(8, 6))]}, blur=1)
    changed, _, opacity = decouple(image, torch.zeros(1), generator())
    rows, columns = opacity.any(1).nonzero()[:, 0], opacity.any(0).nonzero()[:, 0]
    found = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    turned = [rgb.rot90(k, (1, 2)) for k in (1, 3)]
    assert any(torch.allclose(found, each, atol=1e-5) for each in turned)


def test_sizes_follow_the_scale_and_angles_keep_the_area(image):
    mask = torch.ones(10, 10)
    decouple = ContextDecoupling({0: [(torch.ones(3, 10, 10), mask)]}, scale=(0.5, 0.9), blur=1)
    areas = [
        float(decouple(image, torch.zeros(1), generator(seed))[2].sum()) for seed in range(200)
    ]
    # the mean of s squared for s uniform in [0.5, 0.9] is 0.503; four standard errors are 0.04
    assert abs(sum(areas) / len(areas) / 100 - 0.503) < 0.06
    assert min(areas) > 16
    assert max(areas) < 100


def test_objects_lie_off_the_centre(image):
    small = {0: [(torch.ones(3, 4, 4), torch.ones(4, 4))]}
    decouple = ContextDecoupling(small, scale=(1.0, 1.0), angle=0.0, blur=1)
    places = set()
    for seed in range(80):
        opacity = decouple(image, torch.zeros(1), generator(seed))[2]
        middle = opacity.nonzero().float().mean(0) + 0.5
        places.add(tuple(middle.tolist()))
        assert (middle - SIDE / 2).abs().max() >= SIDE / 4
    assert len(places) > 40
    large = {0: [(torch.ones(3, 22, 20), torch.ones(22, 20))]}
    decouple = ContextDecoupling(large, scale=(1.0, 1.0), angle=0.0, blur=1)
    for seed in range(10):  # as far as there is room: at the left or the right border
        opacity = decouple(image, torch.zeros(1), generator(seed))[2]
        columns = opacity.any(0).nonzero()[:, 0]
        assert columns[0] == 0 or columns[-1] == SIDE - 1


def test_objects_larger_than_the_image_are_reduced_to_it(image):
    huge = {0: [(torch.ones(3, 90, 40), torch.ones(90, 40))]}
    for seed in range(10):
        _, after, opacity = ContextDecoupling(huge)(image, torch.zeros(1), generator(seed))
        assert after.tolist() == [1]
        assert opacity.sum() > 20


def test_when_nothing_is_pasted(image):
    objects = {0: [cut()], 7: [cut()]}
    for decouple, labels in (
        (ContextDecoupling(objects, p=0.0), torch.zeros(2)),
        (ContextDecoupling(objects), torch.tensor([1, 0])),  # no object of class 1, and no class 7
    ):
        changed, after, opacity = decouple(image, labels, generator())
        assert torch.equal(changed, image)
        assert torch.equal(after, labels)
        assert not opacity.any()
    sometimes = ContextDecoupling(objects, p=0.5)
    count = sum(
        bool(sometimes(image, torch.zeros(1), generator(seed))[2].any()) for seed in range(200)
    )
    assert 70 < count < 130  # four standard errors are 28


def test_the_generator_decides(image):
    decouple = ContextDecoupling({0: [cut(), cut(9, 9)], 1: [cut(7, 7)]})
    one, two, other = (decouple(image, torch.zeros(2), generator(s))[0] for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_specks_survive(image):
    mask = torch.zeros(5, 5)
    mask[2, 2] = 1.0
    decouple = ContextDecoupling({0: [(torch.ones(3, 5, 5), mask)]}, scale=(0.2, 0.5), blur=1)
    for seed in range(30):
        assert decouple(image, torch.zeros(1), generator(seed))[2].sum() >= 1


def test_a_pale_object_stays_pale(image):
    rgb, opacity = torch.ones(3, 8, 8), torch.full((8, 8), 0.4)
    decouple = ContextDecoupling({0: [(rgb, opacity)]}, scale=(1.0, 1.0), angle=0.0, blur=1)
    changed, _, found = decouple(image, torch.zeros(1), generator())
    inside = found > 0
    assert int(inside.sum()) == 64
    torch.testing.assert_close(found[inside], torch.full((64,), 0.4))
    torch.testing.assert_close(changed[:, inside], 0.4 + 0.6 * image[:, inside])


def test_cutting_out_takes_the_images_of_one_class_with_a_margin():
    images = torch.rand(4, 3, 10, 12, generator=generator())
    masks = torch.zeros(4, 10, 12, dtype=torch.int64)
    masks[0, 3:5, 4:9] = 2
    masks[1, 0:4, 9:12] = 1  # at a corner
    masks[1, 8, 0] = 2  # of a class that the image does not show
    masks[2, 2:4, 2:4] = 1  # an image of two classes
    labels = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 1]])  # the last one has no pixel
    found = cut_objects(images, masks, labels, margin=1)
    assert sorted(found) == [0, 1]
    ((rgb, mask),) = found[1]
    assert torch.equal(rgb, images[0, :, 2:6, 3:10])
    assert torch.equal(mask, (masks[0, 2:6, 3:10] == 2).float())
    ((rgb, mask),) = found[0]
    assert torch.equal(rgb, images[1, :, 0:5, 8:12])
    assert torch.equal(mask, (masks[1, 0:5, 8:12] == 1).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": {}}, "objects must hold"),
        ({"objects": {0: []}}, "objects must hold"),
        ({"objects": {0: [(torch.ones(3, 4, 4), torch.zeros(4, 4))]}}, "mask must not be empty"),
        ({"objects": {0: [(torch.ones(3, 4, 4), torch.ones(4, 5))]}}, "mask must have shape"),
        ({"objects": {0: [(torch.ones(3, 4, 4), torch.full((4, 4), 255))]}}, "mask must lie in"),
        ({"objects": {-1: [cut()]}}, "a class of objects"),
        ({"p": 1.5}, "p must lie"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (1.0, 0.5)}, "scale"),
        ({"angle": -1.0}, "angle"),
        ({"blur": 2}, "blur must be odd"),
        ({"off_centre": 0.5}, "off_centre"),
    ],
)
def test_wrong_options_are_named(change, message):
    options = {"objects": {0: [cut()]}, **change}
    with pytest.raises(ValueError, match=f"ContextDecoupling: .*{message}"):
        ContextDecoupling(options.pop("objects"), **options)


def test_wrong_calls_are_named(image):
    decouple = ContextDecoupling({0: [cut()]})
    with pytest.raises(ValueError, match="ContextDecoupling: image must have shape"):
        decouple(image[0], torch.zeros(1), generator())
    with pytest.raises(TypeError, match="ContextDecoupling: image must be a floating"):
        decouple(image.long(), torch.zeros(1), generator())
    with pytest.raises(ValueError, match="cut_objects: masks must lie"):
        cut_objects(image[None], torch.full((1, SIDE, SIDE), 3), torch.ones(1, 2))
