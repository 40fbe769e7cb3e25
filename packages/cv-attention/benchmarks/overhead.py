"""What each attention module adds to resnet18: parameters, and milliseconds of a call.

Not a race, so not among the races' JSON files: the table goes to ``results/overhead.md``. Modules
take turns within each repeat, so that a slow minute of the machine hits all of them; times are
medians. Before any time is taken, each network is compared with the plain one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from cv_attention.insertion import insert_attention, list_attention, remove_attention
from cv_core.metrics.cost import count_parameters
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import THREADS
from torch import Tensor, nn

WHERE = "layer*.*.bn2"
PLAIN = "none"


def networks() -> dict[str, nn.Module]:
    from torchvision.models import resnet18

    with seeded(0, "weights"):
        plain = resnet18()
        with_attention = {
            # it refines the normalisation behind the convolution that it is told
            kind: insert_attention(plain, kind, "auto" if kind == "fd-module" else WHERE)
            for kind in list_attention()
        }
    return {PLAIN: plain, **with_attention}


def check(models: dict[str, nn.Module], x: Tensor) -> None:
    """Assert that every module is there, keeps the plain parameters, and comes out again."""
    plain = models[PLAIN]
    with torch.no_grad():
        expected = plain.eval()(x)
        for kind, model in models.items():
            state = model.eval().state_dict()
            assert all(torch.equal(state[k], v) for k, v in plain.state_dict().items()), kind
            assert (repr(model) != repr(plain)) == (kind != PLAIN), kind
            assert torch.equal(remove_attention(model)(x), expected), kind


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def both_ways(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    model(x).sum().backward()


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000.0


def interleaved(
    models: dict[str, nn.Module], x: Tensor, run: Callable[[nn.Module, Tensor], None], repeats: int
) -> dict[str, float]:
    calls = {kind: partial(run, model, x) for kind, model in models.items()}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(repeats):
        for kind, call in calls.items():
            times[kind].append(timed(call))
    return {kind: median(found) for kind, found in times.items()}


def table(batch: int, size: int, repeats: int) -> str:
    x = torch.rand(batch, 3, size, size, generator=torch_generator(0, "images"))
    models = networks()
    check(models, x[:2])
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        ahead = interleaved({k: m.eval() for k, m in models.items()}, x, forward, repeats)
        both = interleaved({k: m.train() for k, m in models.items()}, x, both_ways, repeats)
    finally:
        torch.set_num_threads(before)
    plain = count_parameters(models[PLAIN])
    given = f"{batch} x 3 x {size} x {size}, {THREADS} threads, medians of {repeats} repeats"
    lines = [
        f"What attention behind the second convolution of resnet18's 8 blocks adds: {given}",
        "",
        "| attention | parameters | forward | forward and backward |",
        "|---|---|---|---|",
        f"| {PLAIN} | {plain:,} | {ahead[PLAIN]:.1f} ms | {both[PLAIN]:.1f} ms |",
    ]
    for kind in sorted(ahead.keys() - {PLAIN}, key=ahead.__getitem__):
        lines.append(
            f"| `{kind}` | +{count_parameters(models[kind]) - plain:,} | "
            f"{ahead[kind] - ahead[PLAIN]:+.1f} ms | {both[kind] - both[PLAIN]:+.1f} ms |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    wishes = parser.parse_args()
    text = table(wishes.batch, wishes.size, wishes.repeats)
    print(text)
    wishes.out.mkdir(parents=True, exist_ok=True)
    (wishes.out / "overhead.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
