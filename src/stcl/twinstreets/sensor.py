"""What a camera does to light: exposure, colour cast, vignetting, blur, noise, compression."""

import cv2
import numpy as np

from stcl.twinstreets.camera import FRAME_RATE, Lens
from stcl.twinstreets.seeding import generator
from stcl.twinstreets.styles import Style


class Sensor:
    """The sensor of one clip; the same frame index always gives the same bytes.

    `metering` is the gain that suits the clip's weather, before drifts.
    """

    def __init__(self, style: Style, seed: int, lens: Lens, metering: float) -> None:
        self.look, self.lens = style.look, lens
        self._keys = (style.name, style.seed, seed, "sensor")
        random = generator(*self._keys)
        look = self.look
        self.exposure = metering * float(np.exp(random.normal(0.0, look.exposure_drift)))
        self.cast = 1.0 + look.color_cast * random.standard_normal(3)
        self.rates, self.phases = random.uniform(0.5, 2.5, 2), random.uniform(0.0, 2 * np.pi, 2)
        self.sigma = random.uniform(*look.blur) * lens.width / 1000.0
        self.noise = random.uniform(*look.noise)
        self.quality = int(np.clip(random.uniform(*look.jpeg_quality), 0, 100))
        right, up = lens.rays()
        radius = (right[None] ** 2 + up[:, None] ** 2) / float(right[-1] ** 2 + up[0] ** 2)
        self.falloff = (1.0 - look.vignette * radius).astype(np.float32)[..., None]

    def develop(self, light: np.ndarray, index: int, smear: np.ndarray | None) -> np.ndarray:
        """Radiance (H, W, 3) in [0, 1] to the image (H, W, 3) uint8.

        `smear` (2, H, W) is the motion in px while the shutter is open.
        """
        look, time = self.look, index / FRAME_RATE
        if smear is not None:
            light = self._motion_blur(light, smear)
        if self.sigma > 0.1:
            light = cv2.GaussianBlur(light, (0, 0), self.sigma)
        wave = np.sin(self.rates * time + self.phases)
        gain = self.exposure * (1.0 + look.exposure_drift * wave[0])
        tint = self.cast * (1.0 + 0.3 * look.color_cast * wave[1] * np.array([1.0, 0.0, -1.0]))
        light = light * (gain * tint).astype(np.float32)
        if look.vignette:
            light = light * self.falloff
        if look.shadows:  # a real sensor rolls off towards white instead of clipping
            light = np.where(light > 0.7, 0.7 + 0.3 * np.tanh((light - 0.7) / 0.3), light)
        levels = light * np.float32(255.0)
        if self.noise:
            random = generator(*self._keys, index)
            levels = levels + random.standard_normal(levels.shape, dtype=np.float32) * np.float32(self.noise)
        image = np.clip(levels + np.float32(0.5), 0.0, 255.0).astype(np.uint8)
        return self._compress(image) if self.quality else image

    def _motion_blur(self, light: np.ndarray, smear: np.ndarray) -> np.ndarray:
        limit = np.float32(0.02 * self.lens.width)
        smear = np.clip(smear, -limit, limit)
        x = np.arange(self.lens.width, dtype=np.float32)
        y = np.arange(self.lens.height, dtype=np.float32)[:, None]
        total = light.copy()
        for share in (0.5, 1.0):
            moved = (x + np.float32(share) * smear[0], y + np.float32(share) * smear[1])
            total += cv2.remap(light, *moved, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return total * np.float32(1 / 3)

    def _compress(self, image: np.ndarray) -> np.ndarray:
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        if not done:
            raise RuntimeError("OpenCV could not encode a JPEG")
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
