"""What a vision transformer attends to: attention maps, rollout, and rollout by gradients.

Fused attention stays on: nothing of the network is changed. While it runs, the queries and keys of
the chosen blocks are kept, as they are handed to ``scaled_dot_product_attention`` (behind norms of
queries and keys, rotary embeddings and relative position biases), and the maps are computed from
them afterwards. That covers timm's transformers, whose attention calls that function (or
``softmax`` where fusing is off), ``torch.nn.MultiheadAttention``, which torchvision's use, and any
other module that calls one of these; for the rest an ``adapter`` computes the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_shape
from cv_core.explain.attention import Adapter, Call, choose, only_calls, watched
from cv_core.explain.scores import Target, check_images, resolve_target, score
from cv_core.nn.surgery import Where


def attention_maps(
    model: nn.Module,
    inputs: Float[Tensor, "b c h w"],
    blocks: Where | None = None,
    *,
    adapter: Adapter | None = None,
) -> dict[str, Float[Tensor, "b heads n n"]]:
    r"""Return what every token of a block attends to, :math:`\mathrm{softmax}(QK^\top/\sqrt d)`.

    Args:
        model: A transformer, used in the mode it is in; dropout of attention is left out.
        inputs: Images ``(B, C, H, W)``.
        blocks: Which attention modules, or blocks that hold one: name patterns or classes, see
            ``cv_core.nn.surgery.find``. All attention modules by default.
        adapter: For modules that call neither ``scaled_dot_product_attention`` nor ``softmax``.

    Returns:
        Maps ``(B, heads, N, N)`` by the names of the modules; rows are queries and add up to 1.

    Raises:
        ValueError: If a block has no such map, as where attention is computed inside windows.

    Example:
        >>> model = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> tokens = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2))
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.tokens, self.block = tokens, model
        ...     def forward(self, x):
        ...         return self.block(self.tokens(x).mT).mean(1)
        >>> maps = attention_maps(Net(), torch.rand(1, 3, 4, 4))
        >>> list(maps), maps["block.self_attn"].shape
        (['block.self_attn'], torch.Size([1, 2, 4, 4]))
    """
    owner = "attention_maps"
    check_images(owner, inputs)
    chosen = choose(owner, model, blocks)
    with torch.no_grad():
        with watched(model, chosen, adapter) as calls:
            model(inputs)
        found = only_calls(owner, calls, len(inputs))
        return {name: call.maps().float() for name, call in found.items()}


@dataclass(frozen=True)
class TokenGrid:
    """Where a sequence of tokens lies on the image.

    Args:
        prefix: How many tokens without a place come first: class tokens, registers.
        height: Rows of patches.
        width: Columns of patches.
    """

    prefix: int
    height: int
    width: int

    def maps(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c h w"]:
        """Lay out the tokens that have a place."""
        placed = tokens[:, self.prefix :].mT
        return placed.unflatten(2, (self.height, self.width))


def token_grid(
    model: nn.Module,
    tokens: int,
    size: tuple[int, int],
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
) -> TokenGrid:
    """Find out where a transformer's tokens lie on the image.

    The prefix is the network's ``num_prefix_tokens`` (timm), or 1 with a class token (torchvision).
    The grid is the size of the image over that of a patch, the ``grid_size`` of a patch embedding,
    or a square, whichever fits the number of tokens first.

    Args:
        model: A transformer, maybe inside other modules.
        tokens: How many tokens it has, with the prefix.
        size: Height and width of its images in pixels.
        prefix: If it is not found or found wrongly.
        grid: Rows and columns of patches, if they are not found.

    Raises:
        ValueError: If nothing fits.

    Example:
        >>> token_grid(nn.Identity(), 197, (224, 224))
        TokenGrid(prefix=1, height=14, width=14)
    """
    known = _prefix(model) if prefix is None else prefix
    candidates = [grid] if grid is not None else _grids(model, size)
    for rows, columns in candidates:
        rest = tokens - rows * columns
        if rest == known or (known is None and 0 <= rest < rows * columns):
            return TokenGrid(rest, rows, columns)
    for rest in (0, 1) if known is None else (known,):
        side = math.isqrt(max(0, tokens - rest))
        if grid is None and side and side**2 == tokens - rest:
            return TokenGrid(rest, side, side)
    raise ValueError(
        f"token_grid: {tokens} tokens for images of {size[0]} x {size[1]} pixels fit no grid of "
        f"patches (prefix={known}, tried {candidates}); hand in prefix= and grid=(rows, columns)."
    )


def _prefix(model: nn.Module) -> int | None:
    found = _attributes(model, "num_prefix_tokens", int)
    if found:
        return found[0]
    owners = [name for name in ("class_token", "cls_token") if _attributes(model, name, Tensor)]
    return 1 if owners else None


def _grids(model: nn.Module, size: tuple[int, int]) -> list[tuple[int, int]]:
    patches = [(side, side) for side in _attributes(model, "patch_size", int)]
    patches += _attributes(model, "patch_size", tuple)
    grids = [(size[0] // patch[0], size[1] // patch[1]) for patch in patches]
    grids += [grid for grid in _attributes(model, "grid_size", tuple) if len(grid) == 2]
    return grids


def _attributes(model: nn.Module, name: str, kind: type) -> list[Any]:
    found = [getattr(module, name, None) for module in model.modules()]
    return [value for value in found if isinstance(value, kind)]


def reshape_tokens(
    model: nn.Module,
    size: tuple[int, int],
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return a ``reshape`` for class activation maps at a layer of tokens.

    ``GradCAM(vit, "blocks.11.norm1", reshape=reshape_tokens(vit, (224, 224)))``: the norm in front
    of the last attention; behind it, only the class token reaches the head.

    Args:
        model: A transformer.
        size: Height and width of its images in pixels.
        prefix: See ``token_grid``.
        grid: See ``token_grid``.
    """

    def reshape(tokens: Tensor) -> Tensor:
        sizes = check_shape("reshape_tokens", "the layer's output", tokens, "b n c")
        return token_grid(model, sizes["n"], size, prefix=prefix, grid=grid).maps(tokens)

    return reshape


