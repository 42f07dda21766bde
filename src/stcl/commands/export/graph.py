"""Trained networks as graphs that run without this package: ONNX and torch.export; and whether they compute the same.

A stream keeps the previous frame's scores, so that each frame passes once (:meth:`VideoSegmenter.stream`). A graph has
no memory; so there are two of them, and whoever runs them keeps the scores: ``frame`` is phi of method section 2,
``fusion`` is ``W [ phi(x_t) ; warp(phi(x_{t-1}), f[t->t-1]) ]``.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stcl.errors import MissingExtraError, SettingError, StclError
from stcl.models.fusion import ScoreFusion, align_previous
from stcl.models.segmenter import VideoSegmenter
from stcl.types import FramePair

OPSET = 18
"""Version of ONNX's operators: the one that torch's exporter writes; GridSample, which warps, is there from 16 on."""

LARGEST_DIFFERENCE = 1e-3
"""Between a score of a graph and of the network, as a share of the largest score."""

SMALLEST_AGREEMENT = 0.99
"""Share of cells in which a graph has to choose the network's class; those with two equal scores may differ."""

_OTHER_FORMAT = "Choose --format torch-export."

Run = Callable[..., Tensor]
"""``run(inputs...) -> output``: a graph that was written and opened again."""


class Frame(nn.Module):
    """Float RGB 0..1 ``image (B, 3, H, W)`` to unfused main scores ``(B, C, h, w)``, each image by itself."""

    def __init__(self, network: VideoSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Scores of each image by itself."""
        return self.network.main_scores(image)


class Fusion(nn.Module):
    """Unfused scores ``(B, C, h, w)`` of two frames and ``flow (B, 2, H, W)`` in pixels to fused scores."""

    def __init__(self, fusion: ScoreFusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, current: Tensor, previous: Tensor, flow: Tensor) -> Tensor:
        """Scores of the current frame; the flow leads from it to the previous one."""
        fused: Tensor = self.fusion(current, align_previous(previous, current, flow))
        return fused


class Graph(NamedTuple):
    """What is to become one file.

    Attributes:
        name: of the graph and its file.
        module: what it computes.
        inputs: name -> example.
        output: name of the output.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


@torch.no_grad()
def list_graphs(network: VideoSegmenter, size: tuple[int, int], dynamic: bool) -> list[Graph]:
    """The graphs of a network: ``frame``, and ``fusion`` where it fuses.

    Args:
        network: in evaluation mode, on the CPU.
        size: ``(width, height)`` of the examples in pixels.
        dynamic: the example is a batch of two, because torch takes an axis of one for a constant.
    """
    width, height = size
    image = torch.rand(2 if dynamic else 1, 3, height, width, generator=torch.Generator().manual_seed(0))
    try:
        scores = network.main_scores(image)
    except StclError:
        raise
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"The network cannot take frames of {width}x{height}: {_first_line(error)}.") from error
    graphs = [Graph("frame", Frame(network).eval(), {"image": image}, "scores")]
    if network.fusion is not None:
        inputs = {"current": scores, "previous": scores.clone(), "flow": torch.zeros(len(image), 2, height, width)}
        graphs.append(Graph("fusion", Fusion(network.fusion).eval(), inputs, "fused"))
    return graphs


def require_onnx() -> None:
    """Refuse early where a package that ONNX needs is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("Export to ONNX", package, "export")


def trace(graph: Graph, dynamic: bool) -> torch.export.ExportedProgram:
    """The graph's operations, without a word about the files of the code that they come from."""
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = tuple(axes for _ in graph.inputs) if dynamic else None
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                graph.module, tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False
            )
    except (RuntimeError, ValueError, TypeError) as error:  # whatever a layer does that torch cannot follow
        hint = "Leave --dynamic out: with a fixed size it may work" if dynamic else "Export it as safetensors"
        raise SettingError(f"Graph '{graph.name}' cannot be traced ({_first_line(error)}). {hint}.") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def to_torch_export(graph: Graph, dynamic: bool) -> bytes:
    """Contents of a ``.pt2`` file, for :func:`torch.export.load`."""
    program, content = trace(graph, dynamic), io.BytesIO()
    program.example_inputs = None  # as large as the frames, and of no use to anyone
    with _quiet():
        torch.export.save(program, content)
    return content.getvalue()


def to_onnx(graph: Graph, dynamic: bool) -> bytes:
    """Contents of an ``.onnx`` file with the weights inside."""
    program = trace(graph, dynamic)
    inputs, outputs = [*graph.inputs], [graph.output]
    try:
        with _quiet():
            written = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise SettingError(
            f"Graph '{graph.name}' cannot be written as ONNX ({_first_line(error)}). {_OTHER_FORMAT}"
        ) from error
    assert written is not None
    model = written.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # where in the code it comes from
    return model.SerializeToString()


