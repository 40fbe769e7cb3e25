"""Half of densenet121's channels removed, beside torch-pruning; what masks and surgery bring.

The race takes in everything from the wide network to the narrow one: trace, scores, surgery. Ours
also runs the network twice more, to count its work and to see that it still runs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from cv_core.metrics.cost import count_macs, count_parameters, latency
from cv_core.optional import require
from cv_core.random import torch_generator
from cv_core.testing.race import THREADS, Peer, race, write
from cv_pruning.pruning.checkpoint import save_pruned
from cv_pruning.pruning.narrowing import Side, layers, widths
from cv_pruning.pruning.structural import prune
from torch import Tensor, nn


def all_widths(model: nn.Module) -> dict[str, dict[Side, int]]:
    return {name: widths(layer) for name, layer in layers(model).items()}


def by_torch_pruning(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    torch_pruning = require(
        "torch_pruning", package="cv-pruning", extra="structural", purpose="the race"
    )
    pruner = torch_pruning.pruner.BasePruner(
        model,
        (x,),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.classifier],
    )
    pruner.step()
    return model


def by_ours(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    prune(model, x, criterion="l2", ratio=ratio)
    return model


def race_densenet(size: int, repeats: int) -> None:
    from torchvision.models import densenet121

    x = torch.rand(1, 3, size, size, generator=torch_generator(0, "image"))
    wide = densenet121()
    state = wide.state_dict()

    def fresh() -> nn.Module:
        with torch.device("meta"):  # no time for weights that are replaced at once
            model = densenet121()
        model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        return model.eval()

    def run(how: Callable[[nn.Module, Tensor, float], nn.Module]) -> nn.Module:
        return how(fresh(), x, 0.5)

    ours, theirs = all_widths(run(by_ours)), all_widths(run(by_torch_pruning))
    assert ours == theirs, "the widths differ"
    peers = {
        "torch-pruning": Peer(lambda: run(by_torch_pruning), version("torch-pruning"), bar=2.0)
    }
    result = race(
        "structural",
        "Half of the channels removed by L2, trace to surgery",
        f"densenet121, 1 x 3 x {size} x {size}",
        ours=lambda: run(by_ours),
        peers=peers,
        repeats=repeats,
    )
    write(result, __file__)


def masked(model: nn.Module, share: float) -> nn.Module:
    """Zero the smallest weights of every convolution and linear layer, and keep them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                size = module.weight.abs().flatten()
                bound = size.kthvalue(max(1, int(share * len(size)))).values
                module.weight[module.weight.abs() <= bound] = 0.0
    return model


def narrowed(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    prune(model, x, ratio=ratio)
    return model


def table_resnet(batch: int, size: int, repeats: int) -> str:
    """Dense, 30 % and 50 % of the channels removed, 90 % of the weights masked."""
    from torchvision.models import resnet18

    x = torch.rand(batch, 3, size, size, generator=torch_generator(0, "images"))
    models = {
        "dense": resnet18(),
        "30 % of the channels removed": narrowed(resnet18(), x[:1], 0.3),
        "50 % of the channels removed": narrowed(resnet18(), x[:1], 0.5),
        "90 % of the weights masked": masked(resnet18(), 0.9),
    }
    lines = [
        f"resnet18, forward call of {batch} x 3 x {size} x {size}, {THREADS} threads",
        "",
        "| network | parameters | MACs per image | file | median |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, model in models.items():
            model.eval()
            time = latency(partial(model, x), repeats=repeats, threads=THREADS)
            path = save_pruned(model, Path(folder) / "model.safetensors")
            lines.append(
                f"| {name} | {count_parameters(model):,} | {count_macs(model, x[:1]):,} | "
                f"{path.stat().st_size / 1e6:.1f} MB | {time.median_ms:.1f} ms |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")  # the peers' own news
    race_densenet(224, repeats=9)
    text = table_resnet(8, 224, repeats=15)
    print(text)
    # Not a race, so not among the races' JSON files.
    (Path(__file__).parent / "results" / "masks_and_surgery.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
