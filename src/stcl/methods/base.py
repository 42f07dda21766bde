"""What every adaptation method shares: optimiser, schedule, weight average, preparation of the clips, logging.

A method file adds its arguments, the clips it needs and its :meth:`AdaptationMethod.losses`, and nothing else.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, NotRequired, TypedDict, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import LabelSpace
from stcl.methods.settings import MethodSettings
from stcl.models import EmaTeacher, VideoSegmenter
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


class AdaptationMethod(LightningModule):
    """Base of all methods.

    Args:
        network: the student.
        space: classes that are trained.
        seed: with the step it determines every random draw.
        settings: an instance of the method's ``Settings``.

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
        self.terms: dict[str, Tensor] = {}  # losses and clips of the last step, for whoever watches the training
        self.clips: list[str] = []
        self.views: dict[str, View] | None = None  # a dict is filled by each step

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

    def training_step(self, batch: DomainBatch, batch_index: int) -> Tensor:
        """Prepare the clips, sum the method's losses, log each of them."""
        generator = self.step_generator()
        torch.manual_seed(self.step_seed("dropout"))  # layers draw from the global generators
        source, target = self.prepare_batch(batch, generator)
        terms = self.losses(source, target, generator)
        values = torch.stack(list(terms.values()))
        means = mean_over_processes(values)  # those of the whole batch
        self.terms = dict(zip(terms, means.unbind(), strict=True))
        self.clips = [name for clips in batch.values() for name in clips.names]  # type: ignore[attr-defined]
        self.log_dict({f"loss/{name}": term for name, term in self.terms.items()}, batch_size=len(source.names))
        self.log("loss/total", means.sum(), batch_size=len(source.names))
        return values.sum()

    def show(self, name: str, clip: VideoClip, outline: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Keep what enters the network, if somebody watches; costs nothing otherwise."""
        if self.views is not None:
            self.views[name] = View(clip, outline, weight)

    def moving_statistics(self) -> list[Tensor]:
        """What a forward pass changes beside gradients: a step that does not count puts these back."""
        return [*self.network.buffers()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the weight average after every optimiser step."""
        self.average.update(self.network, self.global_step - 1)  # global_step counts the step that has just ended

    def step_generator(self) -> torch.Generator:
        """Random draws of the current step, on the device. Every call starts anew: make one a step and hand it on."""
        return torch.Generator(device=self.device).manual_seed(self.step_seed("draws"))

    def step_seed(self, stream: Stream) -> int:
        """Seed of a stream: a function of (seed, process, step) alone, so a resumed run repeats its draws."""
        mixed = (self.seed * 1_000_003 + self.global_step) * 1_009 + self.global_rank
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
        source = self._geometry(source, preparation.rescale)
        if target is not None:
            target = self._geometry(target.to_float())
        if preparation.augment_source:
            source = self.augment(source, generator)
        return source, target

    def augment(self, clip: VideoClip, generator: torch.Generator) -> VideoClip:
        """Strongly augmented frames, one draw for all frames of a clip."""
        return replace(clip, frames=strong_augment(clip.frames, self.preparation.strong, generator))

    def _flip(self, clip: VideoClip, generator: torch.Generator) -> VideoClip:
        chosen = torch.rand(len(clip.frames), generator=generator, device=clip.frames.device) < self.preparation.flip
        return flip_clip(clip, chosen)

    def _geometry(self, clip: VideoClip, rescale: tuple[float, float] = (1.0, 1.0)) -> VideoClip:
        # What sets the shape of tensors must be known to the host: drawn there, from the same (seed, step).
        if rescale != (1.0, 1.0):
            scale, y, x = self._host_draws("scale", 3)
            factor, grid = rescale[0] + (rescale[1] - rescale[0]) * scale, 8
            height, width = (max(grid, round(side * factor / grid) * grid) for side in clip.size)
            old, clip = clip.size, rescale_clip(clip, (height, width))
            clip = _window(clip, (min(old[0], height), min(old[1], width)), y, x)
        if self.preparation.crop is not None:  # source and target: roads lie below, and patches keep their place
            width, height = self.preparation.crop
            if clip.size[0] < height or clip.size[1] < width:
                raise SettingError(
                    f"method.preparation.crop is {width}x{height} px, but clips have {clip.size[1]}x{clip.size[0]} px "
                    "(source clips may shrink by method.preparation.rescale). Make the crop smaller."
                )
            clip = self.draw_window(clip, (height, width))
        return clip

    def draw_window(self, clip: VideoClip, size: tuple[int, int]) -> VideoClip:
        """A random window of ``size (height, width)``, at one relative place for all clips of a step."""
        return _window(clip, size, *self._host_draws("window", 2))

    def _host_draws(self, stream: Stream, count: int) -> list[float]:
        return torch.rand(count, generator=torch.Generator().manual_seed(self.step_seed(stream))).tolist()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Parameter groups by role under one polynomial schedule."""
        setting = self.optimization
        groups = self.network.parameter_groups(setting.learning_rate, setting.head_factor, decayed=setting.decayed)
        optimizer: torch.optim.Optimizer
        decay = setting.weight_decay  # fused: one kernel for all parameters, which can also leave a step out by itself
        if setting.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=setting.momentum, weight_decay=decay, fused=True)
            if setting.momentum:  # torch begins with the first gradient, and with chance bits if that step is left out
                for parameter in (each for group in optimizer.param_groups for each in group["params"]):
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: setting.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def evaluated(self) -> VideoSegmenter:
        """The network that is evaluated and published: the weight average, never the raw student."""
        return self.average.network


def _window(clip: VideoClip, size: tuple[int, int], y: float, x: float) -> VideoClip:
    """The window of ``size (height, width)`` at the relative place ``y, x`` in 0..1."""
    top, left = int(y * (clip.size[0] - size[0] + 1)), int(x * (clip.size[1] - size[1] + 1))
    return crop_clip(clip, top, left, size).map(Tensor.contiguous)  # so that the whole frames need not be kept
