"""Scores averaged over mirrored, scaled and tiled views."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from closeness import NETWORK, assert_close
from stcl.errors import SettingError
from stcl.models import VideoSegmenter, build_segmenter
from stcl.models.backbones.base import Backbone
from stcl.models.heads import Head
from stcl.models.views import FrameViews, scaled
from stcl.types import FramePair


@pytest.fixture
def network() -> VideoSegmenter:
    torch.manual_seed(0)
    return build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16}).eval()


class Local(Backbone):
    """Scores of a cell come from its own 4x4 pixels and their neighbours alone."""

    stages = ("early", "late")
    channels = {"early": 3, "late": 3}
    strides = {"early": 4, "late": 4}

    def forward(self, image: Tensor, tap: object = None) -> dict[str, Tensor]:
        small = F.avg_pool2d(image, 4)
        return {"early": small, "late": F.avg_pool2d(small, 3, 1, 1)}

    def normalise(self, image: Tensor) -> Tensor:
        return image


def test_one_view_is_the_network(network: VideoSegmenter) -> None:
    image = torch.rand(1, 3, 64, 96)
    assert_close(FrameViews(network)(image), network(FramePair(image)).logits, NETWORK)


def test_a_mirrored_view_makes_scores_mirror_with_the_frame(network: VideoSegmenter) -> None:
    image, views = torch.rand(1, 3, 64, 96), FrameViews(network, flip=True)
    assert_close(views(image.flip(-1)), views(image).flip(-1), NETWORK)
    expected = (network(FramePair(image)).logits + network(FramePair(image.flip(-1))).logits.flip(-1)) / 2
    assert_close(views(image), expected, NETWORK)


def test_scales_are_averaged_on_the_grid_of_the_frame(network: VideoSegmenter) -> None:
    image = torch.rand(1, 3, 64, 96)
    both = FrameViews(network, scales=(0.5, 1.0))(image)
    half = network(FramePair(scaled(image, 0.5))).logits
    assert half.shape[-2:] == (8, 12) and both.shape[-2:] == (16, 24)
    half = F.interpolate(half, (16, 24), mode="bilinear", align_corners=True)
    assert_close(both, (half + network(FramePair(image)).logits) / 2, NETWORK)


class Scores(Head):
    """A head of one 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


def test_tiles_are_exact_where_the_network_looks_no_further() -> None:
    network = VideoSegmenter(Local(), Scores(), None, None).eval()
    image = torch.rand(1, 3, 160, 232)
    whole = network.main_scores(image)
    assert_close(FrameViews(network, tile=(64, 96))(image), whole, NETWORK)


class Edged(Local):
    """Cells lie on both edges of the image, as those of ResNets do: one more than the stride goes into it."""

    strides = {"early": 8, "late": 8}

    def forward(self, image: Tensor, tap: object = None) -> dict[str, Tensor]:
        small = F.avg_pool2d(image, 3, 8, 1, ceil_mode=True, count_include_pad=False)
        return {"early": small, "late": small}


def test_tiles_of_a_network_with_cells_on_both_edges() -> None:
    network = VideoSegmenter(Edged(), Scores(), None, None).eval()
    image = torch.rand(1, 3, 200, 256)
    whole = network.main_scores(image)
    assert whole.shape[-2:] == (26, 33)
    assert_close(FrameViews(network, tile=(128, 160))(image), whole, NETWORK)


def test_resnets_take_tiles() -> None:
    network, image = build_segmenter(5, "resnet18", "tps").eval(), torch.rand(1, 3, 64, 96)
    assert FrameViews(network, tile=(64, 64))(image).shape == network.main_scores(image).shape


def test_tiles_come_near_the_whole_frame(network: VideoSegmenter) -> None:
    image = F.interpolate(torch.rand(1, 3, 20, 24), (320, 384), mode="bilinear")
    whole, tiled = network.main_scores(image), FrameViews(network, tile=(256, 256))(image)
    assert tiled.shape == whole.shape
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    difference = (tiled - whole)[inner].abs().mean() / whole[inner].std()
    untouched = (FrameViews(network, tile=(64, 64))(image) - whole)[inner].abs().mean() / whole[inner].std()
    assert difference < 0.1 and difference < untouched  # larger tiles see more


def test_a_tile_larger_than_the_frame_changes_nothing(network: VideoSegmenter) -> None:
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(FrameViews(network, tile=(128, 128))(image), FrameViews(network)(image))


def test_tiled_frames_never_pass_in_one_piece(network: VideoSegmenter) -> None:
    sizes = set()
    network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
    FrameViews(network, flip=True, tile=(64, 64))(torch.rand(1, 3, 128, 160))
    assert sizes == {(64, 64)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "positive numbers"),
        ({"scales": (1.0, 0.0)}, "positive numbers"),
        ({"tile": (64, 100)}, "at least 64 px and multiples of 32; found 100x64"),
        ({"tile": (32, 64)}, "found 64x32"),
    ],
)
def test_wrong_views_are_refused(network: VideoSegmenter, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        FrameViews(network, **options)
