"""Reader of Omniglot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from cv_core.data.archives import read_members
from cv_core.data.kinds import Characters, OneShotRun
from cv_core.data.origin import Origin
from cv_core.data.readers.pictures import Decoded, decode_image


def omniglot(origin: Origin, paths: Sequence[Path]) -> Characters:
    """Read background sets and one-shot runs of Omniglot.

    Args:
        origin: Where the data come from.
        paths: One or more background sets, then the runs. An alphabet that is in several sets is
            taken once.
    """
    drawings: dict[tuple[str, str, int], bytes] = {}
    for path in paths[:-1]:
        for name, picture in read_members(path, suffixes=(".png",)).items():
            _, alphabet, character, file = PurePosixPath(name).parts
            drawer = int(PurePosixPath(file).stem.rpartition("_")[2]) - 1
            drawings.setdefault((alphabet, character, drawer), picture)
    keys = sorted(drawings)
    alphabets = sorted({alphabet for alphabet, _, _ in keys})
    characters = sorted({(alphabet, character) for alphabet, character, _ in keys})
    numbers = {character: number for number, character in enumerate(characters)}
    return Characters(
        images=Decoded([drawings[key] for key in keys], _ink),
        alphabet=torch.tensor([alphabets.index(alphabet) for alphabet, _, _ in keys]),
        character=torch.tensor([numbers[alphabet, character] for alphabet, character, _ in keys]),
        drawer=torch.tensor([drawer for _, _, drawer in keys]),
        alphabet_names=tuple(alphabets),
        runs=_runs(read_members(paths[-1])),
        origin=origin,
    )


def _ink(picture: bytes) -> Tensor:
    return 1.0 - decode_image(picture, channels="grey")


def _runs(members: Mapping[str, bytes]) -> tuple[OneShotRun, ...]:
    found = []
    for table in sorted(name for name in members if name.endswith("/class_labels.txt")):
        pairs = [line.split() for line in members[table].decode().splitlines() if line.strip()]
        training = sorted({shown for _, shown in pairs})
        found.append(
            OneShotRun(
                train=torch.stack([_ink(members[name]) for name in training]),
                test=torch.stack([_ink(members[name]) for name, _ in pairs]),
                answers=torch.tensor([training.index(shown) for _, shown in pairs]),
            )
        )
    return tuple(found)
