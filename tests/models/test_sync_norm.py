"""Synchronised batch norm in one process; what two processes make of it is tested in tests/distributed."""

import pytest
import torch
from torch import nn

from stcl.models import EmaTeacher, build_segmenter
from stcl.models.norms import SyncedBatchNorm, norm_layers, synchronise_norms

KINDS = {"cpu": SyncedBatchNorm, "cuda": nn.SyncBatchNorm}


@pytest.mark.parametrize("device_type", KINDS)
def test_only_the_kind_of_layer_changes(device_type):
    network = build_segmenter(3, "small", backbone_settings={"width": 4, "freeze_norm_affine": True})
    network.backbone.stage2.eval()
    before, parameters = network.state_dict(), list(network.parameters())
    trainable, modes = [p.requires_grad for p in parameters], [part.training for part in network.modules()]
    count = len(norm_layers(network))
    synchronise_norms(network, device_type)
    assert [type(layer) for layer in norm_layers(network)] == [KINDS[device_type]] * count
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert all(one is other for one, other in zip(parameters, network.parameters(), strict=True))
    assert [p.requires_grad for p in parameters] == trainable and not all(trainable)
    assert [part.training for part in network.modules()] == modes


def test_alone_it_is_batch_norm():
    plain, synced = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    synchronise_norms(synced, "cpu")
    image = torch.randn(2, 3, 4, 5)
    for _ in range(2):
        assert torch.equal(plain(image), synced(image))
        plain.eval(), synced.eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), synced.buffers(), strict=True))


def test_a_teacher_follows_a_synchronised_student():
    student = build_segmenter(3, "small", backbone_settings={"width": 4})
    holder = nn.ModuleList([student, EmaTeacher(student)])
    synchronise_norms(holder, "cpu")
    assert {type(layer) for layer in norm_layers(holder)} == {SyncedBatchNorm}
    nn.init.ones_(norm_layers(student)[0].running_mean)
    holder[1].update(student, 0)
    assert (norm_layers(holder[1])[0].running_mean == 1).all()
