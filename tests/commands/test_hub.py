"""Handing models on and fetching them: local folders for real, the Hugging Face hub through a stand-in."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

import stcl
from stcl.cli import main
from stcl.commands.hub import run as hub
from stcl.errors import CheckpointError, MissingExtraError, SettingError
from stcl.training.model_folder import digest

PARTS = {"model.safetensors", "model.json", "README.md"}


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    stcl.export(trained, out, license="cc-by-4.0", quiet=True)
    return out


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


# ---- local folders ----


def test_push_and_pull_through_a_folder_and_a_url(model, tmp_path, capsys):
    place = tmp_path / "shared place" / "model"
    assert main(["push", str(model), str(place)]) == 0
    assert main(["pull", place.as_uri(), "--out", str(tmp_path / "mine")]) == 0
    assert f"Model: {tmp_path / 'mine'}" in capsys.readouterr().out
    assert contents(tmp_path / "mine") == contents(place) == contents(model)
    assert main(["pull", str(place), "--out", str(tmp_path / "mine")]) == 2
    assert "mine holds a model. Choose another folder, or replace it with --force." in capsys.readouterr().err
    assert main(["pull", str(place), "--out", str(tmp_path / "mine"), "--force"]) == 0
    with pytest.raises(SettingError, match="holds a model"):
        stcl.push(model, str(place))


def test_every_file_is_compared_with_its_digest(model, tmp_path):
    place = Path(shutil.copytree(model, tmp_path / "place"))
    (place / ".gitattributes").touch()
    assert names(stcl.pull(str(place), tmp_path / "one")) == PARTS
    for name, hint in (
        ("model.safetensors", ""),
        ("README.md", " If it was you who changed it, write [0-9a-f]{64} there"),
    ):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(b"something else")
        for use in (lambda: stcl.pull(str(place), tmp_path / "two"), lambda: stcl.push(place, str(tmp_path / "two"))):
            with pytest.raises(CheckpointError, match=rf"{name} is damaged: its sha256 is not the one.*again\.{hint}"):
                use()
        (place / name).write_bytes(whole)
    assert names(tmp_path) == {"place", "one", *(f"one/{part}" for part in PARTS)} | {
        f"place/{part}" for part in [*PARTS, ".gitattributes"]
    }


def test_a_card_of_ones_own_and_an_older_model(model, tmp_path):
    """Models of before the card had a digest; and a card that was changed, with its new digest."""
    place = Path(shutil.copytree(model, tmp_path / "place"))
    (place / "README.md").write_text("# Mine")
    about = json.loads((place / "model.json").read_text())
    about["card"]["sha256"] = digest(place / "README.md")
    (place / "model.json").write_text(json.dumps(about))
    assert (stcl.pull(str(place), tmp_path / "one") / "README.md").read_text() == "# Mine"
    del about["card"]
    (place / "model.json").write_text(json.dumps(about))
    assert names(stcl.pull(str(place), tmp_path / "two")) == PARTS
    (place / "README.md").unlink()
    assert names(stcl.pull(str(place), tmp_path / "three")) == PARTS - {"README.md"}


@pytest.mark.parametrize("name", sorted(PARTS))
@pytest.mark.parametrize("listed", [True, False], ids=["card listed", "card not listed"])
def test_no_link_is_followed(model, fake, tmp_path, name, listed):
    place, private = Path(shutil.copytree(model, tmp_path / "place")), tmp_path / "private"
    if not listed:
        about = json.loads((place / "model.json").read_text())
        del about["card"]
        (place / "model.json").write_text(json.dumps(about))
    (place / name).rename(private)
    (place / name).symlink_to(private)
    for use in (
        lambda: stcl.pull(str(place), tmp_path / "out"),
        lambda: stcl.push(place, str(tmp_path / "out")),
        lambda: stcl.push(place, "me/streets"),
        lambda: stcl.load_model(place),
    ):
        with pytest.raises(
            CheckpointError, match=rf"place/{name} is a link to {private}\. A model is handed on as its"
        ):
            use()
    assert not (tmp_path / "out").exists() and not fake.asked


@pytest.mark.parametrize("kind", ["link to a folder", "folder", "pipe"])
def test_nothing_but_files_is_in_a_model(model, tmp_path, kind):
    place = Path(shutil.copytree(model, tmp_path / "place"))
    if kind == "pipe":
        (place / "README.md").unlink()
        os.mkfifo(place / "README.md")
    elif kind == "folder":
        (place / "more").mkdir()
    else:
        (place / "more").symlink_to(tmp_path)
    message = r"README\.md cannot be read: it is a named pipe" if kind == "pipe" else "does not have: more/"
    for use in (lambda: stcl.pull(str(place), tmp_path / "out"), lambda: stcl.push(place, str(tmp_path / "out"))):
        with pytest.raises(CheckpointError, match=message):
            use()
    assert not (tmp_path / "out").exists()


def test_the_cache_of_the_hub_is_made_of_links(model, tmp_path):
    snapshot, blobs = tmp_path / "models--me--a" / "snapshots" / "c0ffee", tmp_path / "models--me--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in PARTS:
        shutil.copy(model / name, blobs / digest(model / name))
        (snapshot / name).symlink_to(f"../../blobs/{digest(model / name)}")
    assert contents(stcl.pull(str(snapshot), tmp_path / "out")) == contents(model)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert stcl.load_model(snapshot)
    (tmp_path / "private").write_text("secret")
    blob = blobs / digest(model / "README.md")
    blob.unlink()
    blob.symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match=r"README\.md is a link to \.\./\.\./blobs/"):
        stcl.pull(str(snapshot), tmp_path / "two")


def test_what_git_and_the_downloader_keep_is_no_part_of_it(model, tmp_path):
    place = Path(shutil.copytree(model, tmp_path / "clone"))
    for folder in (".git", ".cache"):
        (place / folder / "notes").mkdir(parents=True)
        (place / folder / "notes" / "extra.pkl").write_bytes(b"")
    assert stcl.load_model(place)
    assert names(stcl.pull(str(place), tmp_path / "one")) == PARTS


def test_pickles_are_refused(model, tmp_path):
    place = Path(shutil.copytree(model, tmp_path / "place"))
    (place / "sub").mkdir()
    (place / "sub" / "extra.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"does not have: sub/\. Nothing was copied"):
        stcl.pull(str(place), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pull", "./nowhere", "--out", "out"), "There is no folder nowhere. Models of the hub are named owner/name."),
        (("pull", "nowhere", "--out", "out"), "'nowhere' is no repository: expected owner/name on the hub, or a local"),
        (
            ("pull", "model", "--out", "out"),
            "'model' could be a folder or a repository of the hub. For the folder: ./m",
        ),
        (("pull", "./model", "--out", "out", "--revision", "v1"), "has no revisions: leave --revision out"),
        (("push", "model", "./copy", "--private"), "--private and --revision are for the hub"),
        (("push", "empty", "./copy"), "empty is no model folder: it holds no model.json"),
        (
            ("push", "unlicensed", "./copy"),
            "does not say under which licence its weights are. Export it again with --l",
        ),
        (("pull", "./model", "--out", "full"), "full exists and is no model folder: it stays as it is."),
    ],
)
def test_wrong_words(model, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    about = json.loads(Path("model/model.json").read_text())
    shutil.copytree(model, "unlicensed")
    Path("unlicensed/model.json").write_text(json.dumps({**about, "license": "unspecified"}))
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert main([*words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists() and not Path("copy").exists()


# ---- the hub ----


class Hub:
    """What the tests need of the hub: one repository as a folder, and a record of what was asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.problem = root, [], None

    def __call__(self, **_: Any) -> "Hub":
        return self

    def answer(self, verb: str, **details: Any) -> None:
        self.asked.append((verb, details))
        if self.problem is not None:
            raise self.problem

    def create_repo(self, repo_id: str, **details: Any) -> None:
        self.answer("create_repo", repo_id=repo_id, **details)

    def create_branch(self, repo_id: str, **details: Any) -> None:
        self.answer("create_branch", repo_id=repo_id, **details)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **details: Any) -> None:
        self.answer("upload_folder", **details)
        self.root.mkdir(exist_ok=True)
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.root)

    def model_info(self, repo_id: str, **details: Any) -> SimpleNamespace:
        self.answer("model_info", repo_id=repo_id, **details)
        files = [SimpleNamespace(rfilename=name) for name in names(self.root)]
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(self, repo_id: str, local_dir: Path, allow_patterns: list[str], **details: Any) -> None:
        self.answer("snapshot_download", repo_id=repo_id, files=allow_patterns, **details)
        (local_dir / ".cache").mkdir(exist_ok=True)
        (local_dir / ".cache" / "notes").touch()
        for name in allow_patterns:
            shutil.copy(self.root / name, local_dir)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return stand_in


