"""RAFT: learned flow of high quality, from torchvision, for a GPU.

Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms for Optical Flow, ECCV 2020.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from stcl.errors import SettingError, StclError, lookup
from stcl.types import FrameRef

MODELS: dict[str, tuple[str, str]] = {
    "large": ("raft_large", "Raft_Large_Weights"),
    "small": ("raft_small", "Raft_Small_Weights"),
}
"""Model -> its function and its weights in ``torchvision.models.optical_flow``."""

_GRID_PX = 8  # the network works on an eighth of the picture
_SMALLEST_PX = 128  # its coarsest correlations are of an eighth of that, too


class RaftFlow:
    """RAFT flow of two images, with torchvision's default weights; they are downloaded when they are first used.

    It runs on a GPU where there is one, but on the CPU in the worker processes of a loader, which cannot share it, and
    there it takes seconds a pair. So fill a cache once, with ``stcl flow CONFIG --workers 0``.

    Args:
        model: ``large`` or ``small``.
    """

    def __init__(self, model: str = "large") -> None:
        lookup(MODELS, model, "model of flow 'raft'")
        self.model = model
        self._version = _torchvision().__version__
        self._network: nn.Module | None = None

    @property
    def signature(self) -> str:
        """What decides the result besides the images."""
        return f"raft(model={self.model}, torchvision={self._version})"

    def __getstate__(self) -> dict[str, Any]:
        """The network does not travel to worker processes; they load their own."""
        return {**self.__dict__, "_network": None}

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels of images ``(H, W, 3)`` uint8 RGB."""
        if image_a.shape != image_b.shape:
            raise SettingError(f"Flow needs two images of one size, found {image_a.shape} and {image_b.shape}.")
        height, width = image_a.shape[:2]
        below, right = (max(-side % _GRID_PX, _SMALLEST_PX - side) for side in (height, width))
        with torch.inference_mode():
            pair = [F.pad(_scaled(image), (0, right, 0, below), mode="replicate") for image in (image_a, image_b)]
            network = self._ready()
            device = next(network.parameters()).device
            flow: Tensor = network(*(image.to(device) for image in pair))[-1]  # the last iterate: (1, 2, H', W')
        return np.ascontiguousarray(flow[0, :, :height, :width].float().cpu().numpy())

    def _ready(self) -> nn.Module:
        """The network on its device."""
        if self._network is None:
            function, weights = MODELS[self.model]
            flows = _torchvision().models.optical_flow
            published = getattr(flows, weights).DEFAULT
            try:
                network = getattr(flows, function)(weights=published, progress=False)
            except OSError as error:  # no connection: an URLError
                raise StclError(
                    f"The weights of flow 'raft' cannot be downloaded ({error}). Run 'stcl flow' where there is a "
                    f"connection, or put {published.url} into the folder {torch.hub.get_dir()}/checkpoints."
                ) from error
            on_gpu = torch.cuda.is_available() and get_worker_info() is None
            self._network = network.eval().to("cuda" if on_gpu else "cpu")
        return self._network


def _scaled(image: NDArray[np.uint8]) -> Tensor:
    """``(1, 3, H, W)`` float32 -1..1, as the weights were trained with."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def _torchvision() -> Any:
    """The package with its models, or what to do without it."""
    try:
        import torchvision.models.optical_flow
    except ImportError as error:
        raise SettingError(
            f"Flow 'raft' needs the package torchvision ({error}). Install the release that belongs to torch "
            f"{torch.__version__}: pip install torchvision. Or use flow 'dis', or flow 'files'."
        ) from error
    return torchvision
