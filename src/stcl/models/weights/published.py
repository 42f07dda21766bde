"""Checkpoints of other people's code, by their names and shapes: the published CNNs and ViT, and what they start from.

CNNs (method section 2): STCL (main head ``layer7``), TPS, DA-VSN and source only (main head ``layer6``), each with the
auxiliary head ``layer5`` and the fusion ``sf_layer``. Their starts: DeepLab's ResNet, converted from Caffe (every name
begins with ``Scale.``, and ``layer5`` is a head of 21 classes on the last stage), and torchvision's ResNet-18, 50 and
101 (with ``fc``).

Mix transformers: ImageNet's MiT-B0 to B5, SegFormer's, DAFormer's and the published ViT. Three namings of one
transformer are read: SegFormer's own (``block1.0.attn.kv``), that of files on the model hub
(``encoder.block.0.0.attention.self.key``), and that of transformers' modules (``stages.0.blocks.0.attention.k_proj``),
in which our network has them. Sources: Xie et al. 2021, arXiv 2105.15203; Hoyer et al. 2022, arXiv 2111.14887.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from stcl.errors import CheckpointError
from stcl.models.backbones.segformer import VARIANTS


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of other people's code, in this package's names.

    Args:
        title: what it is, for people.
        backbone: name of ``stcl.models.BACKBONES``.
        tensors: state of a segmenter; ``backbone.*`` alone where there is no head. Names that have no place here keep
            their own, so that a comparison with the network finds them.
        head: name of ``stcl.models.HEADS``, or None: the file has no head that is known here.
        classes: how many the head has, or None without a head.
        auxiliary, fusion: as of :func:`stcl.models.build_segmenter`.
        backbone_settings: arguments of the backbone.
        left_out: names in the file that nobody needs here, e.g. of a classifier of ImageNet.
    """

    title: str
    backbone: str
    tensors: dict[str, Tensor]
    head: str | None = None
    classes: int | None = None
    auxiliary: bool = False
    fusion: str = "none"
    backbone_settings: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


# ---- CNNs ----

