"""300 optimiser steps of a small network, beside a DataLoader loop, Fabric and a loop by hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.task import SupervisedTask
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

STEPS, BATCH = 300, 64


def start() -> tuple[nn.Module, torch.optim.Optimizer]:
    with seeded(0, "weights"):
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def by_hand(batches: Iterable[tuple[Tensor, Tensor]], curve: list[float] | None = None) -> Tensor:
    model, optimizer = start()
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if curve is not None:
            curve.append(loss.item())
    return model[0].weight.detach()


def by_fabric(fabric: Any, loader: DataLoader[Any]) -> Tensor:
    model, optimizer = fabric.setup(*start())
    for inputs, labels in fabric.setup_dataloaders(loader):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        fabric.backward(loss)
        optimizer.step()
    return model.module[0].weight.detach()


def main() -> None:
    warnings.simplefilter("ignore")  # the peers' own news
    from lightning_fabric import Fabric

    generator = torch_generator(0, "data")
    x = torch.randn(STEPS * BATCH, 32, generator=generator)
    y = torch.randint(10, (STEPS * BATCH,), generator=generator)
    data = TensorDataset(x, y)
    fabric = Fabric(accelerator="cpu", devices=1)

    def tensor_loader() -> TensorLoader:
        return TensorLoader(x, y, batch_size=BATCH, shuffle=True)

    whole = TensorLoader(torch.arange(len(x)), batch_size=len(x), shuffle=True)
    order = next(iter(whole))[0]  # the order of our first epoch, so that all see the same batches

    def data_loader() -> DataLoader[Any]:
        return DataLoader(data, batch_size=BATCH, sampler=order.tolist())

    def ours() -> Tensor:
        model, optimizer = start()
        fit(SupervisedTask(model), tensor_loader(), optimizer, epochs=1)
        return model[0].weight.detach()

    torch_version = version("torch")
    peers = {
        "DataLoader loop": Peer(lambda: by_hand(data_loader()), torch_version, bar=2.0),
        "Fabric": Peer(
            lambda: by_fabric(fabric, data_loader()), version("lightning-fabric"), bar=2.3
        ),
        "loop by hand, tensors indexed": Peer(
            lambda: by_hand((x[index], y[index]) for index in order.split(BATCH)),
            torch_version,
            bar=0.95,
        ),
        "loop by hand, our TensorLoader": Peer(
            lambda: by_hand(tensor_loader()),
            torch_version,
            bar=0.95,
            note="keeps no losses; ours keeps and checks them",
        ),
        "the same, keeping its losses": Peer(
            lambda: by_hand(tensor_loader(), []), torch_version, bar=0.95
        ),
    }
    for name, peer in peers.items():
        if not torch.equal(ours(), peer.run()):
            raise AssertionError(f"{name} learns other weights")
    size = f"MLP 32-64-10, batch {BATCH}, SGD"
    write(
        race("training_loop", f"{STEPS} steps", size, ours=ours, peers=peers, repeats=41), __file__
    )


if __name__ == "__main__":
    main()
