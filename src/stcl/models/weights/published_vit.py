"""Checkpoints of mix transformers: ImageNet's MiT-B0 to B5, SegFormer's, DAFormer's and the published ViT (section 2).

Three namings of one transformer are read: SegFormer's own (``block1.0.attn.kv``), that of files on the model hub
(``encoder.block.0.0.attention.self.key``), and that of transformers' modules (``stages.0.blocks.0.attention.k_proj``),
in which our network has them. Sources: Xie et al. 2021, arXiv 2105.15203; Hoyer et al. 2022, arXiv 2111.14887.
"""

import re
from typing import Any

from torch import Tensor

from stcl.errors import CheckpointError
from stcl.models.backbones.segformer import VARIANTS
from stcl.models.weights.published import PublishedNetwork

Rules = tuple[tuple[str, str], ...]
"""Patterns of a name's beginning and what replaces it; the first that fits counts."""

BODIES = ("", "model.", "backbone.", "segformer.")
"""Where a file has the transformer: by itself; in the published ViT; in mmseg; on the model hub."""

HEADS_AT = ("decoder.", "decode_head.")
"""Where a file has the head: in the published ViT; in mmseg and on the model hub."""

OURS = "backbone.encoder."
"""Where a segmenter has the transformer."""

CLASSIFIERS = r"(?:model\.|backbone\.)?(?:head|classifier)\."
"""Of ImageNet, left out."""

NEVER = r"(?!)"
"""A pattern that fits nothing."""

ORIGINAL_LAYER: Rules = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.q\.", "attention.q_proj."),
    (r"attn\.k\.", "attention.k_proj."),  # kv is split before
    (r"attn\.v\.", "attention.v_proj."),
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attn\.norm\.", "attention.sequence_reduction.layer_norm."),
)
HUB_LAYER: Rules = (
    (r"layer_norm_1\.", "layernorm_before."),
    (r"layer_norm_2\.", "layernorm_after."),
    (r"attention\.self\.query\.", "attention.q_proj."),
    (r"attention\.self\.key\.", "attention.k_proj."),
    (r"attention\.self\.value\.", "attention.v_proj."),
    (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"mlp\.dense(\d)\.", r"mlp.fc\1."),
)
DAFORMER: Rules = ((r"(embed_layers|fuse_layer|conv_seg)\.", r"head.\1."), (r"sf_layer\.", "fusion.conv."))
SEGFORMER: Rules = (
    *((rf"linear_c{level + 1}\.", f"head.embed_layers.{level}.") for level in range(4)),
    (r"(?:linear_c|linear_projections)\.(\d)\.", r"head.embed_layers.\1."),
    (r"linear_fuse\.weight", "head.fuse.conv.weight"),
    (r"linear_fuse\.(conv|bn)\.", r"head.fuse.\1."),
    (r"batch_norm\.", "head.fuse.bn."),
    (r"(?:linear_pred|classifier)\.", "head.conv_seg."),
)
HEADS: dict[str, Rules] = {"daformer": DAFORMER, "mlp": SEGFORMER}
"""Names of each head."""


def read_vit(tensors: dict[str, Tensor]) -> PublishedNetwork | None:
    """A mix transformer with or without a head; None for anything else."""
    for body in BODIES:
        encoder, others = _split(tensors, body)
        if "stages.0.patch_embeddings.proj.weight" in encoder:
            break
    else:
        return None
    size = _size(encoder)
    state = {f"{OURS}{name}": tensor for name, tensor in encoder.items()}
    place = next((at for at in HEADS_AT if any(name.startswith(at) for name in others)), "no head")
    head = {name.removeprefix(place): tensor for name, tensor in others.items() if name.startswith(place)}
    kind, scores, unused = _head(head)
    left = tuple(
        name
        for name in others
        if re.match(CLASSIFIERS, name) or (name.startswith(place) and (kind is None or re.search(unused, name)))
    )
    rules = HEADS.get(kind or "", ())
    for name, tensor in others.items():
        if name not in left:  # what no rule knows keeps its name, so that a comparison finds it
            state[_renamed(name.removeprefix(place), rules)] = tensor
    if kind is None:
        return PublishedNetwork(f"MiT-{size.upper()}", f"mit_{size}", state, left_out=left)
    title, settings = _settings(size, kind, place)
    fusion = "accel" if "fusion.conv.weight" in state else "none"
    return PublishedNetwork(
        title, f"mit_{size}", state, kind, len(head[scores]), False, fusion, backbone_settings=settings, left_out=left
    )


