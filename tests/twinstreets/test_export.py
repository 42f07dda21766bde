import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stcl.data import ClipDataset, get_dataset
from stcl.errors import DataError, SettingError
from stcl.files.names import neighbour
from stcl.files.pictures import read_flow_png
from stcl.flow import get_flow, precompute
from stcl.labels import IGNORE, RAW_IDS, get_space, raw_ids_of
from stcl.ops.warp import warp
from stcl.twinstreets import SPACE_NAME, STYLE_NAMES, VERSION, StreetClip, get_style
from stcl.twinstreets.export import ExportRequest, export
from stcl.twinstreets.layouts import LAYOUTS
from stcl.types import ClipSpec

SPACE = get_space(SPACE_NAME)
SIZE = (64, 40)
SMALL = ExportRequest("synthia-seq", STYLE_NAMES[0], clips=2, frames=3, size=SIZE, flow_offsets=(1, 2))


def run(root: Path, request: ExportRequest, workers: int = 1) -> Path:
    export(root, request, workers=workers, progress=False)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def street(request: ExportRequest, clip: int) -> StreetClip:
    style = get_style(request.style, request.style_seed)
    return StreetClip(style, request.clip_seed(clip), request.size, request.rendered[-1] + 1)


@pytest.fixture(scope="module")
def synthia(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("synthia") / "out", SMALL)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("cityscapes") / "out", replace(SMALL, layout="cityscapes-seq", split="val"))


def test_synthia_tree(synthia):
    flows = ["000001_to_000000", "000002_to_000000", "000002_to_000001"]
    wanted = ["twinstreets_train.json"]
    for clip in ("clip_0000", "clip_0001"):
        wanted += [f"exact_flow/{clip}/rgb/{flow}.png" for flow in flows]
        wanted += [f"{clip}/{kind}/{frame:06d}.png" for kind in ("label", "rgb") for frame in range(3)]
    assert sorted(tree(synthia)) == sorted(wanted)


