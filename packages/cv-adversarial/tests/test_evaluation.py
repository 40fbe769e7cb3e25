"""Robust accuracy: the point-wise worst case, exact intervals, and one broken model per flag."""

import math

import pytest
import torch
from cv_adversarial.attacks.apgd import APGD
from cv_adversarial.attacks.balls import distance
from cv_adversarial.attacks.base import Attack
from cv_adversarial.attacks.deepfool import DeepFool
from cv_adversarial.attacks.fab import FAB
from cv_adversarial.attacks.gradient import FGSM, PGD
from cv_adversarial.attacks.square import Square
from cv_adversarial.evaluation import TargetedAPGD, evaluate_robustness, standard_attacks
from cv_adversarial.evaluation_flags import CHECKS
from cv_adversarial.evaluation_report import Share, Threat
from cv_core.models.small import MLP, SmallCNN
from cv_core.random import seeded, torch_generator
from scipy.stats import beta
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

THREATS = {"linf": Threat("linf", 0.08), "l2": Threat("l2", 0.5), "l1": Threat("l1", 1.5)}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.tensor(bunch.images / 16.0).float()[:, None], torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def mlp(digits):
    return trained(lambda: MLP(64, [64], 10), digits)


@pytest.fixture(scope="module")
def cnn(digits):
    return trained(lambda: SmallCNN(1, 10, width=8), digits)


@pytest.fixture(scope="module")
def batch(digits):
    """Fifty unseen digits, some of which are read wrongly."""
    return digits[0][1530:1580], digits[1][1530:1580]


def trained(build, digits):
    x, y = digits
    generator = torch_generator(0, "batches")
    with seeded(0, "model"):
        model = build()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        rows = torch.randint(1500, (128,), generator=generator)
        optimiser.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def quick(model, threat=THREATS["linf"]):
    """One attack without random numbers."""
    return {"FGSM": FGSM(model, threat.eps, norm=threat.norm)}


def standard(model, threat=THREATS["linf"]):
    """The standard attacks with few steps."""
    return standard_attacks(model, threat, classes=10, steps=15, queries=40)


def raised(report):
    return {flag.name for flag in report.raised}


# --- the number


def test_union_is_the_pointwise_worst_case(mlp, batch):
    """One image and one attack at a time, in a loop; the attacks draw no random numbers."""
    x, y = batch
    threat = THREATS["linf"]
    attacks = {
        "FGSM": FGSM(mlp, threat.eps),
        "PGD": PGD(mlp, threat.eps, alpha=0.02, steps=8, random_start=False),
        "DeepFool": DeepFool(mlp, steps=10),
        "FAB": FAB(mlp, 10, candidates=3),
        "too far": FGSM(mlp, 2 * threat.eps),
    }
    report = evaluate_robustness(mlp, batch, threat, attacks=attacks, batch_size=32, flag_images=8)
    robust, wrong_alone = [], dict.fromkeys(attacks, 0)
    with torch.no_grad():
        right = mlp(x).argmax(1) == y
    for i in range(len(x)):
        one, label = x[i : i + 1], y[i : i + 1]
        left = bool(right[i])
        for name, attack in attacks.items():
            if not left:
                break
            adv = attack(one, label)
            near = float((adv.double() - one.double()).abs().max()) <= threat.eps
            with torch.no_grad():
                if near and int(mlp(adv).argmax()) != int(label):
                    left = False
                    wrong_alone[name] += 1
        robust.append(left)
    assert report.survived.tolist() == robust
    assert report.robust == Share(sum(robust), len(x))
    assert report.clean == Share(int(right.sum()), len(x))
    assert {row.name: row.fooled for row in report.attacks} == wrong_alone
    assert 0 < report.robust.count < report.clean.count < len(x)