def rename_transformer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a transformer, in any of the three namings, as transformers' modules have it; empty for any other."""
    both = re.fullmatch(r"(block\d\.\d+\.attn\.)kv\.(\w+)", name)
    if both:  # keys and values one below the other
        halves = zip("kv", tensor.chunk(2), strict=True)
        return {f"{rename_tensor(f'{both[1]}{part}.{both[2]}')}": half.clone() for part, half in halves}
    new = rename_tensor(name)
    return {} if new is None else {new: tensor}


def rename_tensor(name: str) -> str | None:
    """One name in any of the three namings as transformers' modules have it; None where it is of no transformer."""
    if name.startswith("stages."):
        return name
    if found := re.fullmatch(r"patch_embed(\d)\.(proj|norm)\.(\w+)", name):
        part = found[2].replace("norm", "layer_norm")
        return f"stages.{int(found[1]) - 1}.patch_embeddings.{part}.{found[3]}"
    if found := re.fullmatch(r"block(\d)\.(\d+)\.(.+)", name):
        return f"stages.{int(found[1]) - 1}.blocks.{found[2]}.{_renamed(found[3], ORIGINAL_LAYER)}"
    if found := re.fullmatch(r"norm(\d)\.(\w+)", name):
        return f"stages.{int(found[1]) - 1}.layer_norm.{found[2]}"
    if found := re.fullmatch(r"encoder\.patch_embeddings\.(\d)\.(.+)", name):
        return f"stages.{found[1]}.patch_embeddings.{found[2]}"
    if found := re.fullmatch(r"encoder\.block\.(\d)\.(\d+)\.(.+)", name):
        return f"stages.{found[1]}.blocks.{found[2]}.{_renamed(found[3], HUB_LAYER)}"
    if found := re.fullmatch(r"encoder\.layer_norm\.(\d)\.(\w+)", name):
        return f"stages.{found[1]}.layer_norm.{found[2]}"
    return None


def _renamed(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name)
    return name


def _size(encoder: dict[str, Tensor]) -> str:
    """Which MiT it is, by the first width and the number of layers."""
    width = len(encoder["stages.0.patch_embeddings.proj.weight"])
    layers = {tuple(name.split(".")[1:4:2]) for name in encoder if name.split(".")[2] == "blocks"}
    depths = tuple(sum(stage == str(number) for stage, _ in layers) for number in range(4))
    for size, known in VARIANTS.items():
        if (known.width, known.depths) == (width, depths):
            return size
    known_sizes = ", ".join(f"{size.upper()} {known.width} {known.depths}" for size, known in VARIANTS.items())
    raise CheckpointError(
        f"a mix transformer of width {width} with {depths} layers in its stages is none of MiT-B0 to B5 "
        f"({known_sizes}). Is the file whole?"
    )


def _head(names: dict[str, Tensor]) -> tuple[str | None, str, str]:
    """Kind of a head, its tensor with one row a class, and a pattern of what it has and never uses."""
    if {"fuse_layer.bottleneck.conv.weight", "conv_seg.weight"} <= names.keys():
        return "daformer", "conv_seg.weight", NEVER
    if {"linear_c1.proj.weight", "linear_pred.weight"} <= names.keys():
        return "mlp", "linear_pred.weight", r"conv_seg\."
    if {"linear_fuse.weight", "classifier.weight"} <= names.keys():
        return "mlp", "classifier.weight", NEVER
    return None, "", NEVER


def _split(tensors: dict[str, Tensor], body: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The transformer below ``body`` in our names, and all else under its own."""
    encoder: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed = rename_transformer(name.removeprefix(body), tensor) if name.startswith(body) else {}
        encoder |= renamed
        if not renamed:
            others[name] = tensor
    return encoder, others


def _settings(size: str, kind: str, place: str) -> tuple[str, dict[str, Any]]:
    """Title and the backbone's settings: only the published ViT has its input in BGR 0-255."""
    if kind == "daformer" and place == "decoder.":
        return f"published ViT (MiT-{size.upper()}, DAFormer's head)", {"input": "published"}
    name = "DAFormer" if kind == "daformer" else "SegFormer"
    return f"{name} (MiT-{size.upper()}, input RGB)", {"input": "imagenet"}
