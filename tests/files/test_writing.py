"""Files that somebody reads later are written whole or not at all: by one function, at every length of the disk."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stcl.data.io import write_image, write_label, write_palette
from stcl.files.writing import write_atomic
from stcl.models import save_weights
from stcl.pages.film import VideoWriter
from stcl.training.logs import MetricsFile

PACKAGE = Path(__file__).parents[2] / "src" / "stcl"

WRITES = {"write_text", "write_bytes", "touch", "imwrite", "tofile", "savez", "savez_compressed", "savetxt"}
WRITES |= {"save", "dump", "save_file", "savefig", "to_csv", "to_parquet", "write_table", "memmap", "mkstemp"}
WRITES |= {"copy2", "copyfile", "copytree", "NamedTemporaryFile", "TemporaryDirectory"}
"""Names of functions and methods that write a file, or may."""

OPENS = {"open", "fdopen", "ZipFile", "VideoWriter"}
"""Those that write if their mode says so."""

ALLOWED = {
    "stcl.files.writing.write_atomic: temporary.open": "the one place",
    "stcl.pages.film.VideoWriter._open: av.open": "a film, renamed when it is whole",
    "stcl.pages.film._whole: av.open": "a film, renamed when it is whole",
    "stcl.pages.film.find_encoder: av.codec.Codec": "no file: looks an encoder up",
    "stcl.files.folders._locked: path.open": "a lock, which holds nothing",
    "stcl.data.segments._write: path.open": "in a folder that gets its name when it is whole",
    "stcl.commands.hub.run._copy: shutil.copyfile": "likewise, and compared with its digest",
    "stcl.commands.hub.run.pull: tempfile.TemporaryDirectory": "for a download",
    "stcl.training.logs.MetricsFile.log_metrics: self.path.open": "a row more; who reads leaves out half a one",
    "stcl.commands.predict.folder.PredictionFolder.claim_picture: (self.parts / JOURNAL).open": (
        "a line more; who reads leaves out half a one"
    ),
    "stcl.commands.arena.run.Child.__init__: self.log.open": "what a sub-process says, for people",
    "stcl.commands.arena.run._write: write_table": "a function of this package",
    "stcl.training.checkpoint.write_checkpoint: torch.save": "into memory",
    "stcl.commands.export.graph.to_torch_export: torch.export.save": "into memory",
    "stcl.models.weights.own.save_weights: save": "into memory",
    "stcl.data.io.write_palette: image.save": "into memory",
    "stcl.flow.cache.CachedFlow._encode: zipfile.ZipFile": "into memory",
    "stcl.flow.cache.CachedFlow._encode: archive.open": "into memory",
    "stcl.commands.flow.page.colour_wheel: picture.save": "into memory",
    "stcl.pages.pictures.frame_uri: _narrow(image, width_px, Image.Resampling.LANCZOS).save": "into memory",
    "stcl.pages.pictures.label_uri: image.save": "into memory",
    "stcl.commands.predict.recording.Recording._write_shares: arrow.parquet.write_table": "into memory",
}
"""Other ways of writing, and why each of them may be."""


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def may_write(call: ast.Call) -> bool:
    """Whether a call looks like one that writes a file."""
    name = name_of(call.func)
    if name in OPENS or name == "Codec":
        modes = [
            node.value
            for node in [*call.args[:2], *(key.value for key in call.keywords if key.arg == "mode")]
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "self":
        return False  # a method of this package
    return name in WRITES and bool(call.args or call.keywords)  # settings.dump() is a text


def writers(tree: ast.Module, module: str) -> Iterator[str]:
    """``module.Class.function: what.it.calls`` for every call that may write."""

    def visit(node: ast.AST, place: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = f"{place}.{child.name}" if isinstance(child, ast.FunctionDef | ast.ClassDef) else place
            if isinstance(child, ast.Call) and may_write(child):
                yield f"{place}: {ast.unparse(child.func)}"
            yield from visit(child, inner)

    yield from visit(tree, module)


def test_there_is_one_way_to_write_a_file():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found |= {*writers(ast.parse(path.read_text("utf-8")), module)}
    new = "\n".join(sorted(found - ALLOWED.keys()))
    assert found <= ALLOWED.keys(), f"Use stcl.files.writing.write_atomic, or say here why not:\n{new}"
    assert found == {*ALLOWED}, "No longer there: take it off the list."


@pytest.mark.parametrize(
    ("line", "writes"),
    [
        ("path.write_text('a')", True),
        ("path.touch(exist_ok=True)", True),
        ("open(path, 'w')", True),
        ("open(path, mode='r+')", True),
        ("path.open('xb')", True),
        ("np.savez(path, a=1)", True),
        ("cv2.imwrite('a.png', a)", True),
        ("json.dump(a, file)", True),
        ("figure.savefig(path)", True),
        ("open(path)", False),
        ("path.open('rb')", False),
        ("path.open(encoding='utf-8')", False),
        ("json.dumps(a)", False),
        ("settings.dump()", False),
        ("av.open('wax')", True),  # to be on the safe side
    ],
)
def test_what_counts_as_writing(line, writes):
    assert bool([*writers(ast.parse(line), "m")]) == writes


def write_film(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    with VideoWriter(path, fps=10) as film:
        for frame in noise:
            film.write(frame)


PICTURE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.bin": lambda path: write_atomic(path, b"x" * 1000),
    "durable.bin": lambda path: write_atomic(path, b"x" * 1000, durable=True),
    "a.png": lambda path: write_image(path, PICTURE),
    "label.png": lambda path: write_label(path, PICTURE),
    "palette.png": lambda path: write_palette(path, PICTURE[..., 0], PICTURE.repeat(11, 0)[:256, 0]),
    "a.safetensors": lambda path: save_weights(torch.nn.Linear(30, 30), path),
    "film.mp4": write_film,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_as_it_was(name, tmp_path, room_for):
    path, write = tmp_path / name, WRITERS[name]
    write(path)
    length = path.stat().st_size
    path.write_bytes(b"before")
    for room in (0, 1, length // 2, length - 1):
        with pytest.raises(OSError, match="File too large") as caught, room_for(room):
            write(path)
        assert caught.value.filename == str(path) or name == "film.mp4"
        assert path.read_bytes() == b"before" and [*tmp_path.iterdir()] == [path]
    with room_for(length):
        write(path)
    assert path.stat().st_size == length


def test_a_row_that_was_cut_off_is_no_row(tmp_path, room_for):
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(OSError, match="File too large"), room_for(path.stat().st_size + 2):
        log.log_metrics({"loss": 2.0}, 25)
    again = MetricsFile(path, start_step=2)
    again.log_metrics({"loss": 3.0}, 2)
    assert path.read_text().split() == ["step,loss", "1,1", "2,3"]
