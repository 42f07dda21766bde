"""Files of any origin: what holds tensors is read as data, anything else gets one sentence and is never run."""

import io
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stcl.errors import CheckpointError
from stcl.models.weights.files import read_tensor_file
from stcl.training.checkpoint import read_checkpoint

STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3), steps=torch.tensor(7))


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return subprocess.call, (["touch", str(self.path)],)


def refused(path: Path, message: str) -> None:
    """One line that names the file."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensor_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- what is read ----


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_files_of_torch(tmp_path, zipped):
    path = tmp_path / "file.pth"
    content = {"epoch": 3, "lr": 0.1, "state_dict": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors, metadata, wrapper = read_tensor_file(path)
    assert (metadata, wrapper) == ({}, "state_dict")
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in tensors.items())


def test_a_newer_protocol(tmp_path):
    torch.save(STATE, tmp_path / "file.pth", pickle_protocol=4)
    refused(tmp_path / "file.pth", "was pickled by a newer protocol")


def test_parameters_become_tensors(tmp_path):
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "file.pth")
    tensors = read_tensor_file(tmp_path / "file.pth").tensors
    assert [tensor.requires_grad for tensor in tensors.values()] == [False, False]


@pytest.mark.parametrize("name", ["file.safetensors", "file.bin"])
def test_safetensors_by_any_name(tmp_path, name):
    save_file({"weight": torch.ones(2)}, tmp_path / name, metadata={"config": "a: 1"})
    assert read_tensor_file(tmp_path / name).metadata == {"config": "a: 1"}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_the_model_hub(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    if name == "model.safetensors":
        save_file({"weight": torch.ones(2)}, tmp_path / name)
    else:
        torch.save({"weight": torch.ones(2)}, tmp_path / name)
    assert read_tensor_file(tmp_path).tensors.keys() == {"weight"}


# ---- what is not ----


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_file_is_never_run(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "file.pth"
    pickle.loads(pickle.dumps(Harmful(trace)))  # it would
    assert trace.exists()
    trace.unlink()
    torch.save({"state_dict": STATE, "author": Harmful(trace)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, r"holds more than tensors and plain data \(\S+\.call\), which could run code, so it was not op")
    path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    refused(path, "file.pth")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Harmful(trace)))
    refused(tmp_path / "model.safetensors", "is not a whole safetensors file")
    assert not trace.exists()


def test_a_whole_module_is_code(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "file.pth")
    refused(tmp_path / "file.pth", r"torch\.nn\.modules\.linear\.Linear.*save its state_dict\(\)")


def test_the_oldest_format(tmp_path):
    path = tmp_path / "file.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(path, "torch's oldest format, a tar file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "is a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs"),
        (b"these are no weights", r"neither a safetensors file nor one of torch\.save \(it begins with b'these ar'\)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"neither a safetensors file nor one of torch\.save"),
    ],
    ids=["empty", "page", "pointer", "text", "picture"],
)
def test_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(path, message)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kept", [40, 0.5, -3])
def test_half_a_file(tmp_path, zipped, kept):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.rand(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(path, r"is not a whole checkpoint \(\d+ bytes; .*Copy or download it again")


def test_another_archive(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", "weights")
    refused(path, r"is a zip archive, but none of torch.save \(it holds: model.pth\). Unpack it")


def test_a_checkpoint_of_ours_without_its_parts(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"stcl": {"config": "name: x"}, "state_dict": 5}, path)
    refused(path, "without its weight average")


def test_half_a_safetensors_file(tmp_path):
    path = tmp_path / "model.bin"
    save_file({"weight": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    refused(path, r"is not a whole safetensors file \(\d+ bytes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor, not tensors by name"),
        ([torch.ones(3)], "holds a list, not tensors by name"),
        ({"epoch": 3, "state_dict": {}}, r"holds no tensors by name \(found: epoch, state_dict\)"),
        ({}, r"holds no tensors by name \(found: nothing\)"),
        ({"stcl": {"config": "a: 1"}, "state_dict": {"network.weight": torch.ones(1)}}, "without its weight average"),
    ],
)
def test_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", message)


def test_nothing_there(tmp_path):
    refused(tmp_path / "model.pth", "There is no weights file")
    refused(tmp_path, r"is no run folder: it holds no config\.yaml; nor does it hold weights \(model\.safetensors or")


# ---- what would take more than it is ----


def repacked(path: Path, changed: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save with other parts, by the end of their names."""
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, part in parts.items():
            archive.writestr(name, next((new for end, new in changed.items() if name.endswith(end)), part))
    return path


def called(name: str, count: int) -> bytes:
    """A pickle of ``{"weight": name(count)}``."""
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n".encode() + b"J" + struct.pack("<i", count) + b"\x85R"
    return b"\x80\x02}X\x06\x00\x00\x00weight" + call + b"s."


def test_a_zip_file_that_unpacks_into_gigabytes(tmp_path):
    path = repacked(tmp_path / "file.pth", {"data/0": bytes(3_000_000)}, zipfile.ZIP_DEFLATED)
    refused(path, r"has \d{4} bytes, but its parts say that they have 30\d{5}")
    with pytest.raises(CheckpointError, match=f"'{path}' has .* but its parts say"):
        read_checkpoint(path)
    packed = repacked(tmp_path / "packed.pth", {}, zipfile.ZIP_DEFLATED)  # by somebody who archives them
    assert torch.equal(read_tensor_file(packed).tensors["weight"], torch.ones(2))


@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_an_object_of_any_length(tmp_path, zipped, module):
    path, bomb = tmp_path / "file.pth", called(f"{module}.bytearray", 2_000_000_000)
    if zipped:
        repacked(path, {"data.pkl": bomb})
    else:
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + bomb)
    refused(path, "holds a bytearray, which could take any memory")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(20_000_000_000), "but its tensors say that they have 80000000008"),
        (torch.empty(3, device="meta"), "tensor 'weight' is no plain table of real numbers"),
        (torch.ones(3).to_sparse(), "tensor 'weight' is no plain table of real numbers"),
        (torch.ones(3, dtype=torch.complex64), "tensor 'weight' is no plain table of real numbers"),
    ],
    ids=["expanded", "meta", "sparse", "complex"],
)
def test_tensors_that_no_network_has(tmp_path, tensor, message):
    torch.save({"bias": torch.ones(2), "weight": tensor}, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_no_finite_numbers(tmp_path, kind, value):
    tensors = {"bias": torch.ones(2), "counter": torch.tensor(3), "head.weight": torch.tensor([1, value, 2]).to(kind)}
    torch.save({"state_dict": tensors}, tmp_path / "file.pth")
    save_file(tensors, tmp_path / "file.safetensors")
    for name in ("file.pth", "file.safetensors"):
        refused(tmp_path / name, r"tensor 'head\.weight' holds values that are no finite numbers")


@pytest.mark.timeout(30)
def test_a_table_that_holds_itself(tmp_path):
    content: dict[str, object] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", r"holds no tensors by name \(found: state_dict\)")
    content["model"] = {"weight": torch.ones(2)}
    del content["state_dict"]
    torch.save({"stcl": content, "model": content}, tmp_path / "file.pth")
    assert read_tensor_file(tmp_path / "file.pth").wrapper == "model.model"
