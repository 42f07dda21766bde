"""Pretrained weights by name: found, renamed, checked; and what is said where they are not to be had."""

import re
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from closeness import assert_close
from stcl.errors import CheckpointError, MissingExtraError, SettingError
from stcl.models import BACKBONES, Backbone
from stcl.models.weights.names import FAMILIES, find_file, list_pretrained, load_pretrained

OLD_NAMES = {
    "mit": [
        (r"^stages\.(\d+)\.(patch_embeddings|layer_norm)", r"segformer.encoder.\2.\1"),
        (r"^stages\.(\d+)\.blocks", r"segformer.encoder.block.\1"),
        ("q_proj", "self.query"),
        ("k_proj", "self.key"),
        ("v_proj", "self.value"),
        ("o_proj", "output.dense"),
        (r"sequence_reduction\.sequence_reduction", "self.sr"),
        (r"sequence_reduction\.layer_norm", "self.layer_norm"),
        (r"mlp\.fc", "mlp.dense"),
        ("layernorm_before", "layer_norm_1"),
        ("layernorm_after", "layer_norm_2"),
    ],
    "dinov2": [
        ("q_proj", "attention.query"),
        ("k_proj", "attention.key"),
        ("v_proj", "attention.value"),
        ("o_proj", "output.dense"),
    ],
}
"""Today's names of the library's layers, and those of the files on huggingface.co."""

FURTHER = {
    "mit": {"classifier.weight": (3, 256)},
    "dinov2": {"embeddings.mask_token": (1, 384)},
    "resnet": {"fc.bias": (3,)},
}
"""What the files hold besides."""


