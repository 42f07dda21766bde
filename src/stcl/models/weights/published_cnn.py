"""Checkpoints of the published CNNs and of ImageNet's ResNets (method section 2): their names, their input.

Networks: STCL (main head ``layer7``), TPS, DA-VSN and source only (main head ``layer6``), each with the auxiliary head
``layer5`` and the fusion ``sf_layer``. Starts: DeepLab's ResNet, converted from Caffe (every name begins with
``Scale.``, and ``layer5`` is a head of 21 classes on the last stage), and torchvision's ResNet-18, 50 and 101 (with
``fc``).
"""

from torch import Tensor

from stcl.errors import CheckpointError
from stcl.models.weights.published import PublishedNetwork

STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

PARTS = {"layer5": "aux_head", "layer6": "head", "layer7": "head", "sf_layer": "fusion.conv"}
"""Part of a segmenter by its published name."""

HEAD_OF = {"layer6": "tps", "layer7": "stcl"}
SCORES = {"layer6": "layer6.conv2d_list.0.weight", "layer7": "layer7.head.1.weight"}
"""A tensor with one row a class of each main head."""

BACKBONE_OF = {(2, "basic blocks"): "resnet18", (6, "bottlenecks"): "resnet50", (23, "bottlenecks"): "resnet101"}
"""By the blocks of the third stage."""

LAST_CHANNELS = 2048

BYTES = {"input": "published", "stride_in": "first"}
STANDARD = {"input": "imagenet", "stride_in": "middle"}
"""Settings of a backbone for weights converted from Caffe, as all published CNNs have them, and for torchvision's."""

BYTE_INPUT_RATIO = 60.0
"""The first norm's variance over the first filters' energy: about the variance of the input, which is near 1 for
torchvision's and near 60^2 for 0-255; this is their geometric mean."""


def read_cnn(tensors: dict[str, Tensor]) -> PublishedNetwork | None:
    """A ResNet with or without the published heads; None for anything else."""
    if not {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= tensors.keys():
        return None
    backbone = _backbone(tensors)
    first = tensors.get("layer5.conv2d_list.0.weight")
    old_head = first is not None and first.shape[1] == LAST_CHANNELS  # of another data set, on the last stage
    left = tuple(name for name in tensors if name.startswith("fc.") or (old_head and name.startswith("layer5.")))
    state = {_our_name(name): tensor for name, tensor in tensors.items() if name not in left}
    depth = f"ResNet-{backbone.removeprefix('resnet')}"
    parts = {name.partition(".")[0] for name in tensors}
    if not parts & SCORES.keys():
        return _start(depth, backbone, state, left)
    main = max(parts & SCORES.keys())
    if SCORES[main] not in tensors:
        raise CheckpointError(f"its head '{main}' lacks '{SCORES[main]}'. Is the file whole?")
    head, classes = HEAD_OF[main], len(tensors[SCORES[main]])
    title = f"CNN of {'STCL' if head == 'stcl' else 'TPS, DA-VSN or source only'} ({depth}, head '{main}')"
    auxiliary, fusion = any(name.startswith("aux_head.") for name in state), "fusion.conv.weight" in state
    return PublishedNetwork(
        title, backbone, state, head, classes, auxiliary, "accel" if fusion else "none", BYTES, left
    )


def _start(name: str, backbone: str, state: dict[str, Tensor], left: tuple[str, ...]) -> PublishedNetwork:
    """A backbone by itself; whose input it expects, its statistics tell."""
    kernel, variance = state["backbone.conv1.weight"], state.get("backbone.bn1.running_var")
    if variance is None:
        raise CheckpointError(
            "this ResNet lacks the running statistics of its batch norms ('bn1.running_var') and cannot start a "
            "network. Choose another file."
        )
    ratio = (variance.double() / kernel.double().square().sum((1, 2, 3)).clamp_min(1e-12)).median()
    if ratio > BYTE_INPUT_RATIO:
        return PublishedNetwork(
            f"{name} of ImageNet (input BGR 0-255)", backbone, state, backbone_settings=BYTES, left_out=left
        )
    settings = STANDARD if backbone != "resnet18" else {"input": "imagenet"}  # basic blocks have one place for a stride
    return PublishedNetwork(
        f"{name} of ImageNet (input RGB, as torchvision's)", backbone, state, backbone_settings=settings, left_out=left
    )


def _our_name(name: str) -> str:
    part, _, rest = name.partition(".")
    if part in STAGES:
        return f"backbone.{name}"
    return f"{PARTS[part]}.{rest}" if part in PARTS else name


def _backbone(tensors: dict[str, Tensor]) -> str:
    count = len({name.split(".")[1] for name in tensors if name.startswith("layer3.")})
    kind = "bottlenecks" if "layer1.0.conv3.weight" in tensors else "basic blocks"
    if (count, kind) not in BACKBONE_OF:
        known = ", ".join(f"{name} ({number} {blocks})" for (number, blocks), name in BACKBONE_OF.items())
        raise CheckpointError(f"a ResNet with {count} {kind} in its third stage has no place here; known are {known}.")
    return BACKBONE_OF[count, kind]
