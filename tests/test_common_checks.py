"""The common checks over every card of every installed package: a new card needs no new test."""

from collections.abc import Iterator

import pytest
from cv_core.registry import discover
from cv_core.testing.checks import cases


def collected() -> Iterator[pytest.param]:
    for slug, entry in discover().items():
        for number, (check, subject) in enumerate(cases(entry.card)):
            reason = entry.card.exceptions.get(check.name)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(check, subject, id=f"{slug}-{check.name}-{number}", marks=marks)


@pytest.mark.parametrize(("check", "subject"), list(collected()))
def test_common_check(check, subject):
    check.run(subject)
    assert check.applies_to(subject.card)
