"""Published checkpoints: the numbers are those of the published networks, and whatever wraps a state is seen through.

``published.safetensors`` holds what the published code computed: the ACCEL DeepLab of STCL (ResNet-101, 12 classes),
that of TPS (its block counts set to ResNet-50's, 15 classes) and the DAFormer network of the video ViT (its MiT-B5
exchanged for its MiT-B1, 12 classes). They ran in evaluation mode on the CPU with the weights of :func:`fill` and the
clip of :func:`scene`, their input BGR 0-255 minus the mean. The compiled warp was replaced by a loop over pixels in
numpy that does what its kernel does (four neighbours, each clamped to the image); mmcv's ``ConvModule`` and
``DepthwiseSeparableConvModule`` by convolution, batch norm and ReLU in that order. Flow comes on twice the scores'
grid, as the published code scales u and v by one ratio and ours each by its own. The file's metadata are digests of the
published state dicts' names and shapes. Torch 2.13.0, 2026-11-25.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import stcl
from closeness import NETWORK, assert_close
from stcl.errors import CheckpointError, SettingError
from stcl.labels import SPACES
from stcl.models import VideoSegmenter, build_segmenter
from stcl.models.backbones.base import Input
from stcl.models.weights.published import rename_tensor
from stcl.models.weights.recognise import recognise
from stcl.models.weights.start import transfer_weights
from stcl.training.networks import open_checkpoint
from stcl.types import FramePair

REFERENCE = Path(__file__).with_name("published.safetensors")
State = dict[str, Tensor]

NETWORKS = {  # how ours are built, and which of our names begins with what in the published state dict
    "stcl": (
        {"classes": 12, "backbone": "resnet101", "head": "stcl"},
        {"backbone.": "", "aux_head.": "layer5.", "head.": "layer7.", "fusion.conv.": "sf_layer."},
    ),
    "tps": (
        {"classes": 15, "backbone": "resnet50", "head": "tps"},
        {"backbone.": "", "aux_head.": "layer5.", "head.": "layer6.", "fusion.conv.": "sf_layer."},
    ),
    "daformer": (
        {"classes": 12, "backbone": "mit_b1", "head": "daformer", "auxiliary": False},
        {"backbone.encoder.": "model.", "head.": "decoder.", "fusion.conv.": "decoder.sf_layer."},
    ),
}
LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.q_proj": "attn.q",
    "attention.o_proj": "attn.proj",
    "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.sequence_reduction.layer_norm": "attn.norm",
}
"""SegFormer's own names by those of transformers."""


def fill(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights that depend on nothing but names and shapes, with which activations stay within bounds.

    Each tensor is drawn from numpy's generator with the CRC-32 of its name as the seed: variances from U(0.5, 1.5);
    matrices and kernels from N(0, 1 / inputs), divided by 20 where they read an image; scales of norms from U(0.5, 1);
    biases and means from N(0, 0.1^2); counters are 0.
    """
    state = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        last = name.rpartition(".")[2]
        if last == "num_batches_tracked":
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        if last == "running_var":
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            values = random.standard_normal(shape, np.float32) / np.sqrt(
                np.prod(shape[1:]) * (400 if shape[1] == 3 else 1)
            )
        elif last == "weight":
            values = random.uniform(0.5, 1.0, shape)
        else:
            values = 0.1 * random.standard_normal(shape)
        state[name] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def scene(grid: tuple[int, int]) -> FramePair:
    """Two frames of 96x48 pixels in squares of 16, and flow for scores on ``grid (rows, columns)``."""
    random = np.random.default_rng(7)
    current, previous = random.random((2, 1, 3, 3, 6), np.float32).repeat(16, -2).repeat(16, -1)
    flow = 2 * random.standard_normal((1, 2, 2 * grid[0], 2 * grid[1]), np.float32)
    return FramePair(*map(torch.from_numpy, (current, previous, flow)))


def published_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published network, from those of ours."""
    arguments, places = NETWORKS[kind]
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):  # no memory, no random draws
        network = build_segmenter(**arguments)
    for name, tensor in network.state_dict().items():
        ours, theirs = next((ours, theirs) for ours, theirs in places.items() if name.startswith(ours))
        rest = name.removeprefix(ours)
        shape = tuple(tensor.shape)
        if rest.startswith("stages."):
            rest, shape = original(rest, shape)
        if rest:
            shapes[theirs + rest] = shape
    return shapes


