"""Trained networks as graphs that run without this package: ONNX and torch.export.

A stream keeps the previous frame's scores, so that each frame passes once (:meth:`VideoSegmenter.stream`). A graph has
no memory; so there are two of them, and whoever runs them keeps the scores: ``frame`` is phi of method section 2,
``fusion`` is ``W [ phi(x_t) ; warp(phi(x_{t-1}), f[t->t-1]) ]``.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stcl.errors import MissingExtraError, SettingError, StclError
from stcl.models.fusion import align_previous
from stcl.models.segmenter import VideoSegmenter

OPSET = 18
"""Version of ONNX's operators: the one that torch's exporter writes; GridSample, which warps, is there from 16 on."""

_OTHER_FORMAT = "Choose --format torch-export."

Run = Callable[..., Tensor]
"""``run(inputs...) -> output``: a graph that was written and opened again."""


class Frame(nn.Module):
    """Float RGB 0..1 ``image (B, 3, H, W)`` to unfused main scores ``(B, C, h, w)``."""

    def __init__(self, network: VideoSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Scores of each image by itself."""
        return self.network.main_scores(image)


class Fusion(nn.Module):
    """Unfused scores ``(B, C, h, w)`` of two frames and ``flow (B, 2, H, W)`` in pixels to fused scores."""

    def __init__(self, network: VideoSegmenter) -> None:
        super().__init__()
        if network.fusion is None:
            raise SettingError("This network segments each frame by itself (fusion 'none'): it has no fusion graph.")
        self.fusion = network.fusion

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
        graphs.append(Graph("fusion", Fusion(network).eval(), inputs, "fused"))
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
    """How graphs become files.

    Attributes:
        suffix: of the files.
        write: a graph and whether its axes are dynamic, to the file's contents.
        open: the file's contents to a function.
    """

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