PARTS = {
    **{stage: f"backbone.{stage}" for stage in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")},
    "layer5": "aux_head",
    "layer6": "head",
    "layer7": "head",
    "sf_layer": "fusion.conv",
}
"""Part of a segmenter by its published name."""

SCORES = {"layer6": "layer6.conv2d_list.0.weight", "layer7": "layer7.head.1.weight"}
"""A tensor with one row per class of each main head."""

RESNETS = {(2, "basic blocks"): "resnet18", (6, "bottlenecks"): "resnet50", (23, "bottlenecks"): "resnet101"}
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
    count = len({name.split(".")[1] for name in tensors if name.startswith("layer3.")})
    kind = "bottlenecks" if "layer1.0.conv3.weight" in tensors else "basic blocks"
    if (count, kind) not in RESNETS:
        known = ", ".join(f"{name} ({number} {blocks})" for (number, blocks), name in RESNETS.items())
        raise CheckpointError(f"a ResNet with {count} {kind} in its third stage has no place here; known are {known}.")
    backbone = RESNETS[count, kind]
    depth = f"ResNet-{backbone.removeprefix('resnet')}"
    first = tensors.get("layer5.conv2d_list.0.weight")
    old_head = first is not None and first.shape[1] == LAST_CHANNELS  # of another data set, on the last stage
    left = tuple(name for name in tensors if name.startswith("fc.") or (old_head and name.startswith("layer5.")))
    state = {}
    for name, tensor in tensors.items():
        part, dot, rest = name.partition(".")
        if name not in left:
            state[PARTS.get(part, part) + dot + rest] = tensor
    heads = {name.partition(".")[0] for name in tensors} & SCORES.keys()
    if not heads:
        settings = _start_settings(tensors, backbone)
        title = "input BGR 0-255" if settings == BYTES else "input RGB, as torchvision's"
        title = f"{depth} of ImageNet ({title})"
        return PublishedNetwork(title, backbone, state, backbone_settings=settings, left_out=left)
    main = max(heads)
    if SCORES[main] not in tensors:
        raise CheckpointError(f"its head '{main}' lacks '{SCORES[main]}'. Is the file whole?")
    head, origin = ("stcl", "STCL") if main == "layer7" else ("tps", "TPS, DA-VSN or source only")
    return PublishedNetwork(
        title=f"CNN of {origin} ({depth}, head '{main}')",
        backbone=backbone,
        tensors=state,
        head=head,
        classes=len(tensors[SCORES[main]]),
        auxiliary=any(name.startswith("aux_head.") for name in state),
        fusion="accel" if "fusion.conv.weight" in state else "none",
        backbone_settings=BYTES,
        left_out=left,
    )


def _start_settings(tensors: dict[str, Tensor], backbone: str) -> dict[str, str]:
    """Whose input a ResNet without heads expects, by the statistics of its first norm."""
    kernel, variance = tensors["conv1.weight"], tensors.get("bn1.running_var")
    if variance is None:
        raise CheckpointError(
            "this ResNet lacks the running statistics of its batch norms ('bn1.running_var') and cannot start a "
            "network. Choose another file."
        )
    ratio = (variance.double() / kernel.double().square().sum((1, 2, 3)).clamp_min(1e-12)).median()
    if ratio > BYTE_INPUT_RATIO:
        return BYTES
    return STANDARD if backbone != "resnet18" else {"input": "imagenet"}  # basic blocks have one place for a stride


# ---- mix transformers ----

Rules = tuple[tuple[str, str], ...]
"""Patterns of a name's beginning and what replaces it; the first that fits counts."""

BODIES = ("", "model.", "backbone.", "segformer.")
"""Where a file has the transformer: by itself; in the published ViT; in mmseg; on the model hub."""

HEADS_AT = ("decoder.", "decode_head.")
"""Where a file has the head: in the published ViT; in mmseg and on the model hub."""

CLASSIFIERS = r"(?:model\.|backbone\.)?(?:head|classifier)\."
"""Of ImageNet, left out."""

PLACES = (
    (r"patch_embed([1-4])\.", "patch_embeddings", 1),
    (r"block([1-4])\.(\d+)\.", "blocks", 1),
    (r"norm([1-4])\.", "layer_norm", 1),
    (r"encoder\.patch_embeddings\.(\d)\.", "patch_embeddings", 0),
    (r"encoder\.block\.(\d)\.(\d+)\.", "blocks", 0),
    (r"encoder\.layer_norm\.(\d)\.", "layer_norm", 0),
)
"""Parts of a stage, with the stage's number and a layer's: in SegFormer's naming and in the hub's; where they are in
ours; and what SegFormer or the hub calls the first stage."""

WITHIN: Rules = (
    (r"norm\.", "layer_norm."),
    (r"(?:norm|layer_norm_)1\.", "layernorm_before."),
    (r"(?:norm|layer_norm_)2\.", "layernorm_after."),
    (r"attn\.(q|k|v)\.", r"attention.\1_proj."),  # kv is split before
    (r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"attention.\1_proj."),
    (r"(?:attn\.proj|attention\.output\.dense)\.", "attention.o_proj."),
    (r"(?:attn|attention\.self)\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"(?:attn\.norm|attention\.self\.layer_norm)\.", "attention.sequence_reduction.layer_norm."),
    (r"mlp\.dense(\d)\.", r"mlp.fc\1."),
)
"""Names within a part of a stage."""


class HeadNames(NamedTuple):
    """A head as a file names it.

    Attributes:
        kind: of ``stcl.models.HEADS``.
        marker: a tensor that this head has and others have not.
        scores: the tensor with one row per class.
        unused: pattern of what it has and never uses.
        rules: its names.
    """

    kind: str
    marker: str
    scores: str
    unused: str
    rules: Rules


NEVER = r"(?!)"
"""A pattern that fits nothing."""

DAFORMER: Rules = ((r"(embed_layers|fuse_layer|conv_seg)\.", r"head.\1."), (r"sf_layer\.", "fusion.conv."))
SEGFORMER: Rules = (
    *((rf"linear_c{level + 1}\.", f"head.embed_layers.{level}.") for level in range(4)),
    (r"(?:linear_c|linear_projections)\.(\d)\.", r"head.embed_layers.\1."),
    (r"linear_fuse\.weight", "head.fuse.conv.weight"),
    (r"linear_fuse\.(conv|bn)\.", r"head.fuse.\1."),
    (r"batch_norm\.", "head.fuse.bn."),
    (r"(?:linear_pred|classifier)\.", "head.conv_seg."),
)
HEAD_NAMES = (
    HeadNames("daformer", "fuse_layer.bottleneck.conv.weight", "conv_seg.weight", NEVER, DAFORMER),
    HeadNames("mlp", "linear_c1.proj.weight", "linear_pred.weight", r"conv_seg\.", SEGFORMER),
    HeadNames("mlp", "linear_fuse.weight", "classifier.weight", NEVER, SEGFORMER),
)
"""Heads of DAFormer and the published ViT, of SegFormer in mmseg, and of SegFormer on the model hub."""


def read_vit(tensors: dict[str, Tensor]) -> PublishedNetwork | None:
    """A mix transformer with or without a head; None for anything else."""
    for body in BODIES:
        encoder, others = _split(tensors, body)
        if "stages.0.patch_embeddings.proj.weight" in encoder:
            break
    else:
        return None
    variant = _variant(encoder)
    backbone, mit = f"mit_{variant}", f"MiT-{variant.upper()}"
    below = next((at for at in HEADS_AT if any(name.startswith(at) for name in others)), "no head")
    head = {name.removeprefix(below) for name in others if name.startswith(below)}
    names = next((names for names in HEAD_NAMES if {names.marker, names.scores} <= head), None)
    left = tuple(
        name
        for name in others
        if re.match(CLASSIFIERS, name) or (name.startswith(below) and (names is None or re.search(names.unused, name)))
    )
    state = {f"backbone.encoder.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in others.items():
        if name not in left:  # what no rule knows keeps its name, so that a comparison finds it
            state[_renamed(name.removeprefix(below), names.rules if names else ())] = tensor
    if names is None:
        return PublishedNetwork(mit, backbone, state, left_out=left)
    if names.kind == "daformer" and below == "decoder.":  # the only one whose input is BGR 0-255
        title, input_kind = f"published ViT ({mit}, DAFormer's head)", "published"
    else:
        title = f"{'DAFormer' if names.kind == 'daformer' else 'SegFormer'} ({mit}, input RGB)"
        input_kind = "imagenet"
    return PublishedNetwork(
        title,
        backbone,
        state,
        head=names.kind,
        classes=len(others[below + names.scores]),
        fusion="accel" if "fusion.conv.weight" in state else "none",
        backbone_settings={"input": input_kind},
        left_out=left,
    )


def rename_tensor(name: str) -> str | None:
    """A transformer's tensor in any of the three namings as transformers' modules have it; None for any other."""
    if name.startswith("stages."):
        return name
    for pattern, part, first in PLACES:
        if begin := re.match(pattern, name):
            stage, *layer = begin.groups()
            return ".".join([f"stages.{int(stage) - first}", part, *layer, _renamed(name[begin.end() :], WITHIN)])
    return None


def _renamed(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name)
    return name


def _split(tensors: dict[str, Tensor], body: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The transformer below ``body`` in our names, and all else under its own."""
    encoder: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(body)
        both = re.fullmatch(r"(block\d\.\d+\.attn\.)kv\.(\w+)", bare)
        if not name.startswith(body) or (not both and rename_tensor(bare) is None):
            others[name] = tensor
        elif both:  # keys and values one below the other
            for part, half in zip("kv", tensor.chunk(2), strict=True):
                encoder[f"{rename_tensor(f'{both[1]}{part}.{both[2]}')}"] = half.clone()
        else:
            encoder[f"{rename_tensor(bare)}"] = tensor
    return encoder, others


def _variant(encoder: dict[str, Tensor]) -> str:
    """Which MiT it is, by the first width and the number of layers."""
    width = len(encoder["stages.0.patch_embeddings.proj.weight"])
    layers = {tuple(name.split(".")[1:4:2]) for name in encoder if name.split(".")[2] == "blocks"}
    depths = tuple(sum(stage == str(number) for stage, _ in layers) for number in range(4))
    for variant, known in VARIANTS.items():
        if (known.width, known.depths) == (width, depths):
            return variant
    all_known = ", ".join(f"{variant.upper()} {known.width} {known.depths}" for variant, known in VARIANTS.items())
    raise CheckpointError(
        f"a mix transformer of width {width} with {depths} layers in its stages is none of MiT-B0 to B5 "
        f"({all_known}). Is the file whole?"
    )
