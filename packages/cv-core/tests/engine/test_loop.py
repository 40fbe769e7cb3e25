"""fit and evaluate: equal to hand-written loops bit for bit, and refusing what cannot work."""

import copy

import pytest
import torch
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.ema import EMA
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import evaluate, fit
from cv_core.engine.schedule import cosine_with_warmup
from cv_core.engine.task import FunctionTask, SupervisedTask, Task
from cv_core.random import derive_seed
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.utils.data import DataLoader, TensorDataset


def data(count: int = 50, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, generator=generator)
    return x, torch.randint(classes, (count,), generator=generator)


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
        )


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def equal(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loader(**options) -> TensorLoader:
    return TensorLoader(*data(), **{"batch_size": 8, "shuffle": True, "seed": 5, **options})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equals_a_loop_written_by_hand(name, dropout):
    ours = network(dropout)
    result = fit(SupervisedTask(ours), loader(), OPTIMIZERS[name](ours), epochs=3, seed=7)

    hand = network(dropout)
    optimizer = OPTIMIZERS[name](hand)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(7, "fit", 0))
        batches = loader()
        for _ in range(3):
            for x, y in batches:
                optimizer.zero_grad()
                loss = F.cross_entropy(hand(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert equal(ours, hand)
    assert result.history.steps["loss"] == losses
    assert result.history.column("loss") == pytest.approx(
        [sum(losses[i : i + 7]) / 7 for i in (0, 7, 14)], rel=1e-12
    )
    assert (result.steps, result.epochs, result.stopped) == (21, 3, "epochs")


def test_clipping_schedule_and_average_equal_a_loop_written_by_hand():
    ours = network()
    task = SupervisedTask(ours)
    optimizer = OPTIMIZERS["sgd"](ours)
    scheduler = cosine_with_warmup(optimizer, 20, warmup=4)
    ema = EMA(ours, decay=0.9)
    fit(
        task,
        loader(),
        optimizer,
        max_steps=17,
        scheduler=scheduler,
        clip_norm=0.3,
        ema=ema,
    )

    hand = network()
    optimizer = OPTIMIZERS["sgd"](hand)
    scheduler = cosine_with_warmup(optimizer, 20, warmup=4)
    average = copy.deepcopy(hand)
    batches = loader()
    stream = (batch for _ in range(3) for batch in batches)
    for _, (x, y) in zip(range(17), stream, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(hand(x), y).backward()
        norm = nn.utils.clip_grad_norm_(hand.parameters(), 0.3)
        assert norm > 0  # and clipping matters here:
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), hand.parameters(), strict=True):
                mean.lerp_(now, 1 - 0.9)
            for mean, now in zip(average.buffers(), hand.buffers(), strict=True):
                mean.copy_(now)
    assert equal(ours, hand)
    with ema.swapped():
        assert equal(ours, average)
    assert equal(ours, hand)


def test_schedule_by_epochs():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    options = {"scheduler": scheduler, "scheduler_every": "epoch", "epochs": 5}
    result = fit(SupervisedTask(model), loader(), optimizer, **options)
    assert result.history.column("learning rate") == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_accumulation_equals_a_loop_by_hand_and_one_large_batch():
    def train(size: int, accumulate: int) -> nn.Module:
        model = nn.Linear(5, 3).double()
        nn.init.constant_(model.weight, 0.1)
        nn.init.constant_(model.bias, 0.0)
        x, y = data(48)
        batches = TensorLoader(x.double(), y, batch_size=size)
        result = fit(
            SupervisedTask(model),
            batches,
            OPTIMIZERS["sgd"](model),
            epochs=2,
            accumulate=accumulate,
        )
        assert result.steps == 2 * 48 // (size * accumulate)
        return model

    small, large = train(8, 3), train(24, 1)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

    hand = nn.Linear(5, 3).double()
    nn.init.constant_(hand.weight, 0.1)
    nn.init.constant_(hand.bias, 0.0)
    optimizer = OPTIMIZERS["sgd"](hand)
    x, y = data(48)
    x = x.double()
    for _ in range(2):
        for start in (0, 24):
            optimizer.zero_grad()
            for i in (start, start + 8, start + 16):
                (F.cross_entropy(hand(x[i : i + 8]), y[i : i + 8]) / 3).backward()
            optimizer.step()
    assert equal(small, hand)


def test_the_last_step_of_an_epoch_takes_the_batches_left():
    model = nn.Linear(5, 3)
    seen = []
    task = FunctionTask(
        model, lambda m, batch: {"loss": F.cross_entropy(m(batch[0]), batch[1]), "one": 1.0}
    )
    rate = torch.optim.SGD(model.parameters(), lr=0.0)
    rate.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.clone()))
    result = fit(task, TensorLoader(*data(40), batch_size=8), rate, epochs=1, accumulate=3)
    x, y = data(40)
    for grad, rows in zip(seen, (slice(0, 24), slice(24, 40)), strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        torch.testing.assert_close(grad, model.weight.grad)
    assert result.history.steps["one"] == pytest.approx([1.0, 1.0])


def test_a_data_loader_serves_too():
    results = []
    for batches in (
        TensorLoader(*data(), batch_size=8),
        DataLoader(TensorDataset(*data()), batch_size=8),
        [tuple(t[i : i + 8] for t in data()) for i in range(0, 50, 8)],
    ):
        model = network()
        fit(SupervisedTask(model), batches, OPTIMIZERS["adam"](model), epochs=2)
        results.append(model)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_evaluation_is_the_mean_over_samples_without_gradients():
    model = network(dropout=0.5)
    task = SupervisedTask(model)
    x, y = data()
    modes = {}

    class Watching(SupervisedTask):
        def evaluate_step(self, batch):
            modes["grad"], modes["training"] = torch.is_grad_enabled(), self.model.training
            return super().evaluate_step(batch)

    before = copy.deepcopy(model)
    model[1].eval()  # a frozen layer stays frozen
    results = evaluate(Watching(model), TensorLoader(x, y, batch_size=8))
    assert modes == {"grad": False, "training": False}
    assert (model.training, model[1].training, model[3].training) == (True, False, True)
    assert equal(model, before)
    assert all(p.grad is None for p in task.parameters())
    model.eval()
    with torch.no_grad():
        logits = model(x)
    assert results["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert results["accuracy"] == (logits.argmax(1) == y).double().mean().item()


def test_evaluation_of_a_task_with_a_step_only_and_with_a_summary_of_its_own():
    class Counting(Task):
        def evaluate_step(self, batch):
            table = torch.zeros(3, 3, dtype=torch.long)
            table[batch[1], batch[1].flip(0)] += 1
            return {"table": table, "count": len(batch[1])}

        def summarise(self, sums):
            return {"entries": float(sums["table"].sum())}

    step_only = FunctionTask(nn.Identity(), lambda _, batch: {"loss": batch[0].mean()})
    x, y = data()
    got = evaluate(step_only, TensorLoader(x, y, batch_size=8))
    assert got == {"loss": pytest.approx(x.double().mean().item(), abs=1e-7)}
    table = sum(
        len({(a, b) for a, b in zip(p.tolist(), p.flip(0).tolist(), strict=True)})
        for p in y.split(8)
    )
    assert evaluate(Counting(), TensorLoader(x, y, batch_size=8)) == {"entries": table}


def test_validation_rows_hold_what_evaluate_returns():
    model = network()
    task = SupervisedTask(model)
    rows = []
    validation = TensorLoader(*data(20), batch_size=6)
    result = fit(
        task,
        loader(),
        OPTIMIZERS["sgd"](model),
        epochs=3,
        validate=validation,
        on_epoch=lambda row: rows.append(dict(row)),
    )
    assert rows == result.history.epochs
    last = evaluate(task, validation)
    assert rows[-1]["validation loss"] == last["loss"]
    assert rows[-1]["validation accuracy"] == last["accuracy"]


def test_validation_with_an_average_judges_the_average():
    model = network()
    ema = EMA(model, decay=0.9)
    task = SupervisedTask(model)
    validation = TensorLoader(*data(20), batch_size=6)
    options = {"epochs": 1, "validate": validation, "ema": ema}
    result = fit(task, loader(), OPTIMIZERS["sgd"](model), **options)
    own = evaluate(task, validation)["loss"]
    with ema.swapped():
        averaged = evaluate(task, validation)["loss"]
    assert result.history.column("validation loss") == [averaged]
    assert averaged != own


def test_early_stopping_keeps_the_best_weights():
    model = network()
    task = SupervisedTask(model)
    validation = TensorLoader(*data(20), batch_size=6)
    stopping = EarlyStopping("validation loss", patience=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    result = fit(
        task, loader(), optimizer, epochs=200, validate=validation, early_stopping=stopping
    )
    losses = result.history.column("validation loss")
    best = min(losses)
    assert result.stopped == "early_stopping"
    assert len(losses) == losses.index(best) + 1 + 3
    assert (stopping.best, stopping.best_epoch) == (best, losses.index(best) + 1)
    assert evaluate(task, validation)["loss"] == best


def test_global_state_is_untouched():
    model = network(dropout=0.5)
    model[1].eval()
    state = torch.get_rng_state()
    fit(
        SupervisedTask(model),
        DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True),
        OPTIMIZERS["sgd"](model),
        epochs=1,
        validate=loader(),
    )
    assert torch.equal(state, torch.get_rng_state())
    assert (model.training, model[1].training) == (True, False)
    model.eval()
    fit(SupervisedTask(model), loader(), OPTIMIZERS["sgd"](model), max_steps=1)
    assert not any(module.training for module in model.modules())


def test_flags_come_back_after_an_error():
    def fail(model, batch):
        raise RuntimeError("no")

    model = network().eval()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        fit(FunctionTask(model, fail), loader(), OPTIMIZERS["sgd"](model), epochs=1)
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())


def stepping(outputs):
    return lambda model, batch: outputs(F.cross_entropy(model(batch[0]), batch[1]))


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (lambda loss: {"score": loss}, ValueError, "must hold 'loss'; got 'score'"),
        (lambda loss: loss, TypeError, "must be a dictionary with 'loss'; got Tensor"),
        (lambda loss: {"loss": loss.detach()}, ValueError, "scalar tensor with a gradient"),
        (lambda loss: {"loss": loss.expand(3)}, ValueError, r"got shape \(3,\)"),
        (lambda _: {"loss": 1.0}, ValueError, "got float"),
        (lambda loss: {"loss": loss, "x": torch.ones(2)}, ValueError, "'x' must be a scalar"),
    ],
)
def test_refuses_a_step_without_a_proper_loss(outputs, error, message):
    model = network()
    task = FunctionTask(model, stepping(outputs))
    with pytest.raises(error, match=message):
        fit(task, loader(), OPTIMIZERS["sgd"](model), epochs=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_a_loss_that_is_no_number(value, tmp_path):
    model = network()
    calls = []

    def step(model, batch):
        calls.append(1)
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return {"loss": loss * value if len(calls) == 9 else loss}

    with pytest.raises(FloatingPointError, match=f"became {value} at step 9"):
        fit(
            FunctionTask(model, step),
            loader(),
            OPTIMIZERS["sgd"](model),
            epochs=3,
            checkpoint=tmp_path,
        )
    assert '"step": 7' in (tmp_path / "checkpoint.json").read_text()  # the last sound epoch


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one of epochs and max_steps"),
        ({"epochs": 1, "max_steps": 1}, ValueError, "exactly one of epochs and max_steps"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 1, "accumulate": 0}, ValueError, "accumulate must be at least 1"),
        ({"epochs": 1, "clip_norm": 0.0}, ValueError, "clip_norm must lie in"),
        ({"epochs": 1, "fabric": "cuda"}, TypeError, "fabric must be a lightning_fabric.Fabric"),
        (
            {"epochs": 1, "early_stopping": EarlyStopping("accuracy")},
            ValueError,
            "got 'accuracy'. Results of a validation need",
        ),
    ],
)
def test_refuses_bad_options(options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        fit(SupervisedTask(model), loader(), OPTIMIZERS["sgd"](model), **options)


def test_refuses_bad_parts(tmp_path):
    model = network()
    task, optimizer = SupervisedTask(model), OPTIMIZERS["sgd"](model)
    with pytest.raises(ValueError, match="optimizer must hold parameters of the task"):
        fit(task, loader(), OPTIMIZERS["sgd"](network()), epochs=1)
    with pytest.raises(TypeError, match="task must be a Task; got Sequential"):
        fit(model, loader(), optimizer, epochs=1)
    with pytest.raises(ValueError, match="loader must hold at least one batch"):
        fit(task, [], optimizer, epochs=1)
    with pytest.raises(ValueError, match=r"none in epoch 2.*not an iterator"):
        fit(task, iter(loader()), optimizer, epochs=2)
    with pytest.raises(TypeError, match="must have a length where accumulate"):
        fit(task, iter(loader()), optimizer, epochs=1, accumulate=2)
    with pytest.raises(TypeError, match=r"a length and a state_dict.*got list"):
        fit(task, list(loader()), optimizer, epochs=1, checkpoint=tmp_path, checkpoint_every=2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match="ReduceLROnPlateau"):
        fit(task, loader(), optimizer, epochs=1, scheduler=plateau)
    with pytest.raises(ValueError, match="at least one batch; got none"):
        evaluate(task, [])
    with pytest.raises(NotImplementedError, match=r"must define step\(batch\)"):
        evaluate(Task(), [torch.ones(1)])
    uncounted = FunctionTask(model, lambda *_: {}, lambda *_: {"loss": 1.0})
    with pytest.raises(ValueError, match="must return 'count'"):
        evaluate(uncounted, loader())