def rollout(
    maps: Sequence[Float[Tensor, "b n n"]], rows: Float[Tensor, "b r n"] | None = None
) -> Float[Tensor, "b r n"]:
    r"""Follow attention through all blocks and their residual connections.

    .. math:: R = \tilde A_L \cdots \tilde A_1, \qquad \tilde A = \tfrac12 (A + I)

    Abnar and Zuidema, ACL 2020, equation (1). Rows of R add up to 1.

    Args:
        maps: Attention of each block, heads averaged ``(B, N, N)``, the first block first.
        rows: Begin with these rows in place of I, ``(B, R, N)``: cheaper where few are wanted.

    Returns:
        ``R``, or ``rows @ R``.
    """
    if rows is None:
        rows = torch.eye(maps[0].shape[1]).to(maps[0]).expand_as(maps[0])
    for attention in reversed(maps):
        rows = (rows + rows @ attention) / 2.0
    return rows


class _Rollout:
    """What both rollouts share: the choice of blocks, the rows they begin with, the way back."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Where | None = None,
        *,
        prefix: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self.prefix = prefix
        self.grid = grid
        self._chosen = choose(type(self).__name__, model, blocks)

    def _run(
        self, inputs: Tensor, target: Target, adapter: Adapter | None = None
    ) -> tuple[Tensor, list[Call], TokenGrid]:
        owner = type(self).__name__
        with watched(self.model, self._chosen, adapter) as found:
            outputs = self.model(inputs)
        calls = list(only_calls(owner, found, len(inputs)).values())
        total = score(outputs, resolve_target(outputs, target, owner), owner).sum()
        tokens, *others = sorted({call.shape[-1] for call in calls})
        if others:
            raise ValueError(
                f"{owner}: all blocks must have the same tokens; some have {tokens} and some "
                f"{others[0]}. Choose other blocks."
            )
        height, width = inputs.shape[2:]
        size = (height, width)
        grid = token_grid(self.model, tokens, size, prefix=self.prefix, grid=self.grid)
        return total, calls, grid

    def _first_rows(self, call: Call, grid: TokenGrid, like: Tensor) -> Tensor:
        """Return what the head reads: the class token, or the mean of all patches."""
        rows = like.new_zeros(call.shape[0], 1, call.shape[-1], dtype=torch.float32)
        pooled = _attributes(self.model, "global_pool", str)
        if grid.prefix and (not pooled or pooled[0] in ("", "token")):
            rows[:, :, 0] = 1.0
        else:
            rows[:, :, grid.prefix :] = 1.0 / (grid.height * grid.width)
        return rows

    def _on_image(self, rows: Tensor, grid: TokenGrid, size: torch.Size) -> Tensor:
        maps = grid.maps(rows.mT)
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]


class AttentionRollout(_Rollout):
    r"""Attention rollout of Abnar and Zuidema, ACL 2020: attention followed to the patches.

    .. math:: r = e^\top \tilde A_L \cdots \tilde A_1, \qquad \tilde A = \tfrac12 (A + I)

    with the maps A averaged over the heads and e the class token, or the mean of the patches where
    the head averages them. It says where the network looks, not for which class. With one block it
    is half that block's own attention.

    Args:
        model: A transformer with global attention; Swin's windows are refused.
        blocks: Which blocks, see ``attention_maps``; all by default.
        prefix: Number of class and register tokens; see ``token_grid``.
        grid: Rows and columns of patches; see ``token_grid``.
        adapter: For modules that call neither ``scaled_dot_product_attention`` nor ``softmax``.

    Raises:
        ValueError: If there is no attention.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Where | None = None,
        *,
        prefix: int | None = None,
        grid: tuple[int, int] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(model, blocks, prefix=prefix, grid=grid)
        self.adapter = adapter

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return non-negative maps ``(B, H, W)``, the same for every target.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Checked, and not used.

        Raises:
            ValueError: If a block has no map of the whole image, or the grid is not found.
        """
        check_images("AttentionRollout", inputs)
        with torch.no_grad():
            _, calls, grid = self._run(inputs, target, self.adapter)
            rows = self._first_rows(calls[-1], grid, inputs)
            for call in reversed(calls):  # as in rollout(), with one block's maps at a time
                rows = rollout([call.maps().mean(1).float()], rows)
            return self._on_image(rows, grid, inputs.shape[2:])


class GradientRollout(_Rollout):
    r"""Rollout of what raises the score (Chefer, Gur and Wolf, ICCV 2021, equations 5 and 6).

    .. math:: R \leftarrow R + \bar A R, \qquad
              \bar A = \mathbb E_h\big[\mathrm{ReLU}(\nabla A \odot A)\big]

    from the first block to the last, beginning with I; :math:`\nabla A` is the derivative of the
    score by the attention A, and the mean runs over the heads. The map is the class token's row of
    R, or the mean row of the patches where the head averages them.

    Fused attention stays on here as well: with its output O = A V, :math:`\nabla A` is the
    derivative by O times V transposed.

    Args:
        model: A transformer with global attention; Swin's windows are refused.
        blocks: Which blocks, see ``attention_maps``; all by default.
        prefix: Number of class and register tokens; see ``token_grid``.
        grid: Rows and columns of patches; see ``token_grid``.

    Raises:
        ValueError: If there is no attention.
    """

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return non-negative maps ``(B, H, W)``.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.

        Raises:
            ValueError: If a block has no map of the whole image, or the grid is not found.
        """
        check_images("GradientRollout", inputs)
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            total, calls, grid = self._run(leaf, target)
            gradients = torch.autograd.grad(total, [call.output for call in calls])
        with torch.no_grad():
            rows = self._first_rows(calls[-1], grid, inputs)
            for call, by_output in zip(reversed(calls), reversed(gradients), strict=True):
                relevance = (call.maps() * call.gradient(by_output)).relu().mean(1).float()
                rows = rows + rows @ relevance
            return self._on_image(rows, grid, inputs.shape[2:])
