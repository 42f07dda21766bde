"""Every planted mistake is found with its number and its file, in every data set; nothing where all is well."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stcl.commands.check.domain import SAMPLE_FRAMES, Domain, DomainCheck, check_domain
from stcl.commands.check.findings import Finding
from stcl.data import DATASETS, ClipDataset, get_dataset
from stcl.data.io import write_image, write_label
from stcl.errors import DataError
from stcl.labels import get_space
from stcl.types import ClipSpec, FrameRef

SPACE = get_space("cityscapes")
PAIR = ClipSpec(frames=(0, -1), labels=(0,))
FLOW_PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0,))
SIZE = (48, 32)
every_dataset = pytest.mark.parametrize("name", DATASETS)


class EvenFlow:
    """The same motion ``(u, 0)`` everywhere, but for the frames of names that it has no file of."""

    def __init__(self, u: float = 0.0, missing: tuple[str, ...] = (), stored: bool = True):
        self.u, self.missing, self.calls = u, missing, 0
        if stored:
            self.source_path = "/flow/{}.npy".format  # what says that flow lies in files

    def __call__(self, a, b, image_a, image_b):
        self.calls += 1
        if a.name in self.missing:
            raise DataError(f"Flow file /flow/{a.name}.npy does not exist.")
        zero = np.zeros(image_a.shape[:2], np.float32)
        return np.stack([zero + np.float32(self.u), zero])


def check(
    name: str,
    root: Path,
    spec: ClipSpec = PAIR,
    size: tuple[int, int] | None = None,
    role: str = "source",
    full: bool = False,
    workers: int = 0,
    flow: EvenFlow | None = None,
    frames: str = "all",
) -> DomainCheck:
    dataset = get_dataset(name)(root)

    def opened(index: list[FrameRef]) -> ClipDataset:
        return ClipDataset(dataset, spec, SPACE, size, frames, flow, index=index)

    return check_domain(Domain(role, dataset, opened, bool(spec.labels), SPACE, 2), full, workers)


def only(found: DomainCheck, kind: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.kind == kind]
    return finding


def kinds(found: DomainCheck, severity: str = "problem") -> set[str]:
    return {finding.kind for finding in found.findings if finding.severity == severity}


@pytest.fixture
def labelled(write_tree) -> Callable[[str], tuple[Path, list[FrameRef]]]:
    """``labelled(name)``: a tiny tree and its frames that have labels."""

    def make(name: str, **sizes: int) -> tuple[Path, list[FrameRef]]:
        root = write_tree(name, **sizes)
        return root, [ref for ref in get_dataset(name)(root).index(with_labels=True) if ref.label]

    return make


# what is well


@every_dataset
def test_a_healthy_tree_is_described_and_has_no_problem(name, labelled):
    root, refs = labelled(name)
    found = check(name, root)
    assert kinds(found) == set()
    summary = found.summary
    index = get_dataset(name)(root).index(with_labels=True)
    assert (summary.sequences, summary.frames) == (len({ref.sequence for ref in index}), len(index))
    assert summary.labelled == len(refs)
    clips = ClipDataset(get_dataset(name)(root), PAIR, SPACE)
    assert summary.clips == len(clips)
    assert summary.sizes == {"48x32": summary.read_frames}
    truth = [clips.label(item) for item in range(len(clips))]
    assert summary.read_labels == len(truth)
    assert summary.pixels == {c: sum(int((label == i).sum()) for label in truth) for i, c in enumerate(SPACE.names)}
    assert summary.ignored == sum(int((label == 255).sum()) for label in truth)
    assert summary.shown_in == {c: sum((label == i).any() for label in truth) for i, c in enumerate(SPACE.names)}


@every_dataset
def test_without_labels_no_label_is_looked_for_or_opened(name, write_tree, monkeypatch):
    root = write_tree(name)
    monkeypatch.setattr(DATASETS[name], "find_labels", lambda self: pytest.fail("looked for labels"))
    monkeypatch.setattr("stcl.data.base.read_label", lambda *a: pytest.fail("opened a label"))
    found = check(name, root, PAIR.without_labels(), role="target")
    assert kinds(found) == set()
    assert (found.summary.labelled, found.summary.read_labels, found.summary.pixels) == (None, 0, None)


# what is wrong, one by one


def damage_frame(ref: FrameRef) -> Path:
    ref.image.write_bytes(ref.image.read_bytes()[:60])
    return ref.image


def damage_label(ref: FrameRef) -> Path:
    ref.label.write_bytes(ref.label.read_bytes()[:60])
    return ref.label


def remove_frame(ref: FrameRef) -> Path:
    ref.image.unlink()
    return ref.label


def second_frame(ref: FrameRef) -> Path:
    other = {".png": ".jpg", ".jpg": ".png"}[ref.image.suffix]
    shutil.copy(ref.image, ref.image.with_suffix(other))
    return ref.image.parent


def shrink_label(ref: FrameRef) -> Path:
    image = Image.open(ref.label)  # keeps a palette, which OpenCV would turn into colours
    if image.mode == "P":
        image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST).save(ref.label)
    else:
        raw = cv2.imread(str(ref.label), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(ref.label), raw[::2, ::2])
    return ref.label


@every_dataset
@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (damage_frame, "unreadable_frame"),
        (damage_label, "unreadable_label"),
        (remove_frame, "label_without_frame"),
        (second_frame, "second_file"),
        (shrink_label, "label_size"),
    ],
)
def test_one_mistake_is_found_with_its_file(name, labelled, plant, kind):
    root, refs = labelled(name)
    where = plant(refs[-1])
    found = check(name, root)
    assert kinds(found) == {kind}
    finding = only(found, kind)
    assert finding.count == len(finding.places) == 1
    assert finding.places[0].startswith(str(where))
    assert finding.advice


def test_all_mistakes_are_found_at_once(write_tree):
    root = write_tree("camvid", frames=6)
    train, annotations = root / "train", root / "trainannot"
    (train / "preview.jpg").write_bytes(b"")
    (annotations / "0000TP_f00030.png").unlink()
    (train / "0001TP_f00030.jpg").unlink()
    for number in (60, 90):
        damage = train / f"0000TP_f{number:05d}.jpg"
        damage.write_bytes(damage.read_bytes()[: 200 + number])
    (train / "0000TP_f00120.jpg").write_text("hello")
    for number, value in ((90, 77), (120, 77), (150, 200)):
        write_label(annotations / f"0001TP_f{number:05d}.png", np.full((32, 48), value, np.uint8))
    found = check("camvid", root)
    wanted = {"stray_name": 1, "frame_without_label": 1, "label_without_frame": 1, "unknown_id": 3}
    assert {finding.kind: finding.count for finding in found.findings if finding.kind in wanted} == wanted
    assert "77 (3072 px in 2 files), 200 (1536 px in 1 file)" in only(found, "unknown_id").what
    damaged = [finding for finding in found.findings if finding.kind == "unreadable_frame"]
    assert sorted(finding.count for finding in damaged) == [1, 2]  # two are cut off, one is no image
    assert only(found, "stray_name").places == (str(train / "preview.jpg"),)
    assert only(found, "frame_without_label").places == (str(train / "0000TP_f00030.jpg"),)


def test_frames_that_cannot_be_one_clip_or_one_batch(write_tree):
    root = write_tree("synthia_seq")
    frames = sorted(root.rglob("rgb/*.png"))
    write_image(frames[1], np.full((16, 48, 3), 99, np.uint8))
    write_label(frames[1].parents[1] / "label" / frames[1].name, np.zeros((16, 48, 3), np.uint16))
    found = check("synthia_seq", root, size=SIZE)
    assert kinds(found) == {"clip_sizes"}
    assert "48x32 (7), 48x16 (1)" in only(found, "mixed_sizes").what
    assert only(found, "mixed_sizes").places == (str(frames[1]),)
    assert kinds(check("synthia_seq", root)) == {"clip_sizes", "mixed_sizes"}  # without a size no batch can be made


def test_remarks(write_tree):
    root = write_tree("synthia_seq", frames=5)
    frames = sorted(root.rglob("rgb/*.png"))
    write_image(frames[0], np.full((32, 48, 3), 3, np.uint8))
    shutil.copy(frames[1], frames[2])
    for path in (frames[8], frames[8].parents[1] / "label" / frames[8].name):
        path.unlink()
    deep = np.random.default_rng(0).integers(0, 65535, (32, 48), dtype=np.uint16)
    write_label(frames[3], deep)
    found = check("synthia_seq", root, ClipSpec(frames=(0, -1, -2), labels=(0,)), size=(96, 32))
    assert kinds(found) == set()
    assert only(found, "dark_frame").places == (str(frames[0]),)
    assert only(found, "format").what.startswith("1 of 8 frames stored as 16-bit grey")
    assert only(found, "gap").places == (str(frames[9]),)
    assert only(found, "short_sequence").places == (str(frames[9]),)
    assert "2.00 times as wide" in only(found, "aspect").what
    assert "source.size to [96, 64]" in only(found, "aspect").advice
    repeated = only(found, "repeated_frame")
    assert str(frames[2]) in repeated.places


def test_classes_that_are_missing_or_rare(write_tree):
    root = write_tree("camvid", frames=8)
    labels = sorted((root / "trainannot").iterdir())
    for path in labels:
        write_label(path, np.full((32, 48), 3, np.uint8))  # road
    raw = np.full((32, 48), 3, np.uint8)
    raw[0, 0] = 8
    write_label(labels[5], raw)
    found = check("camvid", root)
    absent = only(found, "absent_class").what
    assert "sky" in absent
    assert "terrain (the data set has no such class)" in absent
    assert "road" not in absent
    assert only(found, "rare_class").what.endswith("car (0.0047% in 1 label).")
    for path in labels:
        write_label(path, np.full((32, 48), 11, np.uint8))
    assert kinds(check("camvid", root)) == {"no_class"}


# own data


@pytest.mark.parametrize(
    ("plant", "what", "advice"),
    [
        (lambda root: (root / "masks/drive 0/a 1.jpg").write_bytes(b""), "is no PNG", "'Own data'"),
        (lambda root: (root / "classes.yaml").write_text("0: ignore"), "gives no value a class", "'Own data'"),
        (lambda root: (root / "classes.yaml").write_text("1: raod"), "Did you mean 'road'", "Correct the class map"),
        (lambda root: (root / "classes.yaml").write_text("1: road"), "Labels hold ids", "classes.yaml as 'ignore'."),
        (lambda root: shutil.rmtree(root / "masks"), "there is no folder 'masks' beside 'images' in", "'Own data'"),
    ],
)
def test_each_mistake_of_own_data_has_advice_that_helps(write_tree, plant, what, advice):
    root = write_tree("folder")
    plant(root)
    found = next(finding for finding in check("folder", root).findings if finding.severity == "problem")
    assert what in found.what
    assert advice in found.advice


# roots and sequences


@every_dataset
def test_nothing_there(name, tmp_path):
    found = check(name, tmp_path)
    assert kinds(found) == {"layout"}
    assert DATASETS[name].layout in only(found, "layout").what


@every_dataset
def test_a_missing_label_folder_does_not_hide_the_frames(name, labelled):
    root, refs = labelled(name)
    for folder in {ref.label.parent for ref in refs}:
        shutil.rmtree(folder)
    damage_frame(refs[-1])
    found = check(name, root)
    missing = {"layout", "frame_without_label"} & kinds(found)
    assert missing
    assert ("no_clip" in kinds(found)) == (missing == {"frame_without_label"})  # else the labels are all that is wrong
    assert found.summary.frames == 8
    assert only(found, "unreadable_frame").places == (str(refs[-1].image),)


def test_no_clip_fits(write_tree):
    found = check("synthia_seq", write_tree("synthia_seq"), ClipSpec(frames=(0, -9), labels=(0,)))
    assert kinds(found) == {"no_clip"}
    assert "the longest of 4" in only(found, "no_clip").what
    assert found.summary.read_frames == 8


# flow


def test_flow_files_are_all_asked_for_and_estimates_are_few(write_tree):
    root = write_tree("synthia_seq", frames=12)
    flow = EvenFlow(missing=("SEQS-00_000003", "SEQS-01_000007"))
    found = check("synthia_seq", root, FLOW_PAIR, flow=flow)
    assert kinds(found) == {"flow"}
    assert [Path(place).name for place in only(found, "flow").places] == ["000003.png", "000007.png"]
    assert (found.summary.flows, found.summary.stored_flows, flow.calls) == (22, 22, 22)
    assert found.summary.flow_difference == pytest.approx(found.summary.still_difference)
    estimated = check("synthia_seq", root, FLOW_PAIR, flow=EvenFlow(stored=False)).summary
    assert (estimated.flows, estimated.stored_flows) == (8, 0)


def test_a_frame_that_cannot_be_read_is_not_told_again_as_flow(write_tree):
    root = write_tree("synthia_seq")
    damage_frame(DATASETS["synthia_seq"](root).index(with_labels=False)[1])
    assert kinds(check("synthia_seq", root, FLOW_PAIR, flow=EvenFlow())) == {"unreadable_frame"}


def test_flow_that_explains_less_than_none(write_tree):
    root = write_tree("synthia_seq")
    for sequence in root.iterdir():
        for number, path in enumerate(sorted((sequence / "rgb").iterdir())):
            ramp = np.arange(48) * 4 + 8 * number  # brighter by 8 to the right every 2 px, and moving 2 px to the left
            write_image(path, np.broadcast_to(ramp[None, :, None], (32, 48, 3)).astype(np.uint8))
    right = check("synthia_seq", root, FLOW_PAIR, flow=EvenFlow(2.0))
    assert right.summary.flow_difference == pytest.approx(0, abs=1e-6)
    assert right.summary.still_difference == pytest.approx(8 / 255, rel=1e-4)
    assert not [finding for finding in right.findings if finding.kind == "flow_misfit"]
    wrong = only(check("synthia_seq", root, FLOW_PAIR, flow=EvenFlow(-2.0)), "flow_misfit")
    assert (wrong.severity, wrong.count) == ("remark", 6)


# samples


def test_a_sample_is_the_same_each_time_and_all_is_all(write_tree):
    root = write_tree("camvid", sequences=1, frames=SAMPLE_FRAMES + 60, size=(8, 8))
    first, second = check("camvid", root), check("camvid", root)
    names = [facts.ref.name for facts in first.read]
    assert names == [facts.ref.name for facts in second.read]
    assert SAMPLE_FRAMES // 2 <= len(names) <= SAMPLE_FRAMES
    whole = check("camvid", root, full=True)
    assert len(whole.read) == SAMPLE_FRAMES + 60
    unread = next(facts.ref for facts in whole.read if facts.ref.name not in names)
    damage_frame(unread)
    assert kinds(check("camvid", root)) == set()
    for workers in (0, 2):
        found = check("camvid", root, full=True, workers=workers)
        assert kinds(found) == {"unreadable_frame"}
        assert only(found, "unreadable_frame").places == (str(unread.image),)
        assert found.summary.pixels == whole.summary.pixels


def test_what_a_data_set_refuses_beyond_its_listing_is_told(write_tree, monkeypatch):
    def refuse(self, with_labels):
        raise DataError("Two frames would both be frame 'x'.")

    monkeypatch.setattr(DATASETS["camvid"], "index", refuse)
    assert only(check("camvid", write_tree("camvid")), "layout").what == "Two frames would both be frame 'x'."
