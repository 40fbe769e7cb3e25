import math

import pytest
import torch
from cv_core.imaging.kernels import (
    difference_of_gaussians_kernel,
    disk_kernel,
    gaussian_kernel,
    gaussian_kernel1d,
    motion_kernel,
)


def test_gaussian_has_its_standard_deviation_and_is_the_outer_product():
    line = gaussian_kernel1d(2.5, 41, dtype=torch.float64)
    offset = torch.arange(-20, 21, dtype=torch.float64)
    assert line.sum().item() == pytest.approx(1.0, abs=1e-14)
    # a sampled Gaussian keeps its variance to exp(-2 pi^2 sigma^2), far below rounding here
    assert (line * offset**2).sum().item() == pytest.approx(2.5**2, abs=1e-9)
    square = gaussian_kernel(2.5, 41, dtype=torch.float64)
    for row in (0, 13, 20):
        torch.testing.assert_close(square[row], line * line[row], rtol=0, atol=0)


def test_gaussian_of_any_width_is_finite():
    assert gaussian_kernel1d(1e-200, 3).tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(gaussian_kernel1d(1e6, 3), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_difference_of_gaussians_has_no_mean_and_one_zero_circle(sigma):
    kernel = difference_of_gaussians_kernel(sigma, dtype=torch.float64)
    assert abs(kernel.sum().item()) < 1e-14
    torch.testing.assert_close(kernel, kernel.T, rtol=0, atol=1e-18)
    centre = kernel.shape[0] // 2
    # G_s = G_rs at radius s sqrt(4 r^2 ln r / (r^2 - 1)): positive inside, negative outside
    radius = sigma * math.sqrt(4 * 1.6**2 * math.log(1.6) / (1.6**2 - 1))
    axis = kernel[centre, centre:]
    distance = torch.arange(len(axis))
    assert bool((axis[distance < radius - 0.1] > 0).all())
    assert bool((axis[distance > radius + 0.1] < 0).all())


@pytest.mark.parametrize("length", [1, 3, 15])
def test_motion_along_an_axis_is_a_box(length):
    kernel = motion_kernel(length, 0.0, dtype=torch.float64)
    assert kernel.shape == (length, length)
    middle = torch.full((length,), 1.0 / length, dtype=torch.float64)
    torch.testing.assert_close(kernel[length // 2], middle)
    assert kernel.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(motion_kernel(length, 90.0, dtype=torch.float64), kernel.T)


def test_motion_equals_one_minus_the_distance_to_the_segment():
    length, angle = 9.0, 30.0
    kernel = motion_kernel(length, angle, 15, dtype=torch.float64)
    # the slow reference walks along the segment instead of using a formula for the distance
    expected = torch.zeros(15, 15, dtype=torch.float64)
    points = [-4.0 + 8.0 * step / 20000 for step in range(20001)]
    line_x = torch.tensor(points, dtype=torch.float64) * math.cos(math.radians(angle))
    line_y = -torch.tensor(points, dtype=torch.float64) * math.sin(math.radians(angle))
    for row in range(15):
        for column in range(15):
            distance = torch.hypot(line_x - (column - 7), line_y - (row - 7)).min().item()
            expected[row, column] = max(0.0, 1.0 - distance)
    torch.testing.assert_close(kernel, expected / expected.sum(), rtol=0, atol=1e-6)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))  # symmetric about its centre
    assert kernel[5, 10] > 0.05 > kernel[9, 10]  # counter-clockwise: up on the right


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0, 3.7])
def test_disk_is_the_exact_area(radius):
    kernel = disk_kernel(radius, 11, dtype=torch.float64)
    fine = 400  # midpoints of a fine grid, as a slow reference
    place = (torch.arange(11 * fine, dtype=torch.float64) + 0.5) / fine - 5.5
    inside = (place[:, None] ** 2 + place[None, :] ** 2 <= radius**2).double()
    area = inside.reshape(11, fine, 11, fine).mean(dim=(1, 3))
    torch.testing.assert_close(kernel * math.pi * radius**2, area, rtol=0, atol=2e-3)
    assert kernel.sum().item() == pytest.approx(1.0, abs=1e-14)
    torch.testing.assert_close(kernel, kernel.T.flip(0), rtol=0, atol=1e-14)


def test_default_sizes_lose_nothing():
    for small, large in (
        (motion_kernel(12.3, 77.0), motion_kernel(12.3, 77.0, 31)),
        (disk_kernel(4.4), disk_kernel(4.4, 31)),
    ):
        rim = (31 - small.shape[0]) // 2
        torch.testing.assert_close(small, large[rim:-rim, rim:-rim])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_kernel(1.0, 4), "size must be odd"),
        (lambda: gaussian_kernel1d(0.0), "sigma must lie in"),
        (lambda: motion_kernel(0.5), "length must lie in"),
        (lambda: motion_kernel(3.0, math.nan), "angle must lie in"),
        (lambda: disk_kernel(-1.0), "radius must lie in"),
        (lambda: difference_of_gaussians_kernel(1.0, ratio=1.0), "ratio must lie in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
