"""How long the command takes to answer: whole processes, from start to exit.

python benchmarks/startup.py [--rounds 5]

Medians of processes that take turns. ``python`` is a bare interpreter that does nothing, the floor under the others;
``print_config`` is the first that imports torch and Lightning, since it checks the settings against the methods.

Prints one line of JSON: ``{"python": seconds, "import": .., "help": .., "train_help": .., "print_config": ..,
"machine": ..}`` for ``python -c pass``, ``python -c 'import stcl'``, ``stcl --help``, ``stcl train --help`` and
``stcl train twinstreets/stcl --print-config``.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from measure import finish_line, machine, median_seconds

STCL = ["-m", "stcl.cli"]  # the installed command's script does the same import and call
COMMANDS = {
    "python": ["-c", "pass"],
    "import": ["-c", "import stcl"],
    "help": [*STCL, "--help"],
    "train_help": [*STCL, "train", "--help"],
    "print_config": [*STCL, "train", "twinstreets/stcl", "--print-config"],
}


def run(arguments: Sequence[str]) -> None:
    """One process of this interpreter, which must end well."""
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all commands, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    options = parser.parse_args(argv)
    seconds = median_seconds({name: lambda name=name: run(COMMANDS[name]) for name in options.commands}, options.rounds)
    return finish_line({**{name: round(value, 3) for name, value in seconds.items()}, "machine": machine()})


if __name__ == "__main__":
    raise SystemExit(main())
