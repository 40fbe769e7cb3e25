"""Scores of whatever follows objects through clips, and pictures of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from cv_core.experiment.trial import Trial
from cv_core.metrics.cost import count_macs, count_parameters
from cv_core.metrics.video import boundary_f, decay, exclusive_masks, jaccard, recall
from torch import Tensor, nn

from cv_segmentation.experiments._clips import Clips, Film
from cv_segmentation.overlays import overlay_mask
from cv_segmentation.video.losses import self_iou_loss

Truth = Literal["visible", "whole"]
"""Which of a clip's masks are true: what is seen of an object, or all of it."""

Follow = Callable[[Tensor, Tensor], Tensor]
"""Clips (n, T, 3, H, W) and first masks (n, K, H, W) to probabilities (n, T, K, H, W)."""

_PAPER_MAP = (30, 54)  # stride 8 of the paper's 240 x 427 frames
_PICTURE = 512  # pixels that a report's picture may be wide


def judge(trial: Trial, follow: Follow, clips: Clips, truth: Truth) -> dict[str, float]:
    """Score all frames but the first, over all objects that the first frame shows."""
    target = getattr(clips, truth)
    parts = zip(clips.frames.split(32), target[:, 0].split(32), strict=True)
    said = torch.cat([follow(frames, first) for frames, first in parts])
    if trial.seed == 0:
        show(trial, clips, said)
    there = target[:, 0].flatten(2).any(2)
    masks, real = said[:, 1:] > 0.5, target[:, 1:] > 0.5
    apart = exclusive_masks(said[:, 1:])
    j, f = jaccard(masks, real), boundary_f(masks, real)  # (n, T, K)
    for t, value in enumerate(j.movedim(1, 2)[there].mean(0).tolist(), 1):
        trial.curve("J over time", t, value)

    def mean(scores: Tensor) -> float:
        return 100.0 * float(scores.movedim(1, 2)[there].mean())

    over_time = j.movedim(1, 2)[there]
    return {
        "J": mean(j),
        "F": mean(f),
        "J exclusive": mean(jaccard(apart, real)),
        "F exclusive": mean(boundary_f(apart, real)),
        "J recall": 100.0 * float(recall(over_time).mean()),
        "J decay": 100.0 * float(decay(over_time).mean()),
        "overlap": 100.0 * float(
            self_iou_loss(masks.flatten(0, 1).float(), normalize=True, from_logits=False)
        ),
    }  # fmt: skip


def judge_film(follow: Follow, film: Film) -> dict[str, float]:
    """Score all frames of the long clip's second half but its first."""
    first = torch.stack([film.masks[0], torch.zeros_like(film.masks[0])])
    masks = follow(film.frames[None], first[None])[0, 1:, 0] > 0.5
    real = film.masks[1:] > 0.5
    return {
        "J, long clip": 100.0 * float(jaccard(masks, real).mean()),
        "F, long clip": 100.0 * float(boundary_f(masks, real).mean()),
    }


def attention_cost(attention: nn.Module, channels: int, device: str) -> dict[str, float]:
    """Count an attention's weights and products on a map of the paper's size."""
    example = torch.zeros(1, channels, *_PAPER_MAP, device=device)
    return {
        "attention MACs": count_macs(attention, example) / 1e6,
        "attention weights": float(count_parameters(attention)),
    }


def show(trial: Trial, clips: Clips, said: Tensor) -> None:
    """Draw some of a clip's frames above their true and their predicted exclusive masks."""
    length, width = clips.frames.shape[1], clips.frames.shape[4]
    chosen = slice(None, None, -(-length * width // _PICTURE))
    frames = clips.frames[0, chosen]
    numbers = torch.arange(1, said.shape[2] + 1)[:, None, None]
    rows = [torch.cat(list(frames), dim=2).permute(1, 2, 0).numpy()]
    for masks in (clips.visible[0, chosen] > 0.5, exclusive_masks(said[0, chosen])):
        labels = (masks * numbers).sum(1)
        pairs = zip(frames, labels, strict=True)
        rows.append(np.concatenate([overlay_mask(*pair) for pair in pairs], axis=1))
    trial.picture("frames, visible objects, prediction", np.concatenate(rows))
