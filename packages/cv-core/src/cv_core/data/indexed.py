"""Images listed in a CSV file: a user's own copy of a data set that may not be passed on."""

from __future__ import annotations

import csv as csv_format
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

Sample = tuple[Any, dict[str, int]]


class IndexedImageDataset(Dataset[Sample]):
    """Images and labels that a CSV file lists, one image per row.

    Args:
        csv: The file, UTF-8, with a header; the column ``path`` names the images.
        root: Folder that the paths are relative to.
        label_columns: Columns that hold labels. The different values of a column, in ascending
            order of their text, become the classes 0, 1, ... (see ``classes``).
        transform: Applied to each image, a float32 tensor (3, H, W) in [0, 1].

    Attributes:
        paths: The images, in the order of the file.
        classes: For each label column the text of every class.

    Raises:
        ValueError: If the file is empty, a column is missing, or a cell is empty.
    """

    def __init__(
        self,
        csv: str | Path,
        root: str | Path,
        label_columns: Sequence[str],
        transform: Callable[[Float32[Tensor, "3 h w"]], Any] | None = None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        table = _read_columns(Path(csv), ["path", *label_columns])
        self.paths = table.pop("path")
        self.classes: Mapping[str, list[str]] = {
            name: sorted(set(values)) for name, values in table.items()
        }
        self._codes = {
            name: np.searchsorted(self.classes[name], values).astype(np.int64)
            for name, values in table.items()
        }

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Return the image, as the transform leaves it, and its class in every label column."""
        from PIL import Image

        with Image.open(self.root / self.paths[index]) as file:
            pixels = np.asarray(file.convert("RGB"), dtype=np.float32) / np.float32(255.0)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        labels = {name: int(codes[index]) for name, codes in self._codes.items()}
        return (image if self.transform is None else self.transform(image)), labels

    def labels(self, column: str) -> Int64[np.ndarray, " n"]:
        """Return the classes of all images in one column, without opening any image.

        Raises:
            ValueError: If the column is not a label column.
        """
        if column not in self._codes:
            known = ", ".join(map(repr, self._codes))
            raise ValueError(f"IndexedImageDataset: column must be one of {known}; got {column!r}.")
        return self._codes[column].copy()


def _read_columns(path: Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv_format.DictReader(file)
        header = reader.fieldnames or []
        missing = [name for name in wanted if name not in header]
        if missing:
            raise ValueError(
                f"IndexedImageDataset: {path} must have the columns {missing}; its header is "
                f"{list(header)}."
            )
        columns: dict[str, list[str]] = {name: [] for name in wanted}
        for row in reader:
            for name in wanted:
                if not row[name]:
                    raise ValueError(
                        f"IndexedImageDataset: {path}, line {reader.line_num}: {name!r} is empty."
                    )
                columns[name].append(row[name])
    if not columns["path"]:
        raise ValueError(f"IndexedImageDataset: {path} lists no image.")
    return columns