def test_push_and_pull_through_the_hub(model, fake, tmp_path):
    (model.parent / "notes.txt").touch()
    assert stcl.push(model, "me/streets", private=True, revision="v1") == "https://huggingface.co/me/streets"
    assert names(fake.root) == PARTS
    created, branched, uploaded = fake.asked
    assert created == ("create_repo", {"repo_id": "me/streets", "private": True, "exist_ok": True, "token": "hf_token"})
    assert branched[1]["branch"] == "v1" and uploaded[1]["revision"] == "v1" and uploaded[1]["repo_id"] == "me/streets"
    fake.asked.clear()
    (fake.root / ".gitattributes").touch()
    assert stcl.pull("me/streets", tmp_path / "mine", revision="v1") == tmp_path / "mine"
    assert contents(tmp_path / "mine") == contents(model)
    assert [verb for verb, _ in fake.asked] == ["model_info", "snapshot_download", "snapshot_download"]
    assert fake.asked[0][1]["revision"] == "v1"
    assert {details["revision"] for _, details in fake.asked[1:]} == {
        "c0ffee"
    }  # one commit, whatever happens meanwhile


def test_a_repository_with_other_files_is_not_downloaded(model, fake, tmp_path):
    stcl.push(model, "me/streets")
    (fake.root / "pytorch_model.bin").touch()
    fake.asked.clear()
    with pytest.raises(
        CheckpointError, match=r"Repository me/streets holds files .* does not have: pytorch_model\.bin"
    ):
        stcl.pull("me/streets", tmp_path / "mine")
    assert [details.get("files") for _, details in fake.asked] == [None, ["model.json"]]
    (fake.root / "model.json").unlink()
    with pytest.raises(SettingError, match=r"Repository me/streets holds no model\.json: it is no model of stcl"):
        stcl.pull("me/streets", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/api"))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            RepositoryNotFoundError("404", response=response(404)),
            r"has no repository me/streets, or it is private\. Log in",
        ),
        (RevisionNotFoundError("404", response=response(404)), "Repository me/streets has no such revision"),
        (
            HfHubHTTPError("Forbidden", response=response(403)),
            r"refused \(Forbidden\)\. Log in .* may write to me/stre",
        ),
        (HfHubHTTPError("Busy", response=response(503)), r"The hub refused \(Busy\)\. Try again later"),
        (HFValidationError("too long"), r"does not allow this name \(too long\)"),
        (httpx2.ConnectError("no route"), r"The hub cannot be reached \(no route\)"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(model, fake, tmp_path, problem, message):
    fake.problem = problem
    for ask in (lambda: stcl.push(model, "me/streets"), lambda: stcl.pull("me/streets", tmp_path / "mine")):
        with pytest.raises(SettingError, match=message):
            ask()


def test_without_a_token_there_is_a_way_to_one(model, fake, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingError, match=r"needs a token .* Log in with 'hf auth login', or set HF_TOKEN"):
        stcl.push(model, "me/streets")
    assert not fake.asked


def test_without_the_package(model, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'huggingface_hub'\. .* pip install 'stcl\[hub\]'"):
        stcl.push(model, "me/streets")