def original(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """A name of transformers in SegFormer's own naming; nothing for keys, which stand above the values."""
    _, stage, part, *rest = name.split(".")
    number = int(stage) + 1
    if part == "patch_embeddings":
        return f"patch_embed{number}.{'proj' if rest[0] == 'proj' else 'norm'}.{rest[1]}", shape
    if part == "layer_norm":
        return f"norm{number}.{rest[0]}", shape
    layer, last = ".".join(rest[1:-1]), rest[-1]
    if layer == "attention.k_proj":
        return "", ()
    if layer == "attention.v_proj":
        return f"block{number}.{rest[0]}.attn.kv.{last}", (2 * shape[0], *shape[1:])
    return f"block{number}.{rest[0]}.{LAYER.get(layer, layer)}.{last}", shape


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """The published networks' weights in their own names."""
    return {kind: fill(published_shapes(kind)) for kind in NETWORKS}


@pytest.fixture(scope="module")
def tps(states: dict[str, State]) -> State:
    return states["tps"]


def save(state: object, path: Path, **options: object) -> Path:
    torch.save(state, path, **options)
    return path


# ---- the numbers ----


@pytest.mark.parametrize("kind", NETWORKS)
def test_scores_are_those_of_the_published_code(kind, states, tmp_path):
    with safe_open(REFERENCE, framework="pt") as file:
        theirs = {name.partition(".")[2]: file.get_tensor(name) for name in file.keys() if name.startswith(kind)}  # noqa: SIM118
        digest = file.metadata()[kind]
    listed = json.dumps(sorted((name, list(tensor.shape)) for name, tensor in states[kind].items()))
    assert hashlib.sha256(listed.encode()).hexdigest() == digest
    opened = open_checkpoint(save(states[kind], tmp_path / "model_40000.pth"))
    assert len(opened.space) == NETWORKS[kind][0]["classes"]
    assert not opened.network.training
    pair = scene(tuple(theirs["main"].shape[-2:]))
    with torch.enable_grad():  # both frames by themselves, with auxiliary scores
        fused = opened.network(pair)
    assert_close(fused.logits, theirs["main"], NETWORK)
    with torch.no_grad():
        assert_close(opened.network(pair).logits, theirs["main"], NETWORK)
        frames = {
            "current": opened.network.frame_scores(pair.current),
            "previous": opened.network.frame_scores(pair.previous),
        }
    for name, scores in frames.items():
        assert_close(scores.main, theirs[name], NETWORK)
    if "aux" in theirs:
        assert_close(fused.aux, theirs["aux"], NETWORK)
        for name, scores in frames.items():
            assert_close(scores.aux, theirs[f"{name}_aux"], NETWORK)
    else:
        assert fused.aux is None


def test_the_input_decides_the_scores(states, tmp_path):
    """Else the equality above would prove little."""
    opened = open_checkpoint(save(states["tps"], tmp_path / "tps.pth"))
    image = scene((7, 13)).current
    with torch.no_grad():
        right, mirrored = (opened.network.frame_scores(frame).main for frame in (image, image.flip(1)))
    assert float((right - mirrored).abs().max()) > 0.1 * float(right.abs().max())


# ---- names ----


WRAPPED = {
    "alone": lambda state: state,
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "state_dict": lambda state: {"state_dict": state, "iter": 40000, "optimizer": {"state": {}}},
    "model": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
    "average alone": lambda state: {"state_dict_ema": state},
    "with its average": lambda state: {"model": state, "model_ema": {name: 0 * t for name, t in state.items()}},
    "prefixed": lambda state: {f"module.model.{name}": tensor for name, tensor in state.items()},
    "beside its average": lambda state: {
        **{f"ema_model.{name}": 0 * tensor for name, tensor in state.items()},
        **{f"model.{name}": tensor for name, tensor in state.items()},
    },
    "prefixed average": lambda state: {"state_dict": {f"ema_model.{name}": t for name, t in state.items()}},
    "joined average": lambda state: {f"ema_{name}": tensor for name, tensor in state.items()},
    "before counters": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("kind", ["tps", "daformer"])
@pytest.mark.parametrize("way", WRAPPED)
def test_what_wraps_a_state_is_seen_through(kind, way, states, tmp_path):
    state = states[kind]
    tensors = stcl.models.weights.files.read_tensor_file(save(WRAPPED[way](state), tmp_path / "file.pth")).tensors
    ours, bare = recognise(tensors, "file.pth"), recognise(state, "file.pth")
    assert (ours.title, ours.backbone, ours.head, ours.classes) == (bare.title, bare.backbone, bare.head, bare.classes)
    assert ours.tensors.keys() == bare.tensors.keys()
    assert all(torch.equal(tensor, ours.tensors[name]) for name, tensor in bare.tensors.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "ema_model."])
def test_mmseg_names_of_daformer(states, prefix):
    ours = recognise(states["daformer"], "file")
    swap = {"model": "backbone", "decoder": "decode_head"}
    parts = {name: name.partition(".") for name in states["daformer"] if "sf_layer" not in name}
    mmseg = {f"{prefix}{swap[first]}.{rest}": states["daformer"][name] for name, (first, _, rest) in parts.items()}
    theirs = recognise(mmseg, "file")
    assert (theirs.backbone, theirs.head, theirs.classes, theirs.fusion) == ("mit_b1", "daformer", 12, "none")
    assert theirs.backbone_settings == {"input": "imagenet"}
    assert ours.backbone_settings == {"input": "published"}
    without = {name: tensor for name, tensor in ours.tensors.items() if not name.startswith("fusion.")}
    assert theirs.tensors.keys() == without.keys()
    assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in without.items())


