"""Graph networks to compare with, as torch-geometric has them."""

from __future__ import annotations

from typing import Any, Literal

from cv_core.checks import check_choice
from cv_core.optional import require
from torch import nn

_CLASSES = {"gcn": "GCN", "sage": "GraphSAGE", "gat": "GAT"}


def pyg_network(
    name: Literal["gcn", "sage", "gat"],
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    *,
    num_layers: int = 2,
    dropout: float = 0.5,
    **options: Any,
) -> nn.Module:
    """Build a graph network of torch-geometric, called as ``network(x, edge_index)``.

    GCN (Kipf and Welling, ICLR 2017), GraphSAGE (Hamilton, Ying and Leskovec, NIPS 2017) or GAT
    (Veličković et al., ICLR 2018).

    Args:
        name: ``"gcn"``, ``"sage"`` or ``"gat"``.
        in_channels: Features of a node.
        hidden_channels: Width of the layers before the last.
        out_channels: Classes.
        num_layers: Layers.
        dropout: Share of hidden features left out in training; in the first layer's input none.
        **options: Whatever else torch-geometric's class takes, such as ``cached=True`` for a GCN
            on one graph or ``heads=8`` for a GAT.

    Returns:
        A new network, its weights drawn from torch's global generator.

    Raises:
        ImportError: If torch-geometric is not installed.
        ValueError: For another name.
    """
    check_choice("pyg_network", "name", name, _CLASSES)
    models = require(
        "torch_geometric.nn.models", package="cv-graph", extra="pyg", purpose="pyg_network"
    )
    network: nn.Module = getattr(models, _CLASSES[name])(
        in_channels=in_channels,
        hidden_channels=hidden_channels,
        num_layers=num_layers,
        out_channels=out_channels,
        dropout=dropout,
        **options,
    )
    return network
