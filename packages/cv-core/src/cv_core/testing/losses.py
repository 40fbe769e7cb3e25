"""Common checks of losses: reductions, ignored targets, batches of one."""

from __future__ import annotations

import copy
from typing import Any

import torch

from cv_core.testing.checks import Subject, common_check, names_owner
from cv_core.testing.tolerances import assert_close


def _with(built: Any, **options: Any) -> Any:
    changed = copy.copy(built)
    for name, value in options.items():
        setattr(changed, name, value)
    return changed


@common_check("loss")
def check_reductions(subject: Subject) -> None:
    """``mean`` and ``sum`` are the mean and the sum of what ``none`` returns."""
    built, inputs = subject.build(), subject.inputs()
    assert hasattr(built, "reduction"), "a loss must have an attribute reduction"
    each = _with(built, reduction="none")(*inputs)
    assert each.shape == inputs[1].shape, f"reduction='none' gave shape {tuple(each.shape)}"
    assert_close(_with(built, reduction="sum")(*inputs), each.sum())
    assert_close(_with(built, reduction="mean")(*inputs), each.mean())


@common_check("loss")
def check_ignore_index(subject: Subject) -> None:
    """An ignored target adds nothing to the loss and nothing to the gradient."""
    built, (logits, target, *rest) = subject.build(), subject.inputs()
    if not hasattr(built, "ignore_index"):
        return
    built = _with(built, reduction="mean")
    masked = target.clone()
    masked.view(-1)[0] = built.ignore_index
    logits = logits.requires_grad_()
    loss = built(logits, masked, *rest)
    each = _with(built, reduction="none")(logits, masked, *rest).view(-1)
    assert not each[0].detach().any(), "an ignored target has a loss"
    assert_close(loss, each[1:].mean())
    loss.backward()
    channels_last = logits.grad.movedim(1, -1).reshape(-1, logits.shape[1])
    assert not channels_last[0].any(), "an ignored target has a gradient"


@common_check("loss")
def check_classes_refused(subject: Subject) -> None:
    """A class index beyond the logits is refused with an error that names the owner."""
    built, (logits, target, *rest) = subject.build(), subject.inputs()
    wrong = target.clone()
    wrong.view(-1)[0] = logits.shape[1]
    try:
        built(logits, wrong, *rest)
    except ValueError as error:
        assert names_owner(str(error), built), f"the message names no owner: {error}"
    else:
        raise AssertionError("a class index beyond the logits was taken without an error")


@common_check("loss")
def check_one_sample(subject: Subject) -> None:
    """The loss of one sample is what ``none`` gives for it in the batch."""
    built, inputs = _with(subject.build(), reduction="none"), subject.inputs()
    whole = built(*inputs)
    alone = built(*(item[:1] if isinstance(item, torch.Tensor) else item for item in inputs))
    assert_close(alone[0], whole[0])
