"""The video segmenter (method section 2): backbone -> head -> fusion with the previous frame's scores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stcl.errors import SettingError, lookup
from stcl.labels import LabelSpace
from stcl.models.backbones.base import Backbone, Tap
from stcl.models.fusion import ScoreFusion, align_previous
from stcl.models.heads import Head
from stcl.models.norms import Decayed, hold_statistics, undecayed
from stcl.types import FramePair, SegOutput


class FrameScores(NamedTuple):
    """Unfused scores of one frame.

    Attributes:
        main: ``(B, C, h, w)``.
        aux: ``(B, C, h', w')`` on the auxiliary stage's own grid, or None.
        features: stage -> feature map.
    """

    main: Tensor
    aux: Tensor | None
    features: dict[str, Tensor]


class VideoSegmenter(nn.Module):
    """Segments a frame with the help of the frame before.

    Args:
        backbone: image to feature maps; see its contract.
        head: features of the stages that it reads to scores ``(B, C, h, w)``; see its contract.
        aux_head: features of ``aux_stage`` to scores, or None.
        fusion: W, shared by main and auxiliary scores; None segments each frame by itself.
        aux_stage: stage that feeds the auxiliary head; the one before the last unless told otherwise.

    Attributes:
        space: the classes of its scores, where a checkpoint said so; None in a network that was just built.
    """

    space: LabelSpace | None = None

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        aux_head: Head | None,
        fusion: ScoreFusion | None,
        aux_stage: str | None = None,
    ) -> None:
        super().__init__()
        self.stage = backbone.stages[-1]
        self.head_stages = backbone.stages if head.reads == "all" else (self.stage,)
        self.aux_stage = aux_stage or backbone.stages[-2]
        lookup(backbone.channels, self.aux_stage, "backbone stage")
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.fusion = fusion

    def forward(self, pair: FramePair, tap: Tap | None = None, rows: Sequence[slice] | None = None) -> SegOutput:
        """Scores of the current frame, fused with the previous frame's where there is one.

        The previous frame runs without gradient. In training mode it is normalised with its own batch statistics
        like the current one, but does not move the running statistics: they follow the current frames alone, so that
        a step moves them once. A still image has no previous frame and its scores are not fused, as W's initial
        value [identity, 0] leaves them. Without a fusion layer every image is a still one: its previous frame is not
        looked at.

        Where no gradient is wanted at all, as of a teacher, both frames pass as one batch: batch statistics are then
        those of both frames together, no running statistics move, and there are no auxiliary scores, which serve
        training alone.

        Args:
            pair: the frames, their flow, and what does not move.
            tap: sees and may change each stage's features of the CURRENT frame (feature-level fusion).
            rows: of the current frames; one after the other they say which current frame each previous one belongs
                to, so that a frame with several previous ones passes once. None: row by row. Scores have a row for
                each previous frame, features one for each current frame.
        """
        if pair.previous is not None and pair.flow is None:
            raise SettingError("A frame pair with a previous frame needs the flow current -> previous.")
        if self.fusion is None or pair.previous is None or pair.flow is None:
            main, aux, features = self.frame_scores(pair.current, tap)
            before = aux_before = None
        elif torch.is_grad_enabled() or tap is not None:
            main, aux, features = self.frame_scores(pair.current, tap)
            with torch.no_grad(), hold_statistics(self):
                before, aux_before, _ = self.frame_scores(pair.previous)
        else:
            count, both = len(pair.current), torch.cat((pair.current, pair.previous))
            with hold_statistics(self):
                scores, _, features = self.frame_scores(both, auxiliary=False)
            main, before, aux, aux_before = scores[:count], scores[count:], None, None
            features = {stage: tensor[:count] for stage, tensor in features.items()}
        if rows is not None:
            main = torch.cat([main[part] for part in rows])
            aux = None if aux is None else torch.cat([aux[part] for part in rows])
        if self.fusion is None or before is None or pair.flow is None:
            return SegOutput(main, aux, features)
        warped = align_previous(before, main, pair.flow, pair.still)
        if aux is not None and aux_before is not None:
            aux = self.fusion(aux, align_previous(aux_before, aux, pair.flow, pair.still))
        return SegOutput(self.fusion(main, warped), aux, features, warped)

    def frame_scores(self, image: Tensor, tap: Tap | None = None, auxiliary: bool = True) -> FrameScores:
        """Unfused scores phi(x) of float RGB 0..1 ``image (B, 3, H, W)``, those of the auxiliary head if wanted."""
        features = self.backbone(image, tap)
        aux = None if self.aux_head is None or not auxiliary else self.aux_head(features[self.aux_stage])
        main = self.head(*(features[stage] for stage in self.head_stages))
        return FrameScores(main, aux, features)

    @torch.no_grad()
    def stream(
        self,
        frames: Iterable[tuple[Tensor, Tensor | None]],
        scores: Callable[[Tensor], Tensor] | None = None,
        batch: int = 1,
    ) -> Iterator[SegOutput]:
        """Segment a video; each frame passes the network once, as only scores of the frame before are kept.

        Call ``eval()`` first; the logits then equal those of :meth:`forward` on each pair of neighbours. There are
        neither auxiliary scores nor features, which serve training alone: what is kept does not grow with the video.

        Args:
            frames: ``(frame (1, 3, H, W), flow to the previous frame (1, 2, H, W))``; the flow is None for the first
                frame and after a cut.
            scores: unfused scores ``(B, C, h, w)`` of frames; None takes the network's own. Others are e.g. means over
                mirrored or tiled views (:mod:`stcl.models.views`).
            batch: how many frames pass the network together, which is faster; an output then waits for up to so many
                frames less one.
        """
        scores = scores or self.main_scores
        previous: Tensor | None = None
        remaining = iter(frames)
        while group := [*islice(remaining, batch)]:
            rows = scores(torch.cat([image for image, _ in group])).split(1)
            for current, (_, flow) in zip(rows, group, strict=True):
                if flow is None or self.fusion is None:
                    yield SegOutput(current, None, {})
                elif previous is None:
                    raise SettingError("The first frame of a stream has no previous frame: its flow must be None.")
                else:
                    warped = align_previous(previous, current, flow)
                    yield SegOutput(self.fusion(current, warped), None, {}, warped)
                previous = current

    def main_scores(self, image: Tensor) -> Tensor:
        """Unfused scores of the main head ``(B, C, h, w)`` of float RGB 0..1 ``image (B, 3, H, W)``."""
        return self.frame_scores(image, auxiliary=False).main

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role; frozen ones are left out."""
        heads = [self.head] if self.aux_head is None else [self.head, self.aux_head]
        fusion = [] if self.fusion is None else [self.fusion]
        modules: dict[str, list[nn.Module]] = {"backbone": [self.backbone], "heads": [*heads], "fusion": [*fusion]}
        return {
            role: [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
            for role, parts in modules.items()
        }

    def parameter_groups(
        self,
        rate: float,
        head_factor: float = 10.0,
        weight_decay: float | None = None,
        decayed: Decayed = "all",
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser, as published: heads learn ``head_factor`` times faster, W as fast as the backbone.

        Args:
            rate: learning rate of the backbone.
            head_factor: that of the heads is so many times higher.
            weight_decay: None leaves it to the optimiser's own argument.
            decayed: what it holds for; see :data:`Decayed`.

        Returns:
            Each group names its ``role``: ``backbone``, ``heads`` or ``fusion``. What does not decay is a group of its
            own, behind that of the same role.
        """
        factors = {"backbone": 1.0, "heads": head_factor, "fusion": 1.0}
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        free = undecayed(self, decayed)
        groups = []
        for role, parameters in self.parameter_roles().items():
            rest = [parameter for parameter in parameters if id(parameter) not in free]
            exempt = [parameter for parameter in parameters if id(parameter) in free]
            group = {"role": role, "lr": rate * factors[role]}
            groups += [{**group, "params": rest, **decay}] if rest else []
            groups += [{**group, "params": exempt, "weight_decay": 0.0}] if exempt else []
        return groups


def segment_together(network: VideoSegmenter, pairs: list[FramePair], tap: Tap | None = None) -> list[SegOutput]:
    """Segment pairs of one domain in one forward pass where their sizes agree, else one after the other.

    One pass per domain also means one set of batch-norm statistics per domain. A tap needs the joint pass. Pairs that
    hold the very same tensor as their current frame share its encoding and its features.
    """
    if not pairs:
        return []
    sizes = {pair.current.shape[-2:] for pair in pairs}
    if len(sizes) > 1:
        if tap is not None:
            raise SettingError(f"Frames of different sizes {sorted(map(tuple, sizes))} cannot share one forward pass.")
        return [network(pair) for pair in pairs]
    frames = {id(pair.current): pair.current for pair in pairs}  # the distinct ones
    ends = [*accumulate(map(len, frames.values()))]
    row_of = {key: slice(end - len(frames[key]), end) for key, end in zip(frames, ends, strict=True)}
    rows = [row_of[id(pair.current)] for pair in pairs]
    previous = [pair.previous for pair in pairs if pair.previous is not None]
    flow = [pair.flow for pair in pairs if pair.flow is not None]
    still: list[Tensor] = []
    if any(pair.still is not None for pair in pairs):
        moving = (torch.zeros_like(pair.current[:, 0], dtype=torch.bool) for pair in pairs)
        still = [default if pair.still is None else pair.still for pair, default in zip(pairs, moving, strict=True)]

    def joined(tensors: list[Tensor]) -> Tensor | None:
        return torch.cat(tensors) if tensors else None

    joint = FramePair(torch.cat([*frames.values()]), joined(previous), joined(flow), joined(still))
    output = network(joint, tap, rows if len(frames) < len(pairs) else None)
    lengths = [part.stop - part.start for part in rows]

    def parts(tensor: Tensor | None) -> list[Any]:
        return [None] * len(rows) if tensor is None else list(tensor.split(lengths))

    columns = zip(rows, parts(output.logits), parts(output.aux), parts(output.previous_logits), strict=True)
    return [
        SegOutput(logits, aux, {stage: tensor[part] for stage, tensor in output.features.items()}, before)
        for part, logits, aux, before in columns
    ]