def hub_name(name: str) -> str:
    """A name of transformers 5 as files of earlier versions, which the model hub serves, have it."""
    _, stage, part, *rest = name.split(".")
    if part == "patch_embeddings":
        return f"encoder.patch_embeddings.{stage}.{'.'.join(rest)}"
    if part == "layer_norm":
        return f"encoder.layer_norm.{stage}.{rest[0]}"
    table = {
        "layernorm_before": "layer_norm_1",
        "layernorm_after": "layer_norm_2",
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention.sequence_reduction.sequence_reduction": "attention.self.sr",
        "attention.sequence_reduction.layer_norm": "attention.self.layer_norm",
        "mlp.fc1": "mlp.dense1",
        "mlp.fc2": "mlp.dense2",
    }
    layer = ".".join(rest[1:-1])
    return f"encoder.block.{stage}.{rest[0]}.{table.get(layer, layer)}.{rest[-1]}"


def test_a_segformer_of_the_model_hub(tmp_path):
    """The library itself reads the same file and gives the same scores."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=19)  # MiT-B0
    shapes = {
        name: tuple(t.shape) for name, t in transformers.SegformerForSemanticSegmentation(config).state_dict().items()
    }
    state, hub = fill(shapes), {}
    for name, tensor in state.items():
        inner = name.removeprefix("segformer.")
        new = f"segformer.{hub_name(inner)}" if inner != name else name.replace("linear_projections", "linear_c")
        hub[new] = tensor
    config.save_pretrained(tmp_path)
    save_file(hub, tmp_path / "model.safetensors", metadata={"format": "pt"})
    library = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    opened = open_checkpoint(tmp_path)
    assert (opened.description, opened.space.name) == ("SegFormer (MiT-B0, input RGB)", "cityscapes")
    image = scene((12, 24)).current
    with torch.no_grad():
        theirs = library(opened.network.backbone.normalise(image)).logits
        assert_close(opened.network.frame_scores(image).main, theirs, NETWORK)
    levels = {f"linear_c.{level}.": f"linear_c{level + 1}." for level in range(4)}
    original_head = {
        "classifier.": "linear_pred.",
        "batch_norm.": "linear_fuse.bn.",
        "linear_fuse.weight": "linear_fuse.conv.weight",
    }
    mmseg: State = {"decode_head.conv_seg.weight": torch.zeros(128, 256, 1, 1)}
    for name, tensor in hub.items():
        for old, new in {**levels, **original_head, "segformer.": "backbone."}.items():
            name = name.replace(old, new)
        mmseg[name] = tensor
    again = recognise(mmseg, "file")
    assert again.left_out == ("decode_head.conv_seg.weight",)
    assert all(torch.equal(tensor, opened.network.state_dict()[name]) for name, tensor in again.tensors.items())


def test_keys_stand_above_values():
    named = {name: rename_tensor(name) for name in ("block2.3.attn.k.bias", "norm4.weight", "block1.0.mlp.fc1.weight")}
    assert [*named.values()] == [
        "stages.1.blocks.3.attention.k_proj.bias",
        "stages.3.layer_norm.weight",
        "stages.0.blocks.0.mlp.fc1.weight",
    ]
    assert rename_tensor("layer1.0.conv1.weight") is None


# ---- classes ----


def with_classes(state: State, classes: int) -> State:
    """The TPS network with other heads."""
    changed = {name: tensor for name, tensor in state.items() if not name.startswith(("layer5", "layer6", "sf_layer"))}
    for layer, channels in (("layer5", 1024), ("layer6", 2048)):
        for number in range(4):
            changed[f"{layer}.conv2d_list.{number}.weight"] = torch.zeros(classes, channels, 3, 3)
            changed[f"{layer}.conv2d_list.{number}.bias"] = torch.zeros(classes)
    return {**changed, "sf_layer.weight": torch.zeros(classes, 2 * classes, 1, 1)}


@pytest.mark.parametrize("space", ["synthia_seq-cityscapes_seq", "viper-cityscapes_seq", "cityscapes"])
def test_the_number_of_classes_names_the_label_space(space, tps, tmp_path):
    path = save(with_classes(tps, len(SPACES[space])), tmp_path / "file.pth")
    network = stcl.load_model(path)
    assert isinstance(network, VideoSegmenter)
    assert network.space == SPACES[space]


def test_other_numbers_of_classes_need_the_space(tps, tmp_path):
    path = save(with_classes(tps, 11), tmp_path / "file.pth")
    with pytest.raises(SettingError, match=r"has 11 classes, and which .* argument space, e\.g\. twinstreets-camvid"):
        stcl.load_model(path)
    assert stcl.load_model(path, "twinstreets-camvid").space == SPACES["twinstreets-camvid"]
    with pytest.raises(SettingError, match=r"has 11 classes, but label space 'cityscapes' has 19 \(road, "):
        stcl.load_model(path, "cityscapes")
    with pytest.raises(SettingError, match="Did you mean 'cityscapes'"):
        stcl.load_model(path, "cityscape")


# ---- starting weights ----


def built_like(kind: str, **changes: object) -> VideoSegmenter:
    return build_segmenter(**{**NETWORKS[kind][0], **changes})


def test_a_tps_network_starts_an_stcl_head_with_its_scores(tps, tmp_path):
    path = save(tps, tmp_path / "tps.pth")
    started = built_like("tps", head="stcl").eval()
    fresh = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    names = SPACES["viper-cityscapes_seq"].names
    assert transfer_weights(started, path, names) == []
    pair = scene((7, 13))
    with torch.no_grad():
        assert_close(started(pair).logits, open_checkpoint(path).network(pair).logits, NETWORK)
    assert torch.equal(started.head.conv2d_list[0].weight[15:], fresh["head.conv2d_list.0.weight"][15:])
    synthia = SPACES["synthia_seq-cityscapes_seq"].names
    other = built_like("tps", head="stcl", classes=12).eval()
    assert transfer_weights(other, path, synthia) == ["pole", "rider"]
    with torch.no_grad():
        ours, theirs = (net.frame_scores(pair.current) for net in (other, started))
    for name in set(synthia) & set(names):
        assert_close(ours.main[:, synthia.index(name)], theirs.main[:, names.index(name)], NETWORK)
        assert_close(ours.aux[:, synthia.index(name)], theirs.aux[:, names.index(name)], NETWORK)


def test_parts_that_a_published_file_lacks_keep_their_random_start(tps, tmp_path):
    bare = {name: tensor for name, tensor in tps.items() if not name.startswith(("layer5", "sf_layer"))}
    started = built_like("tps")
    fresh = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    transfer_weights(started, save(bare, tmp_path / "bare.pth"), SPACES["viper-cityscapes_seq"].names)
    state = started.state_dict()
    assert torch.equal(state["head.conv2d_list.0.weight"], tps["layer6.conv2d_list.0.weight"])
    for name in ("aux_head.conv2d_list.0.weight", "fusion.conv.weight"):
        assert torch.equal(state[name], fresh[name])


def imagenet(tps: State, spread: float) -> State:
    """A ResNet-50 whose first norm has seen inputs of this standard deviation."""
    body = {name: tensor for name, tensor in tps.items() if not name.startswith(("layer5", "layer6", "sf_layer"))}
    return {**body, "bn1.running_var": spread**2 * body["conv1.weight"].square().sum((1, 2, 3))}


def test_imagenet_starts_the_backbone_alone(tps, tmp_path):
    standard = {**imagenet(tps, 1.0), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    path = save(standard, tmp_path / "resnet50.pth")
    with pytest.raises(
        CheckpointError, match=r"is a backbone, ResNet-50 of ImageNet \(input RGB.* no heads .*fc\.weight"
    ):
        stcl.load_model(path)
    classes = ("road", "sky")
    needs = {"input": "imagenet", "stride_in": "middle"}
    started = build_segmenter(2, "resnet50", backbone_settings=needs)
    fresh = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    assert transfer_weights(started, path, classes, needs) == [*classes]
    state = started.state_dict()
    assert torch.equal(state["backbone.layer4.2.conv3.weight"], standard["layer4.2.conv3.weight"])
    assert all(torch.equal(state[name], fresh[name]) for name in state if not name.startswith("backbone."))
    with pytest.raises(
        CheckpointError, match=r"than stride_in first\. Set: --network\.backbone_settings\.stride_in middle"
    ):
        transfer_weights(started, path, classes, {"input": "imagenet", "stride_in": "first"})


def test_the_start_of_the_published_cnns(tps, tmp_path):
    """DeepLab's file: every name below Scale., and a head of 21 classes that nobody wants."""
    caffe = {f"Scale.{name}": tensor for name, tensor in imagenet(tps, 70.0).items() if "num_batches" not in name}
    caffe["Scale.layer5.conv2d_list.0.weight"] = torch.zeros(21, 2048, 3, 3)
    found = recognise(caffe, "file")
    assert (found.title, found.head) == ("ResNet-50 of ImageNet (input BGR 0-255)", None)
    started = built_like("tps")
    transfer_weights(
        started, save(caffe, tmp_path / "DeepLab.pth"), SPACES["viper-cityscapes_seq"].names, {"input": "published"}
    )
    assert torch.equal(started.backbone.conv1.weight, tps["conv1.weight"])


