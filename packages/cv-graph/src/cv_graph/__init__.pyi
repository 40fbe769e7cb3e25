from .batching import HypergraphBatch as HypergraphBatch
from .batching import batch_hypergraphs as batch_hypergraphs
from .construction import ball_hypergraph as ball_hypergraph
from .construction import clique_hypergraph as clique_hypergraph
from .construction import cluster_hypergraph as cluster_hypergraph
from .construction import knn_hypergraph as knn_hypergraph
from .construction import neighborhood_hypergraph as neighborhood_hypergraph
from .construction import superpixel_hypergraph as superpixel_hypergraph
from .conv import HypergraphConv as HypergraphConv
from .diagnostics import adjusted_homophily as adjusted_homophily
from .diagnostics import class_insensitive_homophily as class_insensitive_homophily
from .diagnostics import dirichlet_energy as dirichlet_energy
from .diagnostics import edge_homophily as edge_homophily
from .diagnostics import hyperedge_agreement as hyperedge_agreement
from .diagnostics import hyperedge_majority as hyperedge_majority
from .diagnostics import mean_average_distance as mean_average_distance
from .diagnostics import node_homophily as node_homophily
from .drawing import draw_bipartite as draw_bipartite
from .drawing import draw_graph as draw_graph
from .drawing import draw_hypergraph as draw_hypergraph
from .hypergraph import Hypergraph as Hypergraph
from .propagation import Propagation as Propagation
from .propagation import graph_propagation as graph_propagation
from .propagation import hypergraph_propagation as hypergraph_propagation
from .propagation import sparse_factor as sparse_factor
from .sampling import NeighborSampler as NeighborSampler
from .sampling import SampledHypergraph as SampledHypergraph
from .sampling import neighbor_batches as neighbor_batches
from .sampling import sample_hyperedges as sample_hyperedges

__version__: str
# The methods' public names, written from the cards by tools/index.py:
