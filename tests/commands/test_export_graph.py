"""Graphs of every backbone compute what the network does, under the names that they promise, and nothing else."""

import importlib.util
from collections.abc import Callable
from functools import partial

import onnx
import pytest
import torch
from torch import Tensor

from closeness import NETWORK, assert_close
from stcl.commands.export.graph import (
    GRAPH_FORMATS,
    OPSET,
    Graph,
    Run,
    check_parity,
    list_graphs,
    random_pairs,
    require_onnx,
    trace,
)
from stcl.errors import MissingExtraError, SettingError
from stcl.models import BACKBONES, VideoSegmenter, build_segmenter
from stcl.models.backbones import resnet
from stcl.types import FramePair, SegOutput

SIZE = (64, 32)
TINY = {"small": {"width": 4}}
Build = Callable[..., VideoSegmenter]

FIRST = {getattr(builder, "func", builder): name for name, builder in reversed(BACKBONES.items())}
KINDS = {*FIRST.values(), "resnet50"}  # the smallest of each class, and ResNet's other block; more of the same is slow
EVERY = [
    pytest.param(name, backbone, marks=[] if backbone in KINDS else [pytest.mark.slow])
    for name in GRAPH_FORMATS
    for backbone in BACKBONES
]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """``build(backbone, fusion)``: a tiny network whose fusion really fuses."""
    for depth in resnet.BLOCKS:
        monkeypatch.setitem(resnet.BLOCKS, depth, (1, 1, 1, 1))

    def make(backbone: str = "small", fusion: str = "accel") -> VideoSegmenter:
        torch.manual_seed(0)
        network = build_segmenter(5, backbone, backbone_settings=TINY.get(backbone), fusion=fusion).eval()
        if network.fusion is not None:
            torch.nn.init.normal_(network.fusion.conv.weight)
        return network

    return make


def write_and_open(network: VideoSegmenter, name: str, dynamic: bool = False) -> dict[str, Run]:
    kind = GRAPH_FORMATS[name]
    return {graph.name: kind.open(kind.write(graph, dynamic)) for graph in list_graphs(network, SIZE, dynamic)}


def follow(runs: dict[str, Run], frames: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """A stream through the graphs: each frame passes once."""
    outputs: list[Tensor] = []
    previous = None
    for image, flow in frames:
        scores = runs["frame"](image)
        outputs.append(scores if previous is None else runs["fusion"](scores, previous, flow))
        previous = scores
    return outputs


def video(count: int, width: int, height: int) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(2)
    draw = partial(torch.rand, generator=generator)
    flows = [None, *(20 * draw(1, 2, height, width) - 10 for _ in range(count - 1))]
    return [(draw(1, 3, height, width), flow) for flow in flows]


@pytest.mark.parametrize(("name", "backbone"), EVERY)
def test_a_stream_through_the_graphs_is_the_networks_own(build: Build, name: str, backbone: str) -> None:
    network, frames = build(backbone), video(3, *SIZE)
    outputs = follow(write_and_open(network, name), frames)
    for found, wanted in zip(outputs, network.stream(frames), strict=True):
        assert_close(found, wanted.logits, NETWORK)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", GRAPH_FORMATS)
def test_dynamic_graphs_take_any_size_and_batch(build: Build, name: str, backbone: str) -> None:
    network = build(backbone)
    runs = write_and_open(network, name, dynamic=True)
    for size in (SIZE, (96, 48)):
        assert check_parity(network, runs, random_pairs(size, dynamic=True), []).difference < NETWORK


def test_without_fusion_there_is_one_graph(build: Build) -> None:
    network = build(fusion="none")
    runs = write_and_open(network, "torch-export")
    assert [*runs] == ["frame"]
    parity = check_parity(network, runs, random_pairs(SIZE, False), random_pairs(SIZE, False))
    assert parity.agreement == 1 and (parity.random_frames, parity.real_frames) == (1, 1)


def test_onnx_has_the_promised_names_operators_and_version(build: Build) -> None:
    _, fusion = list_graphs(build(), SIZE, dynamic=False)
    model = onnx.load_from_string(GRAPH_FORMATS["onnx"].write(fusion, False))
    onnx.checker.check_model(model, full_check=True)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    assert shapes == {"current": [1, 5, 8, 16], "previous": [1, 5, 8, 16], "flow": [1, 2, 32, 64]}
    assert [value.name for value in model.graph.output] == ["fused"]
    assert "GridSample" in {node.op_type for node in model.graph.node}
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {OPSET}


def shifted(run: Run) -> Run:
    return lambda *inputs: run(*inputs) * 1.01


def other_classes(run: Run) -> Run:
    """Ties are broken otherwise: scores hardly differ, classes do."""
    return lambda *inputs: run(*inputs) + 1e-4 * torch.arange(5).view(1, 5, 1, 1)


def undefined(run: Run) -> Run:
    return lambda *inputs: run(*inputs) * float("nan")


def smaller(run: Run) -> Run:
    return lambda *inputs: run(*inputs)[..., 1:]


@pytest.mark.parametrize(("damage", "part"), [(shifted, "frame"), (shifted, "fusion"), (undefined, "fusion")])
def test_graphs_that_compute_something_else_are_refused(build: Build, damage: Callable, part: str) -> None:
    network = build()
    runs: dict[str, Run] = {graph.name: graph.module for graph in list_graphs(network, SIZE, False)}
    assert check_parity(network, runs, random_pairs(SIZE, False), []).difference < NETWORK
    runs[part] = damage(runs[part])
    with pytest.raises(SettingError, match="do not compute what the network does: scores differ by"):
        check_parity(network, runs, random_pairs(SIZE, False), [])


class Undecided(torch.nn.Module):
    """Every cell but one has the same score for all classes."""

    def forward(self, pair: FramePair) -> SegOutput:
        scores = torch.zeros(1, 5, 8, 16)
        scores[:, 0, 0, 0] = 1.0
        return SegOutput(scores, None, {})


def test_graphs_with_other_classes_or_of_another_grid_are_refused() -> None:
    network = Undecided()
    pairs = random_pairs(SIZE, False)
    right: Run = lambda image: network(FramePair(image)).logits  # noqa: E731
    assert check_parity(network, {"frame": right}, pairs, []).agreement == 1
    with pytest.raises(SettingError, match=r" 0\.78% of the cells have the same class \(wanted: 99%\)"):
        check_parity(network, {"frame": other_classes(right)}, pairs, [])
    with pytest.raises(SettingError, match=r"gives \(1, 5, 8, 15\), the network \(1, 5, 8, 16\)"):
        check_parity(network, {"frame": smaller(right)}, pairs, [])


def test_what_cannot_be_exported_says_so(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build()

    class Branch(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image if image.sum() > 0 else -image

    graph = Graph("frame", Branch(), {"image": torch.rand(1, 3, 8, 8)}, "scores")
    with pytest.raises(SettingError, match=r"Graph 'frame' cannot be traced .* Export it as safetensors"):
        trace(graph, dynamic=False)
    with pytest.raises(SettingError, match=r"Leave --dynamic out"):
        trace(graph._replace(inputs={"image": torch.rand(2, 3, 8, 8)}), dynamic=True)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("patches of 14 pixels do not fit\nmore")

    monkeypatch.setattr(network, "frame_scores", refuse)
    with pytest.raises(SettingError, match="cannot take frames of 64x32: patches of 14 pixels do not fit"):
        list_graphs(network, SIZE, False)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'\. Install it with: pip install 'stcl"):
        require_onnx()


def test_still_frames_need_no_graph_of_their_own(build: Build) -> None:
    network = build()
    frame, _ = list_graphs(network, SIZE, False)
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert_close(frame.module(image), network(FramePair(image)).logits, NETWORK)
