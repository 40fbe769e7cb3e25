"""5,000 lists of nodes to an operator, beside HyperNetX, XGI and DHG.

Ours prepares the normalised operator in both directions, DHG its normalised matrix; HyperNetX and
XGI stop at the incidence matrix.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from bench_conv import given, installed
from cv_core.testing.race import Peer, race, write
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import Propagation, hypergraph_propagation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="check the outputs on little data")
    small = parser.parse_args().small
    sizes = (200, 50, 2000) if small else (20_000, 5_000, 200_000)
    h, x = given(*sizes)
    lists = h.lists()

    def ours() -> Propagation:
        return hypergraph_propagation(Hypergraph.from_lists(lists, num_nodes=sizes[0]))

    assert Hypergraph.from_lists(lists, num_nodes=sizes[0]).lists() == lists
    expected = ours()(x.detach())
    present = np.flatnonzero(np.bincount(h.hyperedge_index[0].numpy(), minlength=sizes[0]))
    incidence = h.scipy_incidence()[present]
    peers: dict[str, Peer] = {}

    if hnx := installed("hypernetx"):

        def by_hypernetx() -> Any:
            return hnx.Hypergraph(dict(enumerate(lists))).incidence_matrix(index=True)

        matrix, rows, columns = by_hypernetx()
        found = matrix.tocsr()[np.argsort(np.array(rows))][:, np.argsort(np.array(columns))]
        assert abs(found - incidence).max() == 0
        bar, note = 20.0, "to the incidence matrix only"
        peers["HyperNetX"] = Peer(by_hypernetx, version("hypernetx"), bar, repeats=3, note=note)
    if xgi := installed("xgi"):

        def by_xgi() -> Any:
            return xgi.incidence_matrix(xgi.Hypergraph(lists), sparse=True, index=True)

        matrix, rows, columns = by_xgi()
        order = np.argsort([rows[place] for place in range(len(rows))])
        assert [columns[place] for place in range(len(columns))] == list(range(len(lists)))
        assert abs(matrix.tocsr()[order] - incidence).max() == 0
        note = "to the incidence matrix only"
        peers["XGI"] = Peer(by_xgi, version("xgi"), bar=2.0, note=note)
    if dhg := installed("dhg"):

        def by_dhg() -> Any:
            return dhg.Hypergraph(sizes[0], lists, merge_op="sum").L_HGNN

        torch.testing.assert_close(
            torch.sparse.mm(by_dhg(), x.detach()), expected, atol=1e-5, rtol=1e-5
        )
        peers["DHG"] = Peer(by_dhg, version("dhg"), bar=1.0)
    if small:
        return
    text = f"{sizes[1]} lists, {h.hyperedge_index.shape[1]} memberships, {sizes[0]} nodes"
    result = race("lists", "lists to operator", text, ours=ours, peers=peers, repeats=9)
    write(result, __file__)


if __name__ == "__main__":
    main()
