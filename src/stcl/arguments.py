"""What single words on the command line stand for: ``type=`` of argparse."""

import argparse


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels: ``640x480`` -> (640, 480)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, found '{text}'")
    return int(width), int(height)


def shard(text: str) -> tuple[int, int]:
    """``2/4`` -> (2, 4)."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 2/4, found '{text}'")
    return int(number), int(total)


def count(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, found '{text}'")
    return int(text)
