"""What every adaptation method shares: optimiser, schedule, weight average, preparation of the clips, logging.

A method file adds its arguments, the clips it needs and its :meth:`AdaptationMethod.losses`, and nothing else.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, NotRequired, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from stcl.errors import SettingError
from stcl.labels import LabelSpace
from stcl.methods.settings import MethodSettings
from stcl.models import EmaTeacher, VideoSegmenter
from stcl.models.views import GRID_PX
from stcl.ops.augment import crop_clip, flip_clip, rescale_clip, strong_augment
from stcl.ops.fourier import swap_amplitude
from stcl.ops.histogram import match_histogram
from stcl.ops.processes import mean_over_processes
from stcl.types import ClipSpec, VideoClip

Stream = Literal["draws", "dropout", "scale", "window"]
"""Independent random streams of a step: the method's draws, the layers' own, and two that the host must know."""


class DomainBatch(TypedDict):
    """One training batch: labelled source clips and, where the method wants them, unlabelled target clips."""

    source: VideoClip
    target: NotRequired[VideoClip]


class View(NamedTuple):
    """What a step feeds to the network, for whoever looks at it.

    Attributes:
        clip: frames 0..1 and the labels that the loss takes.
        outline: ``(B, H, W)`` bool, where patches lie at t; None without patches.
        weight: of the labelled pixels, ``(B, H, W)`` or ``(B, 1, 1)``; None where each counts 1.
    """

    clip: VideoClip
    outline: Tensor | None = None
    weight: Tensor | None = None


class AdaptationMethod(nn.Module):
    """Base of all methods. Calling it with a batch gives the loss of one training step.

    Args:
        network: the student.
        space: classes that are trained.
        seed: with the step it determines every random draw.
        settings: an instance of the method's ``Settings``.

    Attributes:
        step: number of the current step, from 0; counted by :func:`stcl.training.loop.take_step`.
        steps: how many the training takes.
        rank: number of this process.
        terms: loss terms of the last step by name, means over all processes.
        logged: further numbers of the last step for the log, the loss terms among them.
        clips: names of the last step's clips.
        views: a dict is filled by each step with what enters the network; None: nobody looks.

    Class attributes:
        Settings: what can be set.
        pastes: whether it cuts windows of the target's size out of source clips, which must be as large then.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    pastes: ClassVar[bool] = False
    settings: MethodSettings

    def __init__(self, network: VideoSegmenter, space: LabelSpace, seed: int, settings: MethodSettings) -> None:
        super().__init__()
        self.network = network
        self.space = space
        self.seed = seed
        self.settings = settings
        self.optimization = settings.optimization
        self.preparation = settings.preparation
        self.aux_weight = settings.aux_weight
        self.evaluation_statistics = settings.evaluation_statistics
        self.average = EmaTeacher(network, settings.ema_momentum, statistics="running")
        self.step, self.steps, self.rank = 0, 1, 0
        self.terms: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.clips: list[str] = []
        self.views: dict[str, View] | None = None

    # ---- what a method declares ----

    @property
    def source_spec(self) -> ClipSpec:
        """Source clips that the method wants, with labels."""
        return ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0, -1))

    @property
    def target_spec(self) -> ClipSpec | None:
        """Target clips that the method wants, without labels; None where it looks at no target frame."""
        looks = self.preparation.match_histogram or self.preparation.fourier_beta > 0
        return ClipSpec(frames=(0,)) if looks else None

    @abstractmethod
    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted loss terms of one step by name; their sum is minimised.

        Args:
            source: labelled clips, float RGB 0..1 on the device.
            target: unlabelled clips, likewise, or None.
            generator: random draws of this step, on the device.
        """

    # ---- what the base does ----

    def forward(self, batch: DomainBatch) -> Tensor:
        """The loss of one step: prepare the clips, sum the method's terms, keep each of them for the log."""
        self.logged = {}
        generator = self.step_generator()
        torch.manual_seed(self.step_seed("dropout"))  # layers draw from the global generators
        terms = self.losses(*self.prepare_batch(batch, generator), generator)
        values = torch.stack(list(terms.values()))
        means = mean_over_processes(values)  # those of the whole batch
        self.terms = dict(zip(terms, means.unbind(), strict=True))
        self.logged |= {f"loss/{name}": term for name, term in self.terms.items()} | {"loss/total": means.sum()}
        self.clips = [name for clips in batch.values() for name in clips.names]  # type: ignore[attr-defined]
        return values.sum()

    def log(self, name: str, value: Tensor) -> None:
        """Keep a number of this step for the log."""
        self.logged[name] = value.detach()

    def show(self, name: str, clip: VideoClip, outline: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Keep what enters the network, if somebody watches; costs nothing otherwise."""
        if self.views is not None:
            self.views[name] = View(clip, outline, weight)

    def moving_statistics(self) -> list[Tensor]:
        """What a forward pass changes beside gradients: a step that does not count puts these back."""
        return [*self.network.buffers()]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def step_generator(self) -> torch.Generator:
        """Random draws of the current step, on the device. Every call starts anew: make one a step and hand it on."""
        return torch.Generator(device=self.device).manual_seed(self.step_seed("draws"))

    def step_seed(self, stream: Stream) -> int:
        """Seed of a stream: a function of (seed, process, step) alone, so a resumed run repeats its draws."""
        mixed = (self.seed * 1_000_003 + self.step) * 1_009 + self.rank
        return (mixed * 4 + get_args(Stream).index(stream)) % 2**63

    def prepare_batch(self, batch: DomainBatch, generator: torch.Generator) -> tuple[VideoClip, VideoClip | None]:
        """Float frames on the device, colours matched, geometry drawn for the whole clip (method sections 3.1, 3.2)."""
        preparation = self.preparation
        # mirrored as bytes, which are a fourth as large
        source = self._flip(batch["source"], generator)
        target = self._flip(batch["target"], generator) if "target" in batch else None
        if preparation.match_histogram and target is not None:
            source = replace(source, frames=match_histogram(source.frames, target.frames[:, :1]))
        else:
            source = source.to_float()
        if preparation.fourier_beta > 0 and target is not None:
            reference = target.frames[:, :1].float() / 255
            source = replace(source, frames=swap_amplitude(source.frames, reference, preparation.fourier_beta))
        source = self._crop(self._rescale(source))
        if target is not None:
            target = self._crop(target.to_float())
        return (self.augment(source, generator) if preparation.augment_source else source), target

    def augment(self, clip: VideoClip, generator: torch.Generator) -> VideoClip:
        """Strongly augmented frames, one draw for all frames of a clip."""
        return replace(clip, frames=strong_augment(clip.frames, self.preparation.strong, generator))

    def _flip(self, clip: VideoClip, generator: torch.Generator) -> VideoClip:
        chosen = torch.rand(len(clip.frames), generator=generator, device=clip.frames.device) < self.preparation.flip
        return flip_clip(clip, chosen)

    def _rescale(self, clip: VideoClip) -> VideoClip:
        least, most = self.preparation.rescale
        if (least, most) == (1.0, 1.0):
            return clip
        scale, y, x = self._host_draws("scale", 3)
        factor = least + (most - least) * scale
        height, width = (max(GRID_PX, round(side * factor / GRID_PX) * GRID_PX) for side in clip.size)
        size = (min(clip.size[0], height), min(clip.size[1], width))
        return _window(rescale_clip(clip, (height, width)), size, y, x)

    def _crop(self, clip: VideoClip) -> VideoClip:
        """The same window of source and target: roads lie below, and patches keep their place."""
        if self.preparation.crop is None:
            return clip
        width, height = self.preparation.crop
        if clip.size[0] < height or clip.size[1] < width:
            raise SettingError(
                f"method.preparation.crop is {width}x{height} px, but clips have {clip.size[1]}x{clip.size[0]} px "
                "(source clips may shrink by method.preparation.rescale). Make the crop smaller."
            )
        return self.draw_window(clip, (height, width))

    def draw_window(self, clip: VideoClip, size: tuple[int, int]) -> VideoClip:
        """A random window of ``size (height, width)``, at one relative place for all clips of a step."""
        return _window(clip, size, *self._host_draws("window", 2))

    def _host_draws(self, stream: Stream, count: int) -> list[float]:
        """Numbers in 0..1 that set shapes of tensors, which the host must know; from the same (seed, step)."""
        return torch.rand(count, generator=torch.Generator().manual_seed(self.step_seed(stream))).tolist()

    def make_optimizer(self) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Parameter groups by role, and their polynomial schedule over :attr:`steps`; the networks are on their device.

        The optimiser is fused: one kernel for all parameters, which can also leave a step out by itself.
        """
        setting = self.optimization
        groups = self.network.parameter_groups(setting.learning_rate, setting.head_factor, decayed=setting.decayed)
        optimizer: torch.optim.Optimizer
        decay = setting.weight_decay
        if setting.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=setting.momentum, weight_decay=decay, fused=True)
            if setting.momentum:  # torch begins with the first gradient, and with chance bits if that step is left out
                for parameter in (each for group in optimizer.param_groups for each in group["params"]):
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        return optimizer, LambdaLR(optimizer, lambda step: setting.factor(step, self.steps))

    @property
    def evaluated(self) -> VideoSegmenter:
        """The network that is evaluated and published: the weight average, never the raw student."""
        return self.average.network


def _window(clip: VideoClip, size: tuple[int, int], y: float, x: float) -> VideoClip:
    """The window of ``size (height, width)`` at the relative place ``y, x`` in 0..1."""
    top, left = int(y * (clip.size[0] - size[0] + 1)), int(x * (clip.size[1] - size[1] + 1))
    return crop_clip(clip, top, left, size).map(Tensor.contiguous)  # so that the whole frames need not be kept
