"""Render a tiny benchmark, train a tiny network on it and measure it, without the command line.

python examples/train_from_python.py --out tiny --method stcl
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import stcl
from stcl.twinstreets.export import ExportRequest, export


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, render, train, measure, report, use the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tiny"))
    parser.add_argument("--method", choices=stcl.list_methods(), default="stcl")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 64), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args(argv)
    data, run, size = options.out / "data", options.out / options.method, tuple(options.size)

    clean = ExportRequest("synthia-seq", "clean", clips=options.clips, frames=3, size=size)
    camera = ExportRequest("cityscapes-seq", "camera", seed=1, clips=options.clips, frames=5, size=size)
    unseen = ExportRequest("cityscapes-seq", "camera", seed=1, split="val", clips=options.clips, frames=2, size=size)
    for folder, request in (("source", clean), ("target", camera), ("target", unseen)):
        export(data / folder, request, progress=False)

    changes = {
        "source.root": data / "source",
        "target.root": data / "target",
        "source.size": list(size),
        "target.size": list(size),
        "flow.cache": data / "flow",
        "network.weights": "null",  # random ones: this network is smaller than the one that comes with the package
        "network.backbone_settings": "{width: 8}",
        "training.steps": options.steps,
        "training.workers": 0,
    }
    overrides = [f"--{key}={value}" for key, value in changes.items()]
    settings = stcl.load_settings(f"twinstreets/{options.method}", overrides)
    stcl.train(settings, run, quiet=True)
    results = stcl.evaluate(run, quiet=True)
    stcl.write_report([run], options.out / "report")
    network = stcl.load_model(run)
    weights = sum(parameter.numel() for parameter in network.parameters())
    print(f"{settings.title}: {results['miou']:.1f} % mIoU after {options.steps} steps with {weights:,} weights.")
    print(f"Page: {options.out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
