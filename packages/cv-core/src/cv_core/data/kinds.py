"""What a data set can be: one frozen class per kind, all read-only by convention.

Images are float32 in [0, 1] with shape (C, H, W), labels int64 tensors, boxes xyxy in pixels with
the origin at the upper left corner of the upper left pixel, masks int64 (H, W). Feature matrices
for factorisation and clustering are NumPy arrays with samples as rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from cv_core.data.origin import Origin
from cv_core.optional import require

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class ImageClassification:
    """Images with one class each, in a training and a test part.

    Args:
        train_x: Training images in [0, 1].
        train_y: Their classes.
        test_x: Test images.
        test_y: Their classes.
        class_names: Name of every class.
        origin: Where the data come from.
        noisy_labels: Further labels of the training images by name, each (n,) int64.
        soft_labels: Label distributions of the test images by name, each (m, K), rows sum to 1.
    """

    train_x: Float32[Tensor, "n c h w"]
    train_y: Int64[Tensor, " n"]
    test_x: Float32[Tensor, "m c h w"]
    test_y: Int64[Tensor, " m"]
    class_names: tuple[str, ...]
    origin: Origin
    noisy_labels: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)
    soft_labels: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return int(self.train_x.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return int(self.train_x.shape[2]), int(self.train_x.shape[3])


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMatrix:
    """Samples as rows, for factorisation, clustering and manifold learning.

    Args:
        X: (n, d) float64.
        y: (n,) int64, or ``None`` without labels.
        origin: Where the data come from.
        image_shape: (height, width) if a row is an image read row by row, else ``None``.
        class_names: Name of every class; empty without labels.
    """

    X: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"] | None
    origin: Origin
    image_shape: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True, eq=False)
class MultiView:
    """The same samples seen through several feature sets.

    Args:
        views: One (n, d_v) float64 array per view.
        y: (n,) int64 classes.
        view_names: Name of every view.
        class_names: Name of every class.
        origin: Where the data come from.
    """

    views: tuple[np.ndarray, ...]
    y: Int[np.ndarray, " n"]
    view_names: tuple[str, ...]
    class_names: tuple[str, ...]
    origin: Origin

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabelViews:
    """Several views of samples that may carry any number of labels.

    Args:
        views: One (n, d_v) float64 array per view.
        Y: (n, L) int64, 1 where the label applies.
        view_names: Name of every view.
        label_names: Name of every label.
        origin: Where the data come from.
    """

    views: tuple[np.ndarray, ...]
    Y: Int[np.ndarray, "n L"]
    view_names: tuple[str, ...]
    label_names: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph with node features and classes, in the format of torch-geometric.

    Args:
        x: Node features.
        edge_index: Pairs of nodes; an undirected edge occurs in both directions.
        y: Class of every node, -1 where unknown.
        train_mask: Nodes whose class may be used for training.
        val_mask: Nodes for selection.
        test_mask: Nodes on which results are reported.
        class_names: Name of every class.
        origin: Where the data come from.
    """

    x: Float32[Tensor, "n d"]
    edge_index: Int64[Tensor, "2 e"]
    y: Int64[Tensor, " n"]
    train_mask: Bool[Tensor, " n"]
    val_mask: Bool[Tensor, " n"]
    test_mask: Bool[Tensor, " n"]
    class_names: tuple[str, ...]
    origin: Origin

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def to_pyg(self) -> Any:
        """Return a ``torch_geometric.data.Data`` that shares these tensors.

        Raises:
            ImportError: If torch-geometric is not installed.
        """
        data = require("torch_geometric.data", package="cv-core", extra="pyg", purpose="to_pyg")
        return data.Data(
            x=self.x,
            edge_index=self.edge_index,
            y=self.y,
            train_mask=self.train_mask,
            val_mask=self.val_mask,
            test_mask=self.test_mask,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Hypergraph:
    """A hypergraph with node features and classes, in the format of torch-geometric.

    Args:
        x: Node features.
        hyperedge_index: One column per membership: row 0 the node, row 1 the hyperedge.
        y: Class of every node, -1 where unknown.
        splits: Published splits, each the training and the test nodes (int64 indices).
        class_names: Name of every class.
        origin: Where the data come from.
    """

    x: Float32[Tensor, "n d"]
    hyperedge_index: Int64[Tensor, "2 nnz"]
    y: Int64[Tensor, " n"]
    splits: tuple[tuple[Tensor, Tensor], ...]
    class_names: tuple[str, ...]
    origin: Origin

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_hyperedges(self) -> int:
        """Number of hyperedges."""
        return int(self.hyperedge_index[1].max()) + 1 if self.hyperedge_index.numel() else 0

    def to_pyg(self, split: int = 0) -> Any:
        """Return a ``torch_geometric`` ``HyperGraphData`` with the masks of one split.

        Args:
            split: Which of ``splits`` gives ``train_mask`` and ``test_mask``.

        Raises:
            ImportError: If torch-geometric is not installed.
        """
        data = require(
            "torch_geometric.data.hypergraph_data",
            package="cv-core",
            extra="pyg",
            purpose="to_pyg",
        )
        masks = []
        for index in self.splits[split]:
            mask = torch.zeros(len(self.y), dtype=torch.bool)
            mask[index] = True
            masks.append(mask)
        return data.HyperGraphData(
            x=self.x,
            edge_index=self.hyperedge_index,  # the name that HyperGraphData gives it
            y=self.y,
            train_mask=masks[0],
            test_mask=masks[1],
        )


DetectionSample = tuple[Tensor, dict[str, Tensor]]
"""An image (3, H, W) and ``{"boxes": (K, 4) float32 xyxy, "labels": (K,) int64}``."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """Images with labelled boxes, decoded when they are asked for.

    Args:
        train: Training samples; the labels index ``class_names``, there is no background class.
        val: Samples for selection; may be empty.
        test: Samples on which results are reported.
        class_names: Name of every class.
        origin: Where the data come from.
    """

    train: Sequence[DetectionSample]
    val: Sequence[DetectionSample]
    test: Sequence[DetectionSample]
    class_names: tuple[str, ...]
    origin: Origin

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return len(self.class_names)


SegmentationSample = tuple[Tensor, Tensor]
"""An image (C, H, W) and its mask (H, W) int64."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Images with a class per pixel, decoded when they are asked for.

    Args:
        train: Training samples.
        val: Samples for selection; empty where the origin has none: hold out some of ``train``.
        test: Samples on which results are reported.
        class_names: Name of every class; class 0 is the background where there is one.
        ignore_index: Mask value of pixels that do not count, or ``None`` if all do.
        origin: Where the data come from.
        unlabelled: Images without a mask.
        second_observer: Masks of the test images by a second person, for human agreement.
    """

    train: Sequence[SegmentationSample]
    val: Sequence[SegmentationSample]
    test: Sequence[SegmentationSample]
    class_names: tuple[str, ...]
    ignore_index: int | None
    origin: Origin
    unlabelled: Sequence[Tensor] = ()
    second_observer: Sequence[Tensor] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Clean images, for restoration and generation, decoded when they are asked for.

    Args:
        images: Each (C, H, W) in [0, 1]; sizes may differ.
        names: Name of every image.
        origin: Where the data come from.
    """

    images: Sequence[Tensor]
    names: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A video with the mask of one object.

    Args:
        frames: In [0, 1].
        masks: 1 on the object, else 0.
        origin: Where the data come from.
    """

    frames: Float32[Tensor, "t c h w"]
    masks: Int64[Tensor, "t h w"]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class OneShotRun:
    """One run of a published one-shot test: which training image shows what each test image shows.

    Args:
        train: One image per class, (K, 1, H, W).
        test: Test images, (M, 1, H, W).
        answers: (M,) int64, index into ``train``.
    """

    train: Float32[Tensor, "k 1 h w"]
    test: Float32[Tensor, "m 1 h w"]
    answers: Int64[Tensor, " m"]


@dataclass(frozen=True, slots=True, eq=False)
class Characters:
    """Handwritten characters of many alphabets, each drawn once by every drawer.

    Args:
        images: Each (1, H, W), 1 is ink; decoded when asked for.
        alphabet: (n,) int64, index into ``alphabet_names``.
        character: (n,) int64, counted over all alphabets.
        drawer: (n,) int64, from 0.
        alphabet_names: Name of every alphabet.
        runs: The published one-shot runs.
        origin: Where the data come from.
    """

    images: Sequence[Tensor]
    alphabet: Int64[Tensor, " n"]
    character: Int64[Tensor, " n"]
    drawer: Int64[Tensor, " n"]
    alphabet_names: tuple[str, ...]
    runs: tuple[OneShotRun, ...]
    origin: Origin

    def stacked(self, size: int = 28) -> Float32[Tensor, "n 1 size size"]:
        """Decode all images into one tensor.

        Args:
            size: Side in pixels to which the images are reduced by averaging areas.
        """
        from torch.nn.functional import interpolate

        return torch.cat(
            [interpolate(image[None], size=(size, size), mode="area") for image in self.images]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Votes:
    """How many people gave each answer to each image.

    Args:
        counts: Votes.
        names: Name of every answer.
        usage: Part of the data set to which each row belongs, such as ``"Training"``.
        items: Name of every row.
        origin: Where the data come from.
        y: The reference answer of every row, if there is one.
    """

    counts: Int64[Tensor, "n k"]
    names: tuple[str, ...]
    usage: tuple[str, ...]
    items: tuple[str, ...]
    origin: Origin
    y: Int64[Tensor, " n"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A surface of triangles.

    Args:
        vertices: Positions.
        faces: Vertex indices of every triangle; larger polygons are cut into fans.
    """

    vertices: Float32[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]


@dataclass(frozen=True, slots=True, eq=False)
class Meshes:
    """Named meshes.

    Args:
        meshes: By name, parsed when they are asked for.
        origin: Where the data come from.
    """

    meshes: Mapping[str, Mesh]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """Shapes on a regular grid.

    Args:
        x: Occupancy, 0 or 1.
        y: Class of every shape.
        class_names: Name of every class.
        origin: Where the data come from.
    """

    x: Float32[Tensor, "n d h w"]
    y: Int64[Tensor, " n"]
    class_names: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class StereoPair:
    """Two rectified views with their disparities.

    Args:
        left: Left view.
        right: Right view.
        left_disparity: In pixels, for the left view; 0 where unknown.
        right_disparity: In pixels, for the right view; 0 where unknown.
    """

    left: Float32[Tensor, "3 h w"]
    right: Float32[Tensor, "3 h w"]
    left_disparity: Float32[Tensor, "h w"]
    right_disparity: Float32[Tensor, "h w"]


@dataclass(frozen=True, slots=True, eq=False)
class StereoPairs:
    """Named stereo pairs.

    Args:
        pairs: By name.
        origin: Where the data come from.
    """

    pairs: Mapping[str, StereoPair]
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class Replication:
    """One simulation of outcomes under treatment and control.

    Args:
        x: Covariates.
        t: 1 for treated units, else 0.
        yf: Factual outcome.
        ycf: Counterfactual outcome.
        mu0: Expected outcome without treatment.
        mu1: Expected outcome with treatment.
    """

    x: Float[np.ndarray, "n d"]
    t: Int[np.ndarray, " n"]
    yf: Float[np.ndarray, " n"]
    ycf: Float[np.ndarray, " n"]
    mu0: Float[np.ndarray, " n"]
    mu1: Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class CausalReplications:
    """Semi-synthetic data for the effect of a treatment, simulated several times.

    Args:
        replications: The simulations.
        origin: Where the data come from.
    """

    replications: tuple[Replication, ...]
    origin: Origin