def test_synthia_label_files_are_as_published(synthia):
    stored = cv2.imread(str(synthia / "clip_0000/label/000000.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored.shape == (40, 64, 3)
    label = street(SMALL, 0).render(0).label
    assert np.array_equal(stored[..., 2], raw_ids_of("synthia_seq", SPACE)[label])  # red comes last in OpenCV
    things = np.isin(label, [SPACE.index(name) for name in ("person", "rider", "car")])
    assert np.array_equal(stored[..., 1] > 0, things)


def test_cityscapes_tree(cityscapes):
    names = [f"val/twinstreets/twinstreets_{clip:06d}_{frame:06d}" for clip in range(2) for frame in (17, 18, 19)]
    wanted = [f"leftImg8bit_sequence/{name}_leftImg8bit.png" for name in names]
    wanted += [f"gtFine/{name}_gtFine_labelIds.png" for name in names if name.endswith("19")]
    found = [name for name in tree(cityscapes) if not name.startswith("exact_flow")]
    assert sorted(found) == sorted([*wanted, "twinstreets_val.json"])
    assert cv2.imread(str(cityscapes / wanted[-1]), cv2.IMREAD_UNCHANGED).dtype == np.uint8


def test_viper_tree(tmp_path):
    request = replace(SMALL, layout="viper", frames=2, clips=1, flow_offsets=())
    root = run(tmp_path / "out", request)
    wanted = [
        f"train/{kind}/000/000_0000{frame}{end}" for kind, end in (("img", ".jpg"), ("cls", ".png")) for frame in (0, 1)
    ]
    assert sorted(tree(root)) == sorted([*wanted, "twinstreets_train.json"])
    rendered = street(request, 0).render(1)
    stored = cv2.imread(str(root / wanted[3]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored, raw_ids_of("viper", SPACE)[rendered.label])
    image = cv2.imread(str(root / wanted[1]))[..., ::-1]
    assert np.abs(image.astype(int) - rendered.image).mean() < 8
    viper = get_space("viper-cityscapes_seq")
    assert (
        viper.lookup_table(RAW_IDS["viper"])[stored][rendered.label == SPACE.index("rider")] == viper.index("person")
    ).all()


@pytest.mark.parametrize("layout", ["synthia", "cityscapes"])
def test_the_data_set_reads_what_was_rendered(layout, request):
    root = request.getfixturevalue(layout)
    asked = SMALL if layout == "synthia" else replace(SMALL, layout="cityscapes-seq", split="val")
    dataset = get_dataset(f"{layout}_seq")(root, asked.split)
    spec = ClipSpec((0, -1, -2), ((0, -1), (-1, -2), (0, -2)), (0,))
    clips = ClipDataset(dataset, spec, SPACE, flow=get_flow("exact"))
    assert len(clips) == 2
    for number in range(2):
        clip, truth = clips[number], street(asked, number)
        last = asked.rendered[-1]
        for offset in spec.frames:
            image = truth.render(last + offset).image
            assert np.array_equal(clip.frame(offset).permute(1, 2, 0).numpy(), image)
        assert np.array_equal(clip.label(0).numpy(), truth.render(last).label)
        for a, b in spec.flows:
            flow, occluded = truth.flow(last + a, last + b)
            close = np.abs(clip.flow(a, b).numpy() - flow) <= 0.5 / 64 + 1e-3
            assert close[:, ~occluded].all()


def test_exact_flow_aligns_and_knows_what_is_hidden(synthia):
    clips = ClipDataset(
        get_dataset("synthia_seq")(synthia), ClipSpec((0, -1), ((0, -1),), (0, -1)), SPACE, flow=get_flow("exact")
    )
    clip = clips[0]
    _, valid = read_flow_png(synthia / "exact_flow/clip_0000/rgb/000001_to_000000.png")
    before = clip.label(-1)[None, None].float()
    moved = warp(before, clip.flow(0, -1)[None], mode="nearest")[0, 0]
    agreement = (moved == clip.label(0))[torch.from_numpy(valid)].float().mean()
    assert valid.mean() > 0.5
    assert agreement > 0.95


def test_exact_flow_at_another_resolution(synthia):
    spec = ClipSpec((0, -1), ((0, -1),))
    dataset = get_dataset("synthia_seq")(synthia)
    whole, small = (
        ClipDataset(dataset, spec, SPACE, size, flow=get_flow("exact"))[0].flow(0, -1) for size in (None, (32, 10))
    )
    assert small.shape == (2, 10, 32)
    for axis, ratio in ((0, 0.5), (1, 0.25)):
        assert abs(small[axis].median() - whole[axis].median() * ratio) < 0.1


@pytest.mark.parametrize("workers", [0, 2])
def test_flow_of_a_rendered_tree_is_precomputed(synthia, tmp_path, workers):
    spec = ClipSpec((0, -1, -2), ((0, -1), (-1, -2)))
    flow = get_flow("dis", cache=tmp_path / "cache")
    clips = ClipDataset(get_dataset("synthia_seq")(synthia), spec, SPACE, flow=flow)
    assert precompute(clips, workers=workers, progress=False) == 4  # two clips of two pairs
    fresh = ClipDataset(clips.dataset, spec, SPACE, flow=get_flow("dis"))
    assert (clips[1].flow(-1, -2) - fresh[1].flow(-1, -2)).abs().max() < 0.02


def test_labelled_frames_are_found_without_labels(cityscapes):
    dataset = get_dataset("cityscapes_seq")(cityscapes, "val")
    assert [ref.number for ref in dataset.benchmark_frames(dataset.index(with_labels=False))] == [19, 19]


@pytest.mark.parametrize(("frames", "rendered"), [(6, (14, 19)), (20, (0, 19)), (30, (0, 29))])
def test_cityscapes_frames_end_at_the_label(frames, rendered):
    request = replace(SMALL, layout="cityscapes-seq", frames=frames)
    assert (request.rendered[0], request.rendered[-1]) == rendered
    assert [frame for frame in request.rendered if request.labelled(frame)] == [19]


def test_every_frame_labelled_on_request(tmp_path):
    request = replace(SMALL, layout="cityscapes-seq", clips=1, frames=2, label_every=1, flow_offsets=())
    dataset = get_dataset("cityscapes_seq")(run(tmp_path / "out", request))
    assert [ref.label is not None for ref in dataset.index(with_labels=True)] == [True, True]


def test_manifest_records_the_request(synthia):
    stored = json.loads((synthia / "twinstreets_train.json").read_text())
    assert stored == SMALL.to_json()
    assert stored["version"] == VERSION
    assert stored["size"] == [64, 40]


def test_clip_seeds_never_meet():
    seeds = {
        replace(SMALL, seed=seed, split=split).clip_seed(clip)
        for seed in range(4)
        for split in ("train", "val", "test", "train1")
        for clip in range(200)
    }
    assert len(seeds) == 4 * 4 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert SMALL.clip_seed(0) == 5788049690446620163  # a changed rule would change every benchmark


def test_workers_change_nothing(synthia, tmp_path):
    assert tree(run(tmp_path / "out", SMALL, workers=2)) == tree(synthia)


def test_second_run_does_nothing(synthia, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in synthia.rglob("*")}
    monkeypatch.setattr("stcl.twinstreets.export.StreetClip", lambda *a, **k: pytest.fail("rendered again"))
    result = export(synthia, SMALL)
    assert result.frames == 0
    assert "complete, nothing to do" in " ".join(capsys.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in synthia.rglob("*")} == before


def test_interrupted_export_is_completed(synthia, tmp_path, monkeypatch):
    root = tmp_path / "out"
    real, made = StreetClip.render, []

    def stops(self, index):
        made.append(index)
        if len(made) == 5:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(StreetClip, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        run(root, SMALL)
    assert (root / "twinstreets_train.partial").exists()
    assert not (root / "twinstreets_train.json").exists()
    monkeypatch.setattr(StreetClip, "render", real)
    neighbour(root / "clip_0001/rgb/000001.png").write_bytes(b"half")  # killed while it wrote one
    result = export(root, SMALL, progress=False)
    assert result.frames == 3  # the first clip was whole
    assert tree(root) == tree(synthia)


def test_lost_file_is_rendered_again(synthia, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(synthia, root)
    (root / "clip_0001/rgb/000001.png").unlink()
    assert export(root, SMALL, progress=False).frames == 3
    assert tree(root) == tree(synthia)


@pytest.mark.parametrize("ending", ["json", "partial"])
def test_other_settings_are_refused(synthia, tmp_path, ending):
    root = tmp_path / "out"
    shutil.copytree(synthia, root)
    (root / "twinstreets_train.json").rename(root / f"twinstreets_train.{ending}")
    before = tree(root)
    with pytest.raises(DataError, match=rf"\.{ending} there records .* \(seed 0 -> 1, clips 2 -> 5\)"):
        export(root, replace(SMALL, seed=1, clips=5), progress=False)
    assert tree(root) == before


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("important")
    with pytest.raises(DataError, match=r"holds .*thesis.tex, .* Give an empty folder"):
        export(tmp_path / "out", SMALL, progress=False)
    with pytest.raises(DataError, match="it is a file"):
        export(tmp_path / "out/thesis.tex", SMALL, progress=False)
    assert list(tree(tmp_path / "out")) == ["thesis.tex"]


def test_of_two_processes_into_one_folder_the_second_is_told(tmp_path, monkeypatch):
    real = StreetClip.render

    def meanwhile(self, index):
        with pytest.raises(SettingError, match=r"Another process is rendering split 'train' into .*out right now"):
            export(tmp_path / "out", SMALL, progress=False)
        return real(self, index)

    monkeypatch.setattr(StreetClip, "render", meanwhile)
    run(tmp_path / "out", replace(SMALL, clips=1))
    assert not list((tmp_path / "out").rglob(".*"))


def test_damaged_record_is_named(synthia, tmp_path):
    shutil.copytree(synthia, tmp_path / "out")
    (tmp_path / "out/twinstreets_train.json").write_text("{")
    with pytest.raises(DataError, match=r"twinstreets_train.json is damaged"):
        export(tmp_path / "out", SMALL, progress=False)


def test_splits_share_a_root_only_where_the_layout_has_folders(synthia, tmp_path):
    with pytest.raises(DataError, match="belongs to no export of split 'val'"):
        export(synthia, replace(SMALL, split="val"), progress=False)
    for split in ("train", "val"):
        run(tmp_path, replace(SMALL, layout="cityscapes-seq", split=split, clips=1, frames=1, flow_offsets=()))
    images = [
        next((tmp_path / f"leftImg8bit_sequence/{split}").rglob("*.png")).read_bytes() for split in ("train", "val")
    ]
    assert images[0] != images[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": "viper-seq"}, "Unknown export layout 'viper-seq'. Did you mean 'viper'"),
        ({"style": "photo"}, "photo"),
        ({"clips": 0}, "at least 1 clip"),
        ({"frames": 0}, "at least 1 clip"),
        ({"split": "a/b"}, "use letters, digits"),
        ({"label_every": 2}, "label_every"),
        ({"flow_offsets": (0,)}, "at least 1, found"),
        ({"size": (1280, 760)}, "cropped by the data set"),
        ({"layout": "cityscapes-seq", "first_frame": 0}, "labels frame 19, but frames 0 to 2"),
    ],
)
def test_wrong_requests(wrong, message):
    with pytest.raises(SettingError, match=message):
        replace(SMALL, **wrong)


def test_every_layout_belongs_to_a_data_set():
    for layout in LAYOUTS.values():
        assert layout.dataset in RAW_IDS
        assert layout.encode_ids(np.array([[0, IGNORE]], np.uint8), SPACE).shape[:2] == (1, 2)