def test_rows_follow_from_one_another(mlp, batch):
    report = evaluate_robustness(mlp, batch, THREATS["linf"], attacks=standard(mlp), flag_images=8)
    left = report.clean.count
    for row in report.attacks:
        assert row.seen == left
        assert row.alone == pytest.approx(1 - row.fooled / left)
        left -= row.fooled
        assert row.robust == Share(left, 50)
        assert row.seconds > 0
    assert report.robust.count == left
    first, last = report.attacks[0], report.attacks[-1]
    assert (first.forwards, first.backwards) == (16 * first.seen, 15 * first.seen)
    assert last.backwards == 0
    assert last.forwards == 41 * last.seen, "the clean image, the start and 39 proposals"


@pytest.mark.parametrize("norm", THREATS)
def test_adversarial_images_prove_the_number(norm, mlp, batch):
    x, y = batch
    threat = THREATS[norm]
    report = evaluate_robustness(mlp, batch, threat, attacks=standard(mlp, threat), flag_images=8)
    with torch.no_grad():
        before, after = mlp(x).argmax(1) == y, mlp(report.adv).argmax(1) == y
    assert torch.equal(after, report.survived)
    assert bool((distance(norm, report.adv, x) <= threat.eps).all())
    assert float(report.adv.min()) >= 0.0
    assert float(report.adv.max()) <= 1.0
    untouched = report.survived | ~before
    assert torch.equal(report.adv[untouched], x[untouched])
    assert report.robust.count < report.clean.count


def test_successes_beyond_the_ball_do_not_count(mlp, batch):
    threat = Threat("linf", 1e-4)
    report = evaluate_robustness(mlp, batch, threat, attacks={"FAB": FAB(mlp, 10, candidates=3)})
    (row,) = report.attacks
    assert row.outside >= 40
    assert row.fooled == 0
    assert report.robust == report.clean
    assert torch.equal(report.adv, batch[0])


def test_an_attack_in_one_norm_is_measured_in_the_threats(mlp, batch):
    x, y = batch
    attack = FGSM(mlp, 0.08)
    report = evaluate_robustness(mlp, batch, Threat("l2", 0.45), attacks={"FGSM": attack})
    result = attack.run(x, y)
    with torch.no_grad():
        right = mlp(x).argmax(1) == y
    near = distance("l2", result.adv, x) <= 0.45
    assert report.attacks[0].fooled == int((right & result.success & near).sum())
    assert report.attacks[0].outside == int((right & result.success & ~near).sum()) > 0


def test_transferred_images_are_judged_by_the_model(mlp, cnn, batch):
    x, y = batch
    report = evaluate_robustness(cnn, batch, THREATS["linf"], attacks=quick(mlp), flag_images=8)
    with torch.no_grad():
        expected = (cnn(x).argmax(1) == y) & (cnn(FGSM(mlp, 0.08)(x, y)).argmax(1) == y)
    assert torch.equal(report.survived, expected)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 7), (453, 1000)])
def test_intervals_are_clopper_and_pearsons(count, total):
    """The quantiles of two beta distributions, which solve the two binomial tail equations."""
    low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
    share = Share(count, total)
    assert share.interval == pytest.approx((low, high), abs=1e-9)
    assert share.value == count / total


# --- the standard attacks


@pytest.mark.parametrize(
    ("classes", "norm", "names"),
    [
        (2, "linf", ["APGD-CE", "FAB", "Square"]),
        (3, "l2", ["APGD-CE", "APGD-DLR", "FAB", "Square"]),
        (10, "linf", ["APGD-CE", "APGD-T", "FAB", "Square"]),
        (3, "l1", ["PGD-20", "PGD-60"]),
    ],
)
def test_standard_attacks_fit_classes_and_norm(classes, norm, names, mlp, batch):
    def fewer(images):
        return mlp(images)[:, :classes]

    x, y = batch
    x, y = x[y < classes], y[y < classes]
    attacks = standard_attacks(fewer, THREATS[norm], classes=classes, steps=20, queries=20)
    assert list(attacks) == names
    report = evaluate_robustness(fewer, (x, y), THREATS[norm], attacks=attacks)
    assert [row.name for row in report.attacks] == names
    assert not report.raised


