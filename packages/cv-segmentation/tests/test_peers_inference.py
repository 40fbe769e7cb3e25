import pytest
import torch
from cv_core.random import seeded
from cv_segmentation.inference import sliding_window
from torch import nn


@pytest.mark.slow  # importing MONAI alone takes that long
@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_sliding_window_is_monais(size):
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is the peer compared with")
    with seeded(0, "network"):
        model = nn.Conv2d(3, 2, 5, padding=2).eval()
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = inferers.sliding_window_inference(
            x, (16, 20), 4, model, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )
    found = sliding_window(model, x, (16, 20), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
