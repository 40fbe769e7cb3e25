"""Hypergraph convolution, forward and backward, beside torch-geometric and DHG.

20,000 nodes, 5,000 hyperedges, 200,000 memberships, 64 features. Ours and DHG's keep their
operator over the calls, as one does over epochs; torch-geometric's layer has none to keep.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write
from cv_graph.conv import HypergraphConv
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import hypergraph_propagation
from torch import Tensor, nn

FEATURES = 64


def installed(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def given(nodes: int, hyperedges: int, memberships: int) -> tuple[Hypergraph, Tensor]:
    generator = torch_generator(0, "hypergraph")
    index = torch.stack(
        [
            torch.randint(nodes, (memberships,), generator=generator),
            torch.randint(hyperedges, (memberships,), generator=generator),
        ]
    )
    x = torch.randn(nodes, FEATURES, generator=generator)
    return Hypergraph(index, num_nodes=nodes, num_hyperedges=hyperedges), x.requires_grad_()


def step(layer: nn.Module, x: Tensor, *rest: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a function that computes the layer's output and the features' gradient."""

    def run() -> tuple[Tensor, Tensor]:
        x.grad = None
        out = layer(x, *rest)
        out.sum().backward()
        assert x.grad is not None
        return out.detach(), x.grad

    return run


def share(layer: HypergraphConv, linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.copy_(layer.weight.T)
        if linear.bias is not None:
            linear.bias.zero_()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="check the outputs on little data")
    small = parser.parse_args().small
    sizes = (200, 50, 2000) if small else (20_000, 5_000, 200_000)
    h, x = given(*sizes)
    layer = HypergraphConv(FEATURES, FEATURES)
    ours = step(layer, x, hypergraph_propagation(h))
    walk = hypergraph_propagation(h, normalization="random-walk")
    peers: dict[str, Peer] = {}
    if pyg := installed("torch_geometric.nn"):
        peer = pyg.HypergraphConv(FEATURES, FEATURES)
        share(layer, peer.lin)
        run = step(peer, x, h.hyperedge_index)
        for one, other in zip(run(), step(layer, x, walk)(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        note = "normalises as a random walk; compared with ours in that mode"
        peers["torch-geometric"] = Peer(run, version("torch-geometric"), bar=10.0, note=note)
    if dhg := installed("dhg"):
        hypergraph = dhg.Hypergraph(h.num_nodes, h.lists(), merge_op="sum")
        convs = installed("dhg.nn")
        for name, operator, note in (
            ("HGNNConv", None, "with its cached matrix of nodes by nodes"),
            ("HGNNPConv", walk, "with its cached incidence matrix; compared with our random walk"),
        ):
            peer = getattr(convs, name)(FEATURES, FEATURES, drop_rate=0.0, is_last=True)
            share(layer, peer.theta)
            run = step(peer, x, hypergraph)
            same = ours if operator is None else step(layer, x, operator)
            for one, other in zip(run(), same(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            peers[f"DHG {name}"] = Peer(run, version("dhg"), bar=1.5, note=note)
    if small:
        return
    text = f"{sizes[0]} nodes, {sizes[1]} hyperedges, {h.hyperedge_index.shape[1]} memberships"
    result = race(
        "conv", "hypergraph convolution, forward and backward", f"{text}, {FEATURES} features",
        ours=ours, peers=peers,
    )  # fmt: skip
    write(result, __file__)


if __name__ == "__main__":
    main()
