"""Compiled networks compute what others compute, and training goes on where nothing can be compiled."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn

from closeness import GRADIENT, NETWORK, assert_close
from stcl.models import Backbone, EmaTeacher, HeadSettings, ScoreFusion, Tap, VideoSegmenter
from stcl.models.backbones.base import run_block
from stcl.models.backbones.small import ConvNormRelu, ResidualBlock
from stcl.models.compilation import compile_network
from stcl.models.heads import TpsHead
from stcl.types import FramePair

compile_for_real = torch.compile


class TwoBlocks(Backbone):
    """The least that can be compiled: tracing takes a second for each block, size and mode."""

    stages = ("first", "second")
    channels = {"first": 4, "second": 8}
    strides = {"first": 2, "second": 4}

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvNormRelu(3, 4, nn.BatchNorm2d, stride=2)
        self.second = nn.Sequential(ResidualBlock(4, 8, nn.BatchNorm2d, stride=2))

    def normalise(self, image: Tensor) -> Tensor:
        return image - 0.5

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        first = self.compute(self.first, self.normalise(image))
        return {"first": first, "second": self.chain(self.second, first)}


def network_of() -> VideoSegmenter:
    torch.manual_seed(0)
    settings = HeadSettings(dilations=(1,))
    return VideoSegmenter(TwoBlocks(), TpsHead(8, 5, settings), TpsHead(4, 5, settings), ScoreFusion(5)).train()


def pair_of(batch: int = 2, size: tuple[int, int] = (32, 64), seed: int = 0) -> FramePair:
    draws = torch.Generator().manual_seed(seed)
    current, previous = torch.rand(2, batch, 3, *size, generator=draws).unbind(0)
    return FramePair(current, previous, torch.randn(batch, 2, *size, generator=draws))


def trained(network: VideoSegmenter, pairs: list[FramePair]) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Scores, gradients and state after passes in training, and a teacher's pass between them."""
    teacher = EmaTeacher(network, statistics="batch")
    scores = [network(pair).logits for pair in pairs] + [teacher(pairs[0]).logits]
    torch.stack([score.square().mean() for score in scores]).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return scores, gradients, network.state_dict()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trace, differentiate and divide graphs as the real compiler does, but write no C++; returns the graphs."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=keep, decompositions=select_decomp_table(), partition_fn=min_cut_rematerialization_partition
    )
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(compile_for_real, backend=backend))
    return graphs


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_network_computes_the_same(quick, checkpointing):
    network, compiled = network_of(), network_of()
    compile_network(compiled)
    compiled.backbone.gradient_checkpointing = checkpointing
    pairs = [pair_of(), pair_of(seed=1)]
    assert_close(trained(compiled, pairs), trained(network, pairs), GRADIENT)
    assert quick
    assert list(compiled.state_dict()) == list(network.state_dict())


def test_nothing_is_compiled_twice(quick):
    network = network_of()
    compile_network(network)
    counts = []
    for _ in range(3):
        trained(network, [pair_of()])
        counts.append(len(quick))
    assert counts[0] == counts[1] == counts[2] > 0


def test_one_result_for_all_sizes(quick):
    network = network_of()
    compile_network(network, dynamic=True)
    counts = []
    for size in ((32, 64), (40, 48)):
        network(pair_of(2, size)).logits.sum().backward()
        counts.append(len(quick))
    assert counts[0] == counts[1] > 0


def test_a_copy_is_compiled_too(quick):
    network = network_of()
    compile_network(nn.ModuleDict({"student": network}))
    copy = deepcopy(network).eval()
    assert copy.backbone.runner is network.backbone.runner is not run_block
    with torch.no_grad():
        assert_close(copy(pair_of()).logits, network_of().eval()(pair_of()).logits, NETWORK)
    assert quick


# ---- where nothing can be compiled ----


def falls_back(network: VideoSegmenter, caplog: pytest.LogCaptureFixture) -> str:
    """Train ``network``; the one warning that this gave."""
    pairs = [pair_of(), pair_of(1, (32, 32), 1)]
    assert_close(trained(network, pairs), trained(network_of(), pairs), GRADIENT)
    (message,) = messages(caplog)
    return message


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("stcl")]


def test_without_a_compiler_training_goes_on(monkeypatch, caplog):
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    network = network_of()
    compile_network(network)
    message = falls_back(network, caplog)
    assert message.startswith("torch.compile does not work here, so training goes on without it (InvalidCxxCompiler")
    assert "no-such-compiler" in message and "\n" not in message


def test_on_a_platform_without_support_training_goes_on(monkeypatch, caplog):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    network = network_of()
    compile_network(network)
    assert "not supported on Python 3.99+" in falls_back(network, caplog)


def test_errors_of_the_training_are_not_hidden(monkeypatch):
    def short_of_memory(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: short_of_memory)
    network = network_of()
    compile_network(network)
    with pytest.raises(torch.OutOfMemoryError):
        network(pair_of())


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_the_real_compiler(checkpointing, caplog):
    torch._dynamo.reset()
    network, compiled = network_of(), network_of()
    compile_network(compiled)
    compiled.backbone.gradient_checkpointing = checkpointing
    pairs = [pair_of(), pair_of(seed=1)]
    assert_close(trained(compiled, pairs), trained(network, pairs), GRADIENT)
    assert not messages(caplog)
