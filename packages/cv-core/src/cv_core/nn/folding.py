"""Fold a normalisation or a gate into the weights in front of it, without changing the network."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cv_core.checks import check_floating, check_shape

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_batchnorm(conv: _Convolution, bn: _BatchNorm) -> _Convolution:
    r"""Return one convolution equal to a convolution and the batch normalisation after it.

    .. math:: W' = \frac{\gamma}{\sqrt{v + \epsilon}} W, \qquad
              b' = \beta + \frac{\gamma}{\sqrt{v + \epsilon}} (b - m)

    with the running mean m and variance v: equal to ``bn(conv(x))`` in evaluation mode.

    Args:
        conv: The convolution; it is left as it is.
        bn: The normalisation of its output; it is left as it is.

    Returns:
        A new convolution with a bias and the training flag of ``conv``.

    Raises:
        TypeError: If ``conv`` is another layer, such as a transposed convolution.
        ValueError: If the normalisation keeps no running statistics or the channels differ.
    """
    if not isinstance(conv, _Convolution):
        raise TypeError(
            f"fold_batchnorm: conv must be a Conv1d, Conv2d or Conv3d; got {type(conv).__name__}."
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "fold_batchnorm: bn must have running statistics; got track_running_stats=False."
        )
    if bn.num_features != conv.out_channels:
        raise ValueError(
            f"fold_batchnorm: bn must have the {conv.out_channels} channels of conv; "
            f"got {bn.num_features}."
        )
    folded = copy.deepcopy(conv)
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    # torch's new bias would not be trained where the convolution had none
    trained = any(each.requires_grad for part in (conv, bn) for each in part.parameters())
    folded.weight, folded.bias = weight, bias.requires_grad_(trained)
    return folded


def scale_into_batchnorm(bn: _BatchNorm, factor: Float[Tensor, "..."] | float) -> _BatchNorm:
    """Return a batch normalisation that multiplies its output by a gate: ``factor * bn(x)``.

    Args:
        bn: The normalisation; it is left as it is.
        factor: One number, or one per channel ``(C,)``.

    Returns:
        A new, affine normalisation with the same statistics and training flag.

    Raises:
        TypeError: If ``factor`` is a tensor that is not floating.
        ValueError: If it does not have one entry per channel.
    """
    if isinstance(factor, Tensor):
        check_floating("scale_into_batchnorm", "factor", factor)
        if factor.ndim:
            check_shape("scale_into_batchnorm", "factor", factor, "c", c=bn.num_features)
    scaled = copy.deepcopy(bn)
    if not scaled.affine:
        reference = scaled.running_mean if scaled.running_mean is not None else torch.empty(0)
        scaled.affine = True
        scaled.weight = nn.Parameter(reference.new_ones(bn.num_features))
        scaled.bias = nn.Parameter(reference.new_zeros(bn.num_features))
    with torch.no_grad():
        scaled.weight.mul_(factor)
        scaled.bias.mul_(factor)
    return scaled
