import pytest
import torch
from cv_core.imaging.patches import Region, blend_patches, extract_patches, grid_regions, quadtree
from hypothesis import given, settings
from hypothesis import strategies as st


def _image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(4, 23),
    width=st.integers(4, 23),
    size=st.integers(1, 4),
    data=st.data(),
    pad=st.integers(0, 6),
    window=st.sampled_from(["uniform", "hann", "blackman"]),
)
def test_blending_what_was_cut_returns_the_image(height, width, size, data, pad, window):
    stride = data.draw(st.integers(1, size))
    image, regions = _image(height, width), grid_regions(height, width, size, stride)
    patches = extract_patches(image, regions, pad=pad)
    back = blend_patches(patches, regions, height, width, pad=pad, window=window)
    torch.testing.assert_close(back, image, rtol=0, atol=1e-12)


def test_corners_survive_unequal_padded_patches_in_single_precision():
    image = _image(64, 96).float()
    regions = [Region(0, 0, 64, 20), Region(0, 20, 24, 76), Region(24, 20, 40, 76)]
    patches = extract_patches(image, regions, pad=3)
    back = blend_patches(patches, regions, 64, 96, pad=3)
    torch.testing.assert_close(back, image, rtol=0, atol=1e-6)


def test_grid_covers_and_touches_the_border():
    covered = torch.zeros(10, 13, dtype=torch.int64)
    for region in grid_regions(10, 13, (4, 5), (3, 4)):
        assert (region.height, region.width) == (4, 5)
        covered[region.top : region.bottom, region.left : region.right] += 1
    assert int(covered.min()) >= 1
    assert len(grid_regions(8, 8, 4, 4)) == 4


def test_patches_equal_unfold():
    image = _image(9, 9)
    patches = torch.stack(extract_patches(image, grid_regions(9, 9, 3, 2)), dim=-1)
    unfolded = torch.nn.functional.unfold(image, 3, stride=2)
    torch.testing.assert_close(patches.flatten(1, 3), unfolded, rtol=0, atol=0)


def test_padding_reflects_at_the_border_and_takes_neighbours_inside():
    image = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 1, 3, 6)
    first, second = extract_patches(image, [Region(0, 0, 3, 3), Region(0, 3, 3, 3)], pad=2)
    assert first[0, 0, 2].tolist() == [2, 1, 0, 1, 2, 3, 4]
    assert second[0, 0, 2].tolist() == [1, 2, 3, 4, 5, 4, 3]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), min_size=st.integers(1, 9))
def test_quadtree_leaves_tile_the_image(height, width, min_size):
    leaves = quadtree(height, width, lambda _: True, min_size=min_size)
    covered = torch.zeros(height, width, dtype=torch.int64)
    for leaf in leaves:
        covered[leaf.top : leaf.bottom, leaf.left : leaf.right] += 1
    assert bool((covered == 1).all())
    if len(leaves) > 1:
        assert min(min(leaf.height, leaf.width) for leaf in leaves) >= min_size


def test_quadtree_splits_only_where_asked():
    leaves = quadtree(16, 16, lambda r: r.top == 0 and r.left == 0, min_size=4)
    assert leaves == [
        *(Region(top, left, 4, 4) for top in (0, 4) for left in (0, 4)),
        Region(0, 8, 8, 8),
        Region(8, 0, 8, 8),
        Region(8, 8, 8, 8),
    ]


def test_refusals():
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="leaves the image"):
        extract_patches(image, [Region(5, 0, 4, 4)])
    with pytest.raises(ValueError, match="32 pixels are in none"):
        blend_patches([image[..., :4]], [Region(0, 0, 8, 4)], 8, 8)
    with pytest.raises(ValueError, match="must have shape"):
        blend_patches([image], [Region(0, 0, 4, 4)], 8, 8)
    with pytest.raises(ValueError, match="stride along height must be at least 1 and at most 3"):
        grid_regions(8, 8, 3, 4)
    with pytest.raises(ValueError, match="equally many"):
        blend_patches([], [], 8, 8)
    with pytest.raises(ValueError, match="Region: height"):
        Region(0, 0, 0, 3)
