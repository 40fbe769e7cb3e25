"""A race compares medians of the same rounds and writes them beside its script."""

import json
import time

import torch
from cv_core.testing.race import Peer, race, write


def pause(seconds: float):
    return lambda: time.sleep(seconds)


def test_ratio_is_the_peers_time_over_ours(tmp_path, capsys):
    before = torch.get_num_threads()
    peers = {
        "slower": Peer(pause(0.06), "1.0", bar=2.0),
        "same": Peer(pause(0.01), "2.0", bar=100.0, repeats=3, note="a note"),
    }
    result = race("toy", "sleep", "10 ms", ours=pause(0.01), peers=peers, repeats=5)
    assert torch.get_num_threads() == before
    slower, same = result.peers["slower"], result.peers["same"]
    assert slower.ratio_low <= slower.ratio <= slower.ratio_high
    assert slower.ratio > same.ratio
    assert (slower.repeats, same.repeats, same.note) == (5, 3, "a note")
    shown = capsys.readouterr().out
    assert "slower 1.0" in shown
    assert "bar 100x LOST" in shown

    write(result, str(tmp_path / "bench_toy.py"))
    kept = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert kept["peers"]["slower"]["bar"] == 2.0
    assert kept["ours_ms"] == result.ours_ms
