"""SSIM equals kornia's, pixel windows inside and mirrored."""

import pytest
import torch
from cv_core.metrics.images import ssim

kornia = pytest.importorskip("kornia", reason="kornia is the peer")


@pytest.mark.parametrize(("border", "padding"), [("reflect", "same"), ("valid", "valid")])
def test_ssim_equals_kornia(border, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 40, 33, generator=generator)
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    theirs = kornia.metrics.ssim(x, y, 11, max_val=1.0, padding=padding).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(x, y, border=border), theirs, atol=1e-5, rtol=0)
