"""Numbers of steps and epochs."""

import pytest
from cv_core.engine.history import History


def test_means_are_over_the_running_epoch():
    history = History()
    history.add_steps({"loss": [1.0, 2.0]})
    history.add_steps({"loss": [6.0], "late": [5.0]})
    assert history.means() == {"loss": 3.0, "late": 5.0}
    history.close_epoch({"epoch": 1, **history.means()})
    assert history.means() == {}
    history.add_steps({"loss": [8.0]})
    assert history.means() == {"loss": 8.0}
    assert history.column("late") == [5.0]


def test_state_goes_on_inside_an_epoch():
    history = History()
    history.add_steps({"loss": [1.0, 0.1]})
    history.close_epoch({"epoch": 1, "loss": 0.55})
    history.add_steps({"loss": [2.0]})
    other = History()
    other.load_state_dict(history.state_dict())
    for each in (history, other):
        each.add_steps({"loss": [4.0]})
    assert other.means() == history.means() == {"loss": pytest.approx(3.0)}
    assert (other.steps, other.epochs) == (history.steps, history.epochs)
