"""Every example runs, at a tiny size."""

import json
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from PIL import Image

from scripts import EXAMPLES, ROOT, scripts_of

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """``example(name)`` imports a script."""
    with scripts_of(EXAMPLES) as load:
        yield load


@pytest.mark.parametrize("name", SCRIPTS)
def test_short_and_tested(name):
    lines = (EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()
    assert len(lines) < 60
    assert f"test_{name}" in globals()


def test_render_a_street(example, tmp_path, capsys):
    out = tmp_path / "pictures" / "sheet.png"
    example("render_a_street").main(["--seeds", "0", "1", "--columns", "3", "--size", "64", "32", "--out", str(out)])
    assert "2 streets" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (192, 64)
        assert (128, 64, 128) in {color for _, color in sheet.convert("RGB").getcolors(1 << 16)}  # road


def test_warp_labels(example, capsys):
    example("warp_labels").main(["--streets", "1", "--size", "128", "64"])
    agreement = {line[:10].strip(): float(line[10:].split()[0]) for line in capsys.readouterr().out.splitlines()}
    assert agreement["exact flow"] >= 99.5
    assert agreement["exact flow"] >= agreement["DIS flow"] > 90


def test_train_from_python(example, tmp_path, capsys):
    arguments = ["--clips", "2", "--steps", "2", "--size", "64", "32", "--out", str(tmp_path / "tiny")]
    example("train_from_python").main(arguments)
    assert "STCL:" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "report" / "report.html").is_file()
    # docs/protocol.md describes each file of a run and each key of a result
    protocol = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    results = json.loads((tmp_path / "tiny" / "stcl" / "results.json").read_text("utf-8"))
    files = {path.name for path in (tmp_path / "tiny" / "stcl").iterdir()}
    assert {"config.yaml", "results.json"} <= files
    assert not [name for name in {*files, *results} if f"`{name}`" not in protocol and f"`{name}/" not in protocol]