def test_imagenet_starts_a_mix_transformer(states, tmp_path):
    body = {name.removeprefix("model."): t for name, t in states["daformer"].items() if name.startswith("model.")}
    path = save({**body, "head.weight": torch.zeros(1000, 512), "head.bias": torch.zeros(1000)}, tmp_path / "mit.pth")
    started = built_like("daformer")
    transfer_weights(started, path, SPACES["synthia_seq-cityscapes_seq"].names, {"input": "published"})
    whole = recognise(states["daformer"], "file").tensors
    assert all(torch.equal(t, whole[f"backbone.{name}"]) for name, t in started.backbone.state_dict().items())
    with pytest.raises(CheckpointError, match=r"MiT-B1, and has no heads .*network\.backbone mit_b1"):
        stcl.load_model(path)
    with pytest.raises(CheckpointError, match=r"\(MiT-B1\) belongs to another network .*\(network.backbone mit_b1\)"):
        transfer_weights(build_segmenter(12, "mit_b0", "daformer"), path, SPACES["synthia_seq-cityscapes_seq"].names)


def test_an_input_of_its_own(states, tmp_path):
    """DAFormer's files of mmseg saw RGB with about zero mean and unit variance."""
    image = torch.rand(1, 3, 4, 4)
    assert not torch.equal(Input("imagenet")(image), Input("published")(image))
    swap = {"model": "backbone", "decoder": "decode_head"}
    parts = {name: name.partition(".") for name in states["daformer"]}
    mmseg = {f"{swap[first]}.{rest}": states["daformer"][name] for name, (first, _, rest) in parts.items()}
    path = save(mmseg, tmp_path / "daformer.pth")
    assert stcl.load_model(path).backbone.input.kind == "imagenet"
    names = SPACES["synthia_seq-cityscapes_seq"].names
    with pytest.raises(CheckpointError, match=r"Set: --network\.backbone_settings\.input imagenet"):
        transfer_weights(built_like("daformer"), path, names, {"input": "published"})


