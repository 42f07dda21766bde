"""Pictures that show whether labels fit their frames and flow fits its frames."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stcl.commands.check.domain import DomainCheck, spread
from stcl.commands.check.survey import explain_frame, flow_pairs
from stcl.errors import StclError
from stcl.ops.warp import inside, photometric_error, warp


def label_exhibits(check: DomainCheck, count: int) -> list[dict[str, Any]]:
    """Evenly spread frames ``(H, W, 3)`` uint8 RGB with their train ids ``(H, W)``, as they are on disk."""
    if check.clips is None:
        return []
    dataset, space = check.clips.dataset, check.clips.space
    good = [ref for ref, facts in check.read if facts.pixels is not None and facts.size == facts.label_size]
    return [
        {
            "domain": check.summary.role,
            "name": good[position].name,
            "frame": dataset.read_frame(good[position]),
            "label": dataset.read_label(good[position], space),
        }
        for position in spread(len(good), count)
    ]


def flow_exhibits(check: DomainCheck, count: int) -> list[dict[str, Any]]:
    """Evenly spread frames with the neighbour that flow warps to them, at training size; none where flow cannot be had.

    ``difference`` is that of every pixel ``(H, W)`` float32 0..1, 1 where the flow leaves the frame; ``mean`` is over
    the others, ``still`` the same without flow.
    """
    clips, found = check.clips, []
    if clips is None or clips.flow is None:
        return []
    broken = {ref for ref, facts in check.read if facts.error}
    pairs = next(iter(flow_pairs(clips, range(len(clips))).values()))
    pairs = [pair for pair in pairs if not broken & {*pair}]
    for position in spread(len(pairs), count):
        a, b = pairs[position]
        try:
            images, flow = explain_frame(clips, a, b)
        except StclError:  # it is among the findings
            continue
        frame, other = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images)
        motion = torch.from_numpy(flow)[None]
        difference = photometric_error(frame, other, motion)
        seen = inside(motion)
        warped = warp(other, motion)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        found.append(
            {
                "domain": check.summary.role,
                "name": a.name,
                "previous": b.name,
                "frame": images[0],
                "warped": warped,
                "difference": _map(difference),
                "mean": float(difference[seen].mean()) if seen.any() else 1.0,
                "still": float((frame - other).abs().mean(1)[seen].mean()) if seen.any() else 1.0,
            }
        )
    return found


def _map(values: torch.Tensor) -> NDArray[np.float32]:
    return values[0].numpy().astype(np.float32)
