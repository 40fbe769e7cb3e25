"""Attention maps of a ViT-tiny's last block, beside timm's extraction and the forward pass alone.

``--small`` compares the outputs on small images and does not race.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec

import torch
from cv_core.explain.transformers import attention_maps
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor, nn

BLOCK = "blocks.11.attn"


def given(side: int, *, fused: bool) -> nn.Module:
    import timm

    with seeded(0, "model"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=side).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def main() -> None:
    small = "--small" in sys.argv[1:]
    count, side = (2, 64) if small else (8, 224)
    if not find_spec("timm"):
        print("timm is not installed: left out")
        return
    from timm.utils import AttentionExtract

    model = given(side, fused=True)
    extract = AttentionExtract(given(side, fused=False))
    x = torch.randn(count, 3, side, side, generator=torch_generator(0, "images"))

    def ours() -> Tensor:
        return attention_maps(model, x, BLOCK)[BLOCK]

    def theirs() -> Tensor:
        with torch.no_grad():
            return extract(x)["blocks.11.attn.softmax"]

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    if small:
        return
    installed = version("timm")
    peers = {
        "AttentionExtract": Peer(theirs, installed, bar=1.2, note="unfused, every block's maps"),
        "forward alone": Peer(forward, installed, bar=0.91, note="fused, no maps at all"),
    }
    shape = f"ViT-tiny, last block, {count} x 3 x {side} x {side}"
    write(race("vit_maps", "attention maps", shape, ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