def open_torch_export(content: bytes) -> Run:
    """A ``.pt2`` file's contents as a function."""
    return torch.export.load(io.BytesIO(content)).module()


def open_onnx(content: bytes) -> Run:
    """An ``.onnx`` file's contents as a function, run by onnxruntime on the CPU."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    failures = (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.NotImplemented,
        states.RuntimeException,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise SettingError(
            f"onnxruntime cannot open what torch wrote ({_first_line(error)}). {_OTHER_FORMAT}"
        ) from error
    names = [argument.name for argument in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
        try:
            return torch.from_numpy(session.run(None, arrays)[0])
        except failures as error:
            raise SettingError(
                f"onnxruntime cannot run what torch wrote ({_first_line(error)}). {_OTHER_FORMAT}"
            ) from error

    return run


class Format(NamedTuple):
    """How graphs become files: ``write(graph, dynamic)`` gives the contents, of which ``open`` makes a function."""

    suffix: str
    write: Callable[[Graph, bool], bytes]
    open: Callable[[bytes], Run]


GRAPH_FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", to_onnx, open_onnx),
    "torch-export": Format(".pt2", to_torch_export, open_torch_export),
}
"""Every format of graphs by name."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from telling users about packages that no network here needs."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class Parity(NamedTuple):
    """How far graphs are from their network.

    Attributes:
        difference: largest difference of a score, as a share of the largest score.
        agreement: share of cells of the scores' grid in which both choose the same class.
        random_frames, real_frames: how many were compared, of noise and of a data set.
    """

    difference: float
    agreement: float
    random_frames: int
    real_frames: int


def random_pairs(size: tuple[int, int], dynamic: bool) -> list[FramePair]:
    """Pairs of noise to compare on; with dynamic axes also a batch of two, and frames of another size."""
    generator = torch.Generator().manual_seed(1)
    width, height = size
    turned = (height, width) if width != height else (2 * width, height)
    shapes = [(1, width, height)] + ([(2, width, height), (1, *turned)] if dynamic else [])

    def pair(batch: int, w: int, h: int) -> FramePair:
        frames = torch.rand(2, batch, 3, h, w, generator=generator)
        return FramePair(frames[0], frames[1], 4 * torch.randn(batch, 2, h, w, generator=generator))

    return [pair(*shape) for shape in shapes]


@torch.no_grad()
def check_parity(
    network: VideoSegmenter, runs: dict[str, Run], random: Sequence[FramePair], real: Sequence[FramePair]
) -> Parity:
    """Run graphs the way a stream does and compare them with the network's own forward pass.

    Args:
        network: in evaluation mode, on the CPU.
        runs: graphs by name, as :func:`list_graphs` calls them.
        random, real: pairs with flow, of the graphs' size.

    Raises:
        SettingError: a score or the choice of classes differs by more than rounding.
    """
    difference, largest, equal, cells = 0.0, 0.0, 0, 0
    for pair in (*random, *real):
        current, previous = runs["frame"](pair.current), runs["frame"](pair.previous)
        compared = [(current, network(FramePair(pair.current)).logits)]
        if "fusion" in runs:
            compared.append((runs["fusion"](current, previous, pair.flow), network(pair).logits))
        for scores, expected in compared:
            if scores.shape != expected.shape:
                raise SettingError(f"A graph gives {tuple(scores.shape)}, the network {tuple(expected.shape)}.")
            gap = float((scores - expected).abs().max())
            difference = max(difference, gap) if gap == gap else float("nan")
            largest = max(largest, float(expected.abs().max()))
            equal += int((scores.argmax(1) == expected.argmax(1)).sum())
            cells += scores[:, 0].numel()
    counts = (sum(len(pair.current) for pair in pairs) for pairs in (random, real))
    parity = Parity(difference / max(largest, 1e-12), equal / cells, *counts)
    if not parity.difference <= LARGEST_DIFFERENCE or parity.agreement < SMALLEST_AGREEMENT:  # not: NaN is refused, too
        raise SettingError(
            f"The exported graphs do not compute what the network does: scores differ by {parity.difference:.2g} of "
            f"the largest (allowed: {LARGEST_DIFFERENCE:g}), and {parity.agreement:.2%} of the cells have the same "
            f"class (wanted: {SMALLEST_AGREEMENT:.0%}). Nothing was written. Choose another format."
        )
    return parity
