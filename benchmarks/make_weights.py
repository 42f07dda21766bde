"""Put a run's weights into one small file, as the package carries them; `make weights` ends with this.

python benchmarks/make_weights.py runs/pretrain src/stcl/weights/small.safetensors

Trainable weights become float16; the statistics of batch norm keep float32, since variances may be large; counters stay
as they are. The metadata of the run's file (classes, config, selection) goes along.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from stcl.errors import StclError
from stcl.files.writing import write_atomic
from stcl.models.weights.own import read_weights
from stcl.training.run_folder import RunFolder

STATISTICS = ("running_mean", "running_var")


def shrink(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the package carries them."""
    return {
        name: tensor.half() if tensor.is_floating_point() and not name.endswith(STATISTICS) else tensor
        for name, tensor in tensors.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Read a finished run's weights and write the small file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished training")
    parser.add_argument("out", type=Path, metavar="FILE", help="the .safetensors file to write")
    options = parser.parse_args(argv)
    try:
        tensors, metadata = read_weights(RunFolder(options.run).weights)
    except StclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    small = shrink(tensors)
    damaged = [
        name for name, tensor in small.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if damaged:
        print(f"error: {damaged[0]} has values that are not finite in float16.", file=sys.stderr)
        return 2
    write_atomic(options.out, save(small, metadata=metadata))
    print(f"{options.out}: {len(small)} tensors, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
