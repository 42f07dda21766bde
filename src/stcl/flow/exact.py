"""The exact flow that a rendered tree carries beside its frames."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.pictures import read_flow_png
from stcl.files.writing import EXACT_FLOW_FOLDER, exact_flow_path
from stcl.ops.warp import resize_flow
from stcl.types import FrameRef


class ExactFlow:
    """Flow from the files that an export of TwinStreets wrote, rescaled per axis to the images' size.

    Frames must show the whole rendered picture: a crop would not be noticed here.
    """

    signature = "exact"

    def source_path(self, a: FrameRef, b: FrameRef) -> Path:
        """The file that the flow a -> b is read from."""
        return exact_flow_path(_root(a), a.image, b.image)

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels of images ``(H, W, 3)`` uint8 RGB."""
        path = self.source_path(a, b)
        if not path.is_file():
            raise DataError(
                f"Exact flow file {path} does not exist; {_what_is_there(path, a)}. Export the frames again with flow "
                "for these offsets, or use flow 'dis'."
            )
        flow, _ = read_flow_png(path)
        height, width = image_a.shape[:2]
        if flow.shape[1:] == (height, width):
            return flow
        return resize_flow(torch.from_numpy(flow)[None], (height, width), align_corners=False)[0].numpy()


def _root(frame: FrameRef) -> Path:
    """Root of the exported tree that a frame lies in."""
    for folder in frame.image.parents:
        if (folder / EXACT_FLOW_FOLDER).is_dir():
            return folder
    raise DataError(
        f"Frame {frame.image} has no exact flow: no folder '{EXACT_FLOW_FOLDER}' beside it or above it. Only trees "
        "exported from TwinStreets with exact flow have one; for other frames use flow 'dis'."
    )


def _what_is_there(path: Path, frame: FrameRef) -> str:
    found = sorted(other.name for other in path.parent.glob(f"{frame.image.stem}_to_*.png"))
    return f"from this frame there is: {', '.join(found)}" if found else "there is none from this frame"
