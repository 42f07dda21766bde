"""Protocols: every label space has one, and each says what the published benchmark says."""

import json

import pytest

from stcl.data import DATASETS
from stcl.labels import SPACES, LabelSpace
from stcl.protocols import PROTOCOLS, protocol_of


@pytest.mark.parametrize("name", SPACES)
def test_every_label_space_has_a_protocol_of_known_parts(name):
    protocol = PROTOCOLS[name]
    assert protocol.space is SPACES[name]
    assert protocol_of(SPACES[name]) is protocol
    assert {protocol.source, protocol.target} <= {*DATASETS, ""}
    assert not set(protocol.ignored) - set(protocol.space.unreported)
    described = protocol.describe()
    assert json.loads(json.dumps(described)) == described
    for ids in described["means"].values():
        assert set(ids) < set(described["reported"])


def test_what_the_published_benchmarks_count():
    counted = {name: [protocol.space.names[i] for i in protocol.space.reported] for name, protocol in PROTOCOLS.items()}
    assert len(counted["synthia_seq-cityscapes_seq"]) == 11
    assert len(counted["viper-cityscapes_seq"]) == 15
    assert len(counted["gta5-cityscapes"]) == 19
    assert len(counted["synthia_rand-cityscapes"]) == 16
    (thirteen,) = PROTOCOLS["synthia_rand-cityscapes"].means.values()
    assert set(counted["synthia_rand-cityscapes"]) - set(thirteen) == {"wall", "fence", "pole"}
    uvda = PROTOCOLS["viper-cityscapes_seq-uvda"]
    assert (len(uvda.space), len(counted[uvda.name])) == (19, 15)
    assert set(uvda.ignored) == {"wall", "pole", "rider", "train"}
    assert PROTOCOLS["viper-cityscapes_seq"].space.merges == {"rider": "person"}


def test_a_space_of_your_own_has_a_plain_protocol():
    own = LabelSpace("own", ("road", "car"), unreported=("car",))
    assert protocol_of(own).describe()["reported"] == [0]
    other = LabelSpace("viper-cityscapes_seq", ("road", "car"))  # a known name, but not the known classes
    assert protocol_of(other).source == ""
