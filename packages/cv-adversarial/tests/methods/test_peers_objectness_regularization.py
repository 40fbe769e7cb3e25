"""On torchvision's region proposals: the defence keeps what a lower threshold keeps."""

import pytest
import torch
from cv_adversarial.methods.objectness_regularization import (
    ObjectnessRegularization,
    VanishingPatchAttack,
)
from cv_core.random import seeded
from torch import nn

detection = pytest.importorskip("torchvision.models.detection")
images = pytest.importorskip("torchvision.models.detection.image_list")


class Proposals(nn.Module):
    """A region proposal network on four convolved channels, with the given threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        anchors = detection.rpn.AnchorGenerator(((8,),), ((0.5, 1.0, 2.0),))
        head = detection.rpn.RPNHead(4, 3)
        nn.init.normal_(head.cls_logits.weight, std=10.0)
        counts = {"training": 500, "testing": 500}
        self.rpn = detection.rpn.RegionProposalNetwork(
            anchors, head, 0.7, 0.3, 64, 0.5, counts, counts, 0.7, score_thresh=threshold
        )

    def forward(self, x):
        sizes = [tuple(x.shape[-2:])] * len(x)
        found, _ = self.rpn(images.ImageList(x, sizes), {"0": self.features(x)})
        return found


def proposals(threshold):
    with seeded(0):
        return Proposals(threshold).eval()


def test_the_defence_keeps_the_proposals_of_a_lower_threshold():
    x = torch.rand(2, 3, 32, 32)
    defence = ObjectnessRegularization(tau=0.5, eps=0.2)
    plain, lower, strict = (proposals(at) for at in (0.5, defence.equivalent_threshold, 0.5))
    with torch.no_grad(), defence.attached(plain, "rpn.head.cls_logits"):
        defended = plain(x)
    with torch.no_grad():
        for ours, theirs, undefended in zip(defended, lower(x), strict(x), strict=True):
            assert torch.equal(ours, theirs)
            assert len(ours) > len(undefended)


def test_the_attack_runs_on_a_foreign_detector():
    detector = proposals(0.5)
    x = torch.rand(2, 3, 32, 32)

    def objectness(z):
        return detector.rpn.head([detector.features(z)])[0][0]

    attack = VanishingPatchAttack(objectness, detector, pixels=400, steps=20)
    adv, mask = attack(x)
    assert bool(mask.any())
    with torch.no_grad():
        before, after = (objectness(z).flatten(1).amax(1) for z in (x, adv))
    assert bool((after < before).all())
