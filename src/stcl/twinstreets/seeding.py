"""Random numbers that depend on names and seeds only, never on what was drawn before."""

import zlib

import numpy as np

from stcl.errors import SettingError

VERSION = "twinstreets-v1"


def generator(*keys: int | str) -> np.random.Generator:
    """A NumPy generator seeded by the version and `keys`; words count through their CRC-32."""
    words = [zlib.crc32(VERSION.encode()), len(keys)]  # the length keeps (1,) and (1, 0) apart
    for key in keys:
        if isinstance(key, str):
            words.append(zlib.crc32(key.encode()))
        elif int(key) != key or key < 0:
            raise SettingError(f"a TwinStreets seed is a whole number from 0 up, found {key!r}")
        else:
            words.append(int(key))
    return np.random.default_rng(np.random.SeedSequence(words))
