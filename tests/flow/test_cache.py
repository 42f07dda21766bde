import multiprocessing
import os
from dataclasses import dataclass, field

import numpy as np
import pytest

from stcl.errors import DataError, SettingError
from stcl.files.writing import write_atomic
from stcl.flow import CachedFlow, get_flow, precompute
from stcl.training.model_folder import digest


@dataclass
class Counting:
    """A provider that counts its calls."""

    signature: str = "counting(step=1)"
    calls: list = field(default_factory=list)

    def __call__(self, a, b, image_a, image_b):
        self.calls.append((a.name, b.name))
        return np.full((2, *image_a.shape[:2]), 1.0 / 3 + len(self.calls), np.float32)


@pytest.fixture
def cached(tmp_path):
    return CachedFlow(Counting(), tmp_path / "cache")


@pytest.mark.parametrize("compress", [True, False])
def test_computed_once_and_the_same_both_times(tmp_path, scene, compress):
    cached = CachedFlow(Counting(), tmp_path / "cache", compress)
    one, two = (cached(*scene.pair) for _ in range(2))
    assert len(cached.provider.calls) == 1
    assert np.array_equal(one, two)
    assert one.dtype == two.dtype == np.float32
    assert np.abs(one - 4 / 3).max() < 1e-3
    with np.load(cached.path(scene.a, scene.b)) as stored:
        assert stored["flow"].dtype == np.float16


def test_other_frames(cached, scene):
    cached(*scene.pair)
    changed = scene.image_b.copy()
    changed[5, 5, 1] ^= 1
    with pytest.raises(
        DataError, match=r"belongs to other frames \(digest of the pixels\): found \w+, expected \w+"
    ) as e:
        cached(scene.a, scene.b, scene.image_a, changed)
    assert str(cached.path(scene.a, scene.b)) in str(e.value)
    assert f"Delete the folder {cached.folder}" in str(e.value)


def test_a_full_disk_is_said_with_the_folder(cached, scene, monkeypatch):
    def write(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stcl.flow.cache.write_atomic", write)
    with pytest.raises(DataError, match=rf"^Cannot write flow to {cached.folder} \(No space left.*start again"):
        cached(*scene.pair)


def test_other_size(cached, scene):
    cached(*scene.pair)
    with pytest.raises(DataError, match="belongs to other image sizes: found 128x96, expected 64x96"):
        cached(scene.a, scene.b, scene.image_a[:, :64], scene.image_b[:, :64])


def test_other_settings(cached, scene):
    cached(*scene.pair)
    with pytest.raises(DataError, match=r"other flow settings: found counting\(step=1\), expected counting\(step=2\)"):
        CachedFlow(Counting("counting(step=2)"), cached.folder)(*scene.pair)


def test_other_format(cached, scene, monkeypatch):
    cached(*scene.pair)
    monkeypatch.setattr("stcl.flow.cache.VERSION", "0")
    with pytest.raises(DataError, match="other versions of the file format: found 1, expected 0"):
        cached(*scene.pair)


@pytest.mark.parametrize("damage", ["cut", "cut late", "empty", "foreign", "flipped"])
def test_damaged_file(cached, scene, damage):
    cached.provider = get_flow("dis")
    cached(*scene.pair)
    path = cached.path(scene.a, scene.b)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:500], "cut late": whole[:-9], "empty": b"", "foreign": b"hello", "flipped": bytes(content)}[
            damage
        ]
    )
    with pytest.raises(DataError, match=r"damaged or no flow cache file.*Delete it") as caught:
        cached(*scene.pair)
    assert str(path) in str(caught.value)


def test_foreign_npz(cached, scene):
    path = cached.path(scene.a, scene.b)
    path.parent.mkdir()
    np.savez(path, flow=np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match="no flow cache file"):
        cached(*scene.pair)


def test_several_processes_share_a_folder(cached, scene):
    cached.folder.mkdir()
    cached(*scene.pair)
    content = digest(cached.path(scene.a, scene.b))
    workers = [multiprocessing.Process(target=_write, args=(cached, scene)) for _ in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert digest(cached.path(scene.a, scene.b)) == content
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.name for path in cached.folder.iterdir()] == [cached.path(scene.a, scene.b).name]


def _write(cached, scene):
    """Write the file again and again, as if each time it had not been there."""
    path = cached.path(scene.a, scene.b)
    content = path.read_bytes()
    for _ in range(30):
        write_atomic(path, content)
        cached(*scene.pair)


class Clips:
    """What precompute needs of a ClipDataset: loading a clip asks for its flows."""

    def __init__(self, scene, flow):
        self.scene, self.flow = scene, flow

    def __len__(self):
        return 2

    def __getitem__(self, item):
        pair = (self.scene.a, self.scene.b), (self.scene.b, self.scene.a)
        return self.flow(*pair[item], self.scene.image_a, self.scene.image_b)


@pytest.mark.parametrize("workers", [0, 2])
def test_precompute_fills_the_cache(cached, scene, workers):
    clips = Clips(scene, cached)
    assert precompute(clips, workers=workers, progress=False) == 2
    assert precompute(clips, workers=workers, progress=False) == 0
    before = len(cached.provider.calls)
    assert clips[1].shape == (2, 96, 128)
    assert len(cached.provider.calls) == before


def test_what_is_there_is_told_without_reading_frames(cached, scene):
    for ref in (scene.a, scene.b):
        ref.image.parent.mkdir(parents=True, exist_ok=True)
        ref.image.write_bytes(b"no picture")
    assert not cached.holds(scene.a, scene.b, (128, 96))
    cached(*scene.pair)
    assert cached.holds(scene.a, scene.b, (128, 96)) and cached.holds(scene.a, scene.b, None)
    assert not cached.holds(scene.b, scene.a, (128, 96))
    assert (cached.written, len(cached.provider.calls)) == (1, 1)
    with pytest.raises(DataError, match="other image sizes: found 128x96, expected 64x48"):
        cached.holds(scene.a, scene.b, (64, 48))
    with pytest.raises(DataError, match="other flow settings"):
        CachedFlow(Counting("counting(step=2)"), cached.folder).holds(scene.a, scene.b, None)
    later = cached.path(scene.a, scene.b).stat().st_mtime + 5
    os.utime(scene.b.image, (later, later))  # rendered anew: the digest has to tell
    assert not cached.holds(scene.a, scene.b, (128, 96))
    cached.path(scene.a, scene.b).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        cached.holds(scene.a, scene.b, None)


def test_the_bar_shows_a_folder_as_it_is(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert precompute(Clips(scene, CachedFlow(Counting(), "[red]a[/b]"))) == 2
    assert "flow -> [red]a[/b] " in capsys.readouterr().err


def test_precompute_needs_a_cache(scene):
    with pytest.raises(SettingError, match="Give the flow a cache folder"):
        precompute(Clips(scene, Counting()))


@pytest.mark.parametrize("workers", [0, 1])
def test_precompute_passes_errors_on(cached, scene, workers):
    cached(*scene.pair)
    cached.path(scene.a, scene.b).write_bytes(b"")
    with pytest.raises(DataError, match=r"^Flow cache file .* is damaged"):
        precompute(Clips(scene, cached), workers=workers, progress=False)