def published(name: str) -> dict[str, Tensor]:
    """A state of a backbone with random contents, as a file on huggingface.co has it."""
    family = next(family for family in FAMILIES if name.startswith(family))
    backbone = BACKBONES[name]()
    part = backbone if family == "resnet" else backbone.encoder
    state = {}
    for key, tensor in part.state_dict().items():
        for pattern, replacement in OLD_NAMES.get(family, []):
            key = re.sub(pattern, replacement, key)
        if not key.endswith("num_batches_tracked"):
            state[key] = torch.rand_like(tensor)
    return state | {key: torch.rand(shape) for key, shape in FURTHER[family].items()}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test asks the network."""

    def refuse(repository: str, file: str, local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("no connection.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setenv("STCL_WEIGHTS", str(tmp_path / "weights"))


def put(state: dict[str, Tensor], repository: str, tmp_path: Path, file: str = "model.safetensors") -> Path:
    path = tmp_path / "weights" / repository / file
    path.parent.mkdir(parents=True)
    if file.endswith(".bin"):
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "weights", "repository"),
    [
        ("resnet18", "imagenet", "timm/resnet18.tv_in1k"),
        ("mit_b0", "imagenet", "nvidia/mit-b0"),
        ("dinov2_small", "dinov2", "facebook/dinov2-small"),
    ],
)
def test_a_file_in_its_folder_starts_the_backbone(name, weights, repository, tmp_path):
    state = published(name)
    path = put(state, repository, tmp_path)
    backbone = BACKBONES[name]()
    assert load_pretrained(backbone, name, weights) == path
    part = backbone if name == "resnet18" else backbone.encoder
    loaded = [tensor for key, tensor in part.state_dict().items() if not key.endswith("num_batches_tracked")]
    used = [tensor for key, tensor in state.items() if not re.search(r"^fc|classifier|mask_token", key)]
    assert len(loaded) == len(used)
    assert all(torch.equal(mine, other) for mine, other in zip(loaded, used, strict=True))


@pytest.mark.parametrize(("name", "kind"), [("mit_b0", "SegformerModel"), ("dinov2_small", "Dinov2Model")])
def test_names_are_those_that_the_library_gives_them(name, kind, tmp_path):
    """The library reads the same file by its own table."""
    state = published(name)
    backbone = BACKBONES[name]()
    load_pretrained(backbone, name, str(save(state, tmp_path / "own.safetensors")))
    model = getattr(transformers, kind)
    expected, report = model.from_pretrained(
        None, config=backbone.encoder.config, state_dict=dict(state), output_loading_info=True
    )
    assert not report["missing_keys"]
    assert_close(dict(backbone.encoder.state_dict()), dict(expected.state_dict()), 0.0)


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path)
    return path


def test_todays_names_and_a_file_of_torch_save_are_read_too(tmp_path):
    torch.manual_seed(1)
    source, backbone = BACKBONES["mit_b0"](), BACKBONES["mit_b0"]()
    put(source.encoder.state_dict(), "nvidia/mit-b0", tmp_path, "pytorch_model.bin")
    load_pretrained(backbone, "mit_b0", "imagenet")
    assert_close(dict(backbone.state_dict()), dict(source.state_dict()), 0.0)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({"conv1.weight": Path("x")}, path)
    with pytest.raises(CheckpointError, match=r"weights\.bin' holds more than tensors and plain data"):
        load_pretrained(BACKBONES["resnet18"](), "resnet18", str(path))
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load_pretrained(BACKBONES["resnet18"](), "resnet18", str(path))


def unchanged(backbone: Backbone, name: str, weights: str, error: type[Exception], message: str) -> None:
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_pretrained(backbone, name, weights)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_another_backbones_file_is_refused(tmp_path):
    put(published("mit_b0"), "nvidia/mit-b1", tmp_path)
    message = r"does not hold the weights of backbone 'mit_b1'.*of another shape"
    unchanged(BACKBONES["mit_b1"](), "mit_b1", "imagenet", CheckpointError, message)


def test_a_missing_file_says_where_it_belongs():
    message = (
        r"'pretrained:imagenet' of backbone 'mit_b0' are the file model\.safetensors of "
        r"https://huggingface\.co/nvidia/mit-b0.*no connection.*put it at DIR/nvidia/mit-b0/model\.safetensors and set "
        r"STCL_WEIGHTS=DIR"
    )
    unchanged(BACKBONES["mit_b0"](), "mit_b0", "imagenet", CheckpointError, message)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("mit_b0", "imagnet", "Unknown pretrained weights for backbone 'mit_b0' 'imagnet'. Did you mean 'imagenet'"),
        ("dinov2_small", "imagenet", "Known: dinov2"),
        ("small", "imagenet", r"no pretrained weights for backbone 'small'.*resnet18, resnet50, resnet101, mit_b0"),
        ("resnet18", "nowhere/model.safetensors", "no weights file 'nowhere/model.safetensors'"),
    ],
)
def test_wrong_names(name, weights, message):
    unchanged(BACKBONES[name](), name, weights, (SettingError, CheckpointError), message)  # type: ignore[arg-type]


def test_every_backbone_with_published_weights_is_listed():
    for name in BACKBONES:
        if name != "small":
            assert list_pretrained(name) == ["dinov2" if name.startswith("dinov2") else "imagenet"]


def test_the_cache_is_asked_before_the_network_and_safetensors_before_the_rest(monkeypatch):
    asked = []

    def answer(repository: str, file: str, local_files_only: bool) -> str:
        asked.append((file, local_files_only))
        if local_files_only or file != "pytorch_model.bin":
            raise huggingface_hub.errors.EntryNotFoundError("not there")
        return "/cache/file"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    assert find_file("nvidia/mit-b0", "mit_b0", "imagenet") == Path("/cache/file")
    files = ("model.safetensors", "pytorch_model.bin")
    assert asked == [(file, cached) for cached in (True, False) for file in files]


def test_other_settings_than_the_weights_were_trained_with_give_one_warning(caplog, tmp_path):
    path = str(save(published("resnet18"), tmp_path / "own.safetensors"))
    load_pretrained(BACKBONES["resnet18"](), "resnet18", path)
    (record,) = caplog.records
    assert "{input: imagenet}" in record.getMessage()
    caplog.clear()
    load_pretrained(BACKBONES["resnet18"](input="imagenet"), "resnet18", path)
    assert not caplog.records


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'huggingface_hub'.*stcl\[networks\]"):
        find_file("nvidia/mit-b0", "mit_b0", "imagenet")