def test_targeted_apgd_tries_the_likeliest_classes_in_turn(mlp, batch):
    x, y = batch
    attack = TargetedAPGD(mlp, 0.05, steps=8, targets=4)
    single = APGD(mlp, 0.05, steps=8, loss="dlr")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        logits = mlp(x)
    order = logits.scatter(1, y[:, None], -math.inf).argsort(1, descending=True)
    expected, going = x.clone(), logits.argmax(1) == y
    for k in range(4):
        rows = torch.nonzero(going).squeeze(1)
        adv = single(x[rows], y[rows], target=order[rows, k], generator=generator)
        with torch.no_grad():
            won = mlp(adv).argmax(1) != y[rows]
        expected[rows[won]] = adv[won]
        going[rows[won]] = False
    result = attack.run(x, y, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(result.adv, expected)
    assert torch.equal(result.success, ~going)


def test_flat_images_do_without_square(batch):
    with seeded(0, "flat"):
        model = nn.Sequential(nn.Linear(64, 10))
    x = batch[0].flatten(1)
    labels = model(x).argmax(1)
    report = evaluate_robustness(model, (x, labels), THREATS["linf"])
    assert [row.name for row in report.attacks] == ["APGD-CE", "APGD-T", "FAB"]
    assert {flag.name for flag in report.flags if flag.raised is None} == {
        "black box beats white box"
    }
    with pytest.raises(ValueError, match="not differentiable"):
        evaluate_robustness(lambda z: model(z.detach()), (x, labels), THREATS["linf"])


# --- the flags


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_sound_models_raise_no_flag(name, norm, request, batch):
    model, threat = request.getfixturevalue(name), THREATS[norm]
    report = evaluate_robustness(model, batch, threat, attacks=quick(model, threat))
    assert raised(report) == set()
    assert len(report.flags) == len(CHECKS) == 9
    assert all(flag.raised is False for flag in report.flags) or norm == "l1"


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.inner(x + 0.1 * torch.randn(x.shape, generator=self.generator))


class Reversed(torch.autograd.Function):
    """The identity, whose backward pass has the wrong sign."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return -gradient


class ReversedOffGrid(torch.autograd.Function):
    """The identity, differentiated rightly only where pixels are sixteenths, as the digits' are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((16 * x == (16 * x).round()).flatten(1).all(1))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (on_grid,) = ctx.saved_tensors
        return torch.where(on_grid[:, None, None, None], gradient, -gradient)


def purified(model):
    """A step towards confidence before the answer, which is then differentiable as usual."""

    def forward(x):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(z).logsumexp(1).sum(), z)
        return model(x + 0.01 * slope)

    return forward


def batch_mixing(model):
    return lambda x: model(x - x.mean(0, keepdim=True) + 0.2)


def always_the_first(model):
    return lambda x: model(x) * 1e-3 + 100.0 * nn.functional.one_hot(torch.tensor(0), 10)