# ---- files that are not quite right ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {n: t for n, t in s.items() if n != "layer3.2.bn2.weight"},
            r"1 missing \(backbone\.layer3\.2\.bn2\.w",
        ),
        (lambda s: {**s, "layer9.weight": torch.ones(1)}, r"1 unexpected \(layer9\.weight\)"),
        (lambda s: {**s, "bn1.weight": torch.ones(63)}, r"bn1\.weight \(63,\) instead of \(64,\)"),
        (lambda s: {n: t for n, t in s.items() if n != "layer6.conv2d_list.0.weight"}, "head 'layer6' lacks 'layer6"),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("layer3.5")},
            "5 bottlenecks in its third stage has no",
        ),
        (
            lambda s: {f"body.{n}": t for n, t in s.items()},
            r"of no network that is known here\. Known are the CNNs of STCL",
        ),
    ],
    ids=["missing", "extra", "shape", "head", "depth", "unknown"],
)
def test_a_file_that_is_not_quite_right_is_named_with_its_differences(change, message, tps, tmp_path):
    path = save(change(tps), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        stcl.load_model(path)
    assert str(caught.value).startswith(f"'{path}'")
    assert "\n" not in str(caught.value)


def test_half_a_transformer_is_named(states, tmp_path):
    state = {name: tensor for name, tensor in states["daformer"].items() if ".block4.1." not in name}
    with pytest.raises(
        CheckpointError, match=r"width 64 with \(2, 2, 2, 1\) layers .* none of MiT-B0 to B5 .*Is the file w"
    ):
        stcl.load_model(save(state, tmp_path / "file.pth"))


def test_half_precision(tps, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tps.items()}
    network = stcl.load_model(save(half, tmp_path / "half.pth"))
    assert network.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(network.backbone.conv1.weight, half["conv1.weight"].float())


def test_published_weights_as_safetensors(tps, tmp_path):
    save_file(tps, tmp_path / "tps.safetensors")
    assert torch.equal(stcl.load_model(tmp_path / "tps.safetensors").backbone.conv1.weight, tps["conv1.weight"])
