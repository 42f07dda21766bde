from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stcl.commands.demo import film as video
from stcl.commands.demo.film import matching_names, write_panes
from stcl.errors import DataError, SettingError
from stcl.labels import get_space

CLASSES = get_space("synthia_seq-cityscapes_seq").names


def decode(path: Path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream


def test_panes(four_runs: list[Path], tmp_path: Path) -> None:
    samples = four_runs[0] / "samples"
    panes = {
        "Frame": samples / "frame",
        "Truth": samples / "truth",
        "Source only": samples / "prediction",
        "STCL": four_runs[2] / "samples" / "prediction",
    }
    out = write_panes(tmp_path / "panes.mp4", panes, CLASSES, fps=8, scale=2)
    frames, stream = decode(out)
    assert len(frames) == 6
    assert stream.average_rate == 8
    rows, columns = 2 * (96 * 2 + video.TITLE_PX), 2 * 192 * 2 + 3 * video.GAP_PX
    assert stream.width == columns
    assert stream.height > rows + video.LEGEND_LINE_PX  # and the legend
    left, top = video.GAP_PX + 384 + video.GAP_PX, video.TITLE_PX
    sky = frames[0][top + 6, left + 200].astype(int)
    assert np.abs(sky - np.array((70, 130, 180))).max() < 8  # the truth pane shows sky in its colour


def test_default_scale_is_whole_numbered(four_runs: list[Path], tmp_path: Path) -> None:
    out = write_panes(tmp_path / "one.mp4", {"Truth": four_runs[0] / "samples" / "truth"}, CLASSES)
    _, stream = decode(out)
    assert stream.width == 192 * 3 + 2 * video.GAP_PX


def test_panes_must_match(four_runs: list[Path], tmp_path: Path, make_run: Callable[..., Path]) -> None:
    truth = four_runs[0] / "samples" / "truth"
    other = make_run(frames=5) / "samples" / "prediction"
    with pytest.raises(DataError, match=r"\(6 files.*\(5 files.*'street_005.png'"):
        write_panes(tmp_path / "film.mp4", {"Truth": truth, "Other": other}, CLASSES)
    with pytest.raises(DataError, match="no PNG file"):
        write_panes(tmp_path / "film.mp4", {"Truth": tmp_path / "nowhere"}, CLASSES)
    with pytest.raises(SettingError, match="at least one pane"):
        write_panes(tmp_path / "film.mp4", {}, CLASSES)
    Image.new("L", (50, 50)).save(other / "street_001.png")
    with pytest.raises(DataError, match="another aspect ratio"):
        write_panes(tmp_path / "film.mp4", {"Other": other}, CLASSES)
    (other / "street_001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="is neither a PNG nor a JPEG picture"):
        write_panes(tmp_path / "film.mp4", {"Other": other}, CLASSES)
    assert not (tmp_path / "film.mp4").exists()


def test_names_are_in_counting_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("L", (4, 4)).save(tmp_path / f"frame_{number}.png")
    assert matching_names({"Pane": tmp_path}) == ["frame_1.png", "frame_9.png", "frame_10.png"]