BROKEN = {
    "noise": (Noisy, {"randomised model"}),
    "dropout": (lambda m: nn.Sequential(nn.Dropout(0.3), m), {"randomised model"}),
    "softmax": (lambda m: nn.Sequential(m, nn.Softmax(1)), {"softmax output"}),
    "detach": (lambda m: lambda x: m(x.detach()), {"not differentiable"}),
    "numpy": (lambda m: lambda x: m(torch.from_numpy(x.numpy())), {"not differentiable"}),
    "in place": (lambda m: lambda x: m(x.mul_(1.0)), {"not differentiable"}),
    "purified": (purified, {"optimisation in forward"}),
    "steps": (
        lambda m: lambda x: m((x * 4).round() / 4),
        {"zero gradients", "a huge ball leaves nothing", "black box beats white box"},
    ),
    "temperature": (lambda m: lambda x: m(x) * 1000.0, {"zero gradients"}),
    "mixed batch": (batch_mixing, {"eps = 0 equals clean"}),
    "constant": (always_the_first, {"a huge ball leaves nothing"}),
    "reversed": (
        lambda m: lambda x: m(Reversed.apply(x)),
        {"a huge ball leaves nothing", "black box beats white box"},
    ),
    "off grid": (lambda m: lambda x: m(ReversedOffGrid.apply(x)), {"more steps are worse"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_raise_their_flag(name, mlp, batch):
    breaks, expected = BROKEN[name]
    model = breaks(mlp)
    threat = Threat("linf", 0.15)
    attacks = {"Square": Square(model, threat.eps, steps=5)}
    with seeded(0, name):  # dropout draws from the global generator
        report = evaluate_robustness(model, batch, threat, attacks=attacks)
    assert expected <= raised(report)
    assert all(flag.message in str(report) for flag in report.raised)
    alone = {"softmax", "detach", "numpy", "in place", "purified"}
    if name in alone:
        assert raised(report) == expected


def test_every_flag_has_a_broken_model(mlp, batch):
    report = evaluate_robustness(mlp, batch, THREATS["linf"], attacks=quick(mlp))
    assert {flag.name for flag in report.flags} == set().union(*(s for _, s in BROKEN.values()))


def test_what_cannot_be_differentiated_is_attacked_by_square_alone(mlp, batch):
    report = evaluate_robustness(lambda x: mlp(x.detach()), batch, THREATS["linf"])
    assert [row.name for row in report.attacks] == ["Square"]
    assert report.robust.count < report.clean.count
    unchecked = {flag.name for flag in report.flags if flag.raised is None}
    assert unchecked == {
        "zero gradients",
        "a huge ball leaves nothing",
        "black box beats white box",
        "more steps are worse",
    }


def test_a_temperature_flatters_the_cross_entropy_but_not_the_union(mlp, batch):
    """The ratio of logit differences does not change when logits are scaled."""

    def cold(x):
        return 1000.0 * mlp(x)

    threat = THREATS["linf"]
    sound = evaluate_robustness(mlp, batch, threat, attacks=standard(mlp), flag_images=8)
    masked = evaluate_robustness(cold, batch, threat, attacks=standard(cold), flag_images=8)
    assert masked.attacks[0].alone > sound.attacks[0].alone + 0.1
    assert abs(masked.robust.count - sound.robust.count) <= 1


def test_a_model_that_is_always_wrong_has_nothing_to_attack(mlp, batch):
    x, _ = batch
    with torch.no_grad():
        wrong = (mlp(x).argmax(1) + 1) % 10
    report = evaluate_robustness(mlp, (x, wrong), THREATS["linf"])
    assert report.clean.count == report.robust.count == 0
    assert all(row.seen == row.forwards == 0 and math.isnan(row.alone) for row in report.attacks)
    assert not report.raised
    assert "nan" not in str(report)


# --- the data, the model and the page


def test_data_come_whole_or_in_batches(mlp, batch):
    x, y = batch
    options = {"attacks": quick(mlp), "batch_size": 50, "flag_images": 8}
    whole = evaluate_robustness(mlp, (x, y), THREATS["linf"], **options)
    cuts = [(x[:30], y[:30]), [x[30:], y[30:].int()]]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    for data in ([x, y], cuts, iter(cuts), loader):
        report = evaluate_robustness(mlp, data, THREATS["linf"], **options)
        assert torch.equal(report.survived, whole.survived)
        assert torch.equal(report.adv, whole.adv)


def test_a_seed_repeats_every_number(mlp, batch):
    attacks = {"PGD": PGD(mlp, 0.08, alpha=0.02, steps=2)}
    first, again, other = (
        evaluate_robustness(mlp, batch, THREATS["linf"], attacks=attacks, seed=seed, flag_images=8)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.adv, again.adv)
    assert first.flags == again.flags
    assert not torch.equal(first.adv, other.adv)


def test_bad_input_is_refused_before_any_work(mlp, batch):
    x, y = batch
    calls = []

    def watched(images):
        calls.append(len(images))
        return mlp(images)

    threat = THREATS["linf"]
    bad = [
        ([], threat, {}, ValueError, "no batch"),
        ((x[:0], y[:0]), threat, {}, ValueError, "empty"),
        ((x * 255, y), threat, {}, ValueError, r"\[0, 1\]"),
        ((x * math.nan, y), threat, {}, ValueError, r"\[0, 1\]"),
        ((x.half(), y), threat, {}, TypeError, "float32"),
        ((x, y[:-1]), threat, {}, ValueError, "labels"),
        ((x, y.float()), threat, {}, TypeError, "labels"),
        ((x, -1 - y), threat, {}, ValueError, "labels"),
        ([(x, y), (x[:, :, :4], y)], threat, {}, ValueError, "one shape"),
        ([(x, y), (x - 1, y)], threat, {}, ValueError, r"\[0, 1\]"),
        ([x, y, y], threat, {}, TypeError, "batches"),
        ((x, y), ("linf", 0.1), {}, TypeError, "Threat"),
        ((x, y), threat, {"attacks": [FGSM(mlp)]}, TypeError, "names"),
        ((x, y), threat, {"attacks": {"PGD": PGD}}, TypeError, "names"),
        ((x, y), threat, {"attacks": {}}, ValueError, "empty"),
        ((x, y), threat, {"batch_size": 0}, ValueError, "batch_size"),
        ((x, y), threat, {"flag_images": 0}, ValueError, "flag_images"),
        ((x, y), threat, {"seed": 0.5}, TypeError, "seed"),
    ]
    for data, what, options, error, words in bad:
        with pytest.raises(error, match=words):
            evaluate_robustness(watched, data, what, **options)
    assert calls == []
    with pytest.raises(ValueError, match="eps"):
        Threat("linf", 0.0)
    with pytest.raises(ValueError, match="norm"):
        Threat("l3", 0.1)


def test_training_mode_is_refused_before_statistics_move(digits, batch):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="training mode"):
        evaluate_robustness(model, batch, THREATS["linf"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


class Failing(Attack):
    def _perturb(self, x, goal, oracle, generator):
        del goal, generator
        oracle.query(x)
        raise RuntimeError("half way")


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(fails, digits, batch):
    with seeded(0, "state"):
        model = nn.Sequential(SmallCNN(1, 10, width=4), nn.Dropout(0.0)).eval()
    model[1].train()  # no noise at rate 0
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    weights = list(model.parameters())
    weights[0].requires_grad = False
    weights[1].grad = torch.ones_like(weights[1])
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = batch[0].clone(), batch[1].clone()
    random = torch.get_rng_state()
    attacks = {"bad": Failing(model)} if fails else standard(model)
    if fails:
        with pytest.raises(RuntimeError, match="half way"):
            evaluate_robustness(model, (x, y), THREATS["linf"], attacks=attacks)
    else:
        evaluate_robustness(model, (x, y), THREATS["linf"], attacks=attacks)
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in model.modules()] == modes
    assert [w.requires_grad for w in weights] == [False] + [True] * (len(weights) - 1)
    assert torch.equal(weights[1].grad, torch.ones_like(weights[1]))
    assert all(w.grad is None for i, w in enumerate(weights) if i != 1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(model._forward_hooks) == [handle.id]
    assert seen
    assert torch.equal(x, batch[0])


def test_the_page_says_it_all(mlp, batch):
    report = evaluate_robustness(mlp, batch, THREATS["linf"], attacks=quick(mlp), flag_images=8)
    lines = str(report).splitlines()
    assert lines[0] == "50 images, linf <= 0.08 (20.4/255)"
    low, high = report.robust.interval
    assert f"{100 * report.robust.value:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]" in lines[2]
    head, row = lines[4], lines[5]
    assert len(head) == len(row)
    assert row.split()[0] == "FGSM"
    assert f"{100 * report.attacks[0].alone:.1f} %" in row
    assert "0 of 9 flags raised" in lines
    assert len(lines) == 8 + 9
