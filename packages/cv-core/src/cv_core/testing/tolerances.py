"""How close is equal, by data type; the one place where tests take it from."""

from __future__ import annotations

import torch

_TABLE = {
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (4e-2, 4e-2),
    torch.float32: (1e-4, 1e-5),
    torch.float64: (1e-9, 1e-10),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, *, scale: float = 1.0) -> None:
    """Assert that two tensors agree as closely as the coarser of their types allows.

    Args:
        actual: What came.
        expected: What should have come; any device.
        scale: Widens both tolerances, for long sums.

    Raises:
        AssertionError: With the largest difference.
    """
    types = [tensor.dtype for tensor in (actual, expected) if tensor.dtype in _TABLE]
    relative, absolute = max((_TABLE[dtype] for dtype in types), default=(0.0, 0.0))
    torch.testing.assert_close(
        actual.cpu(),
        expected.to(actual.dtype).cpu(),
        rtol=relative * scale,
        atol=absolute * scale,
        equal_nan=True,
    )
