"""One epoch of mini-batches over ever larger hypergraphs: time and memory against size.

Up to 1,000,000 nodes and 5,000,000 memberships. Each size runs in a process of its own, whose peak
memory is the kernel's count of resident pages (so with Python and torch themselves). Writes
``results/scale.md`` and ``results/scale.svg``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from cv_core.random import seeded, torch_generator
from cv_graph.conv import HypergraphConv
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import hypergraph_propagation
from cv_graph.sampling import NeighborSampler, neighbor_batches
from torch import Tensor, nn

SIZES = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
FEATURES, HIDDEN, CLASSES, BATCH = 32, 64, 10, 2048
RESULTS = Path(__file__).parent / "results"


class Network(nn.Module):
    """Two hypergraph convolutions over a sampled part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = HypergraphConv(FEATURES, HIDDEN)
        self.second = HypergraphConv(HIDDEN, CLASSES)

    def forward(self, x: Tensor, hypergraph: Hypergraph) -> Tensor:
        P = hypergraph_propagation(hypergraph, normalization="random-walk")
        logits: Tensor = self.second(self.first(x, P).relu(), P)
        return logits


def planted(nodes: int) -> tuple[Hypergraph, Tensor, Tensor]:
    """Return hyperedges of ten nodes, mostly of one class, with five per node, and features."""
    generator = torch_generator(0, "planted")
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    by_class = y.argsort()
    hyperedges = nodes // 2
    start = torch.randint(nodes, (hyperedges, 1), generator=generator)
    near = torch.randint(nodes // CLASSES // 4, (hyperedges, 10), generator=generator)
    members = by_class[(start + near) % nodes]
    index = torch.stack(
        [members.flatten(), torch.arange(hyperedges).repeat_interleave(members.shape[1])]
    )
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    x = centres[y] + 4.0 * torch.randn(nodes, FEATURES, generator=generator)
    return Hypergraph(index, num_nodes=nodes, num_hyperedges=hyperedges), x, y


def epoch(nodes: int) -> dict[str, float]:
    torch.set_num_threads(2)
    h, x, y = planted(nodes)
    begin = time.perf_counter()
    sampler = NeighborSampler(h, num_hyperedges=[3, 2], num_members=[4, 3])
    prepared = time.perf_counter()
    with seeded(0, "network"):
        network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    generator = torch_generator(0, "epoch")
    right = 0
    for sample in neighbor_batches(
        sampler, torch.arange(nodes), batch_size=BATCH, generator=generator
    ):
        asked = sample.nodes[: sample.batch_size]
        logits = network(x[sample.nodes], sample.hypergraph)[: sample.batch_size]
        loss = nn.functional.cross_entropy(logits, y[asked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right += int((logits.argmax(1) == y[asked]).sum())
    return {
        "nodes": nodes,
        "memberships": h.hyperedge_index.shape[1],
        "prepare_s": prepared - begin,
        "epoch_s": time.perf_counter() - prepared,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "accuracy": right / nodes,
    }


def in_own_process(nodes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--nodes", str(nodes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - itself
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write(rows: list[dict[str, float]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    lines = [
        "| nodes | memberships | prepare | one epoch | peak memory | accuracy in the epoch |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['nodes']:,} | {row['memberships']:,} | {row['prepare_s']:.2f} s "
        f"| {row['epoch_s']:.1f} s | {row['peak_gb']:.2f} GB | {row['accuracy']:.2f} |"
        for row in rows
    ]
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(rows)


def draw(rows: list[dict[str, float]]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    nodes = [row["nodes"] for row in rows]
    for place, (key, label) in enumerate(
        [("epoch_s", "seconds for one epoch"), ("peak_gb", "peak memory in GB")], start=1
    ):
        axes = figure.add_subplot(1, 2, place)
        axes.plot(nodes, [row[key] for row in rows], "o-", color="#4477aa")
        scale = "log" if key == "epoch_s" else "linear"
        axes.set(xlabel="nodes", ylabel=label, xscale="log", yscale=scale)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    with mpl.rc_context({"svg.hashsalt": "scale"}):
        unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(RESULTS / "scale.svg", metadata=unsaid)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, help="run one size and print its numbers")
    nodes = parser.parse_args().nodes
    if nodes is not None:
        epoch(SIZES[0])  # so that what torch imports late is not counted
        print(json.dumps(epoch(nodes)))
        return
    rows = []
    for size in SIZES:
        rows.append(in_own_process(size))
        print(rows[-1], flush=True)
    write(rows)


if __name__ == "__main__":
    main()
