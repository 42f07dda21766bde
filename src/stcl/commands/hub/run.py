"""Hand a model folder on and fetch one: the Hugging Face hub, or a folder that takes its place.

What is fetched is data: a repository with any file that a model does not have is refused before it is downloaded, and
every file must have the digest that ``model.json`` lists.
"""

import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stcl.errors import MissingExtraError, SettingError
from stcl.files.places import local_path
from stcl.training.model_folder import (
    ABOUT,
    CARD,
    UNSPECIFIED,
    check_files,
    listed_files,
    new_model_folder,
    own_file,
    read_about,
    refuse_taken,
    refuse_unknown,
)

LOG_IN = "Log in with 'hf auth login', or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"


def push(folder: Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a model folder; returns where it is now.

    Args:
        folder: that :func:`stcl.commands.export.run.export_run` wrote, with a licence.
        repository: ``owner/name`` on the hub; or a new local folder: ``./place``, an absolute path or a ``file:`` URL.
        private: make the repository a private one, if it is new.
        revision: branch to upload to; made if it is not there.
    """
    about = read_about(folder)
    check_files(folder, about)
    if about["license"] == UNSPECIFIED:
        raise SettingError(
            f"{folder} does not say under which licence its weights are. Export it again with --license, e.g. "
            "--license cc-by-4.0; mind the terms of the data that it was trained on."
        )
    local = _local_folder(repository)
    if local is not None:
        if private or revision:
            raise SettingError(
                f"{repository} is a local folder: --private and --revision are for the hub. Leave them out."
            )
        refuse_taken(local, force=False)
        _copy(folder, local, force=False)
        return str(local)
    api = _api()
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise SettingError(f"Uploading {repository} needs a token of the Hugging Face hub; there is none. {LOG_IN}.")
    with _plain_errors(repository):
        api.create_repo(repository, private=private, exist_ok=True, token=token)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True, token=token)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            allow_patterns=_files(about),
            commit_message=f"stcl model '{about.get('name', folder.name)}', format {about['format']}",
            token=token,
        )
    return f"https://huggingface.co/{repository}"


def pull(repository: str, out: Path, revision: str | None = None, force: bool = False) -> Path:
    """Fetch a model into a new folder, whole and checked or not at all; returns the folder.

    Args:
        repository: as for :func:`push`.
        out: new folder; with ``force`` an earlier model in it is replaced.
        revision: branch, tag or commit.
        force: replace a model folder.
    """
    refuse_taken(out, force)
    local = _local_folder(repository)
    if local is not None:
        if revision:
            raise SettingError(f"{repository} is a local folder and has no revisions: leave --revision out.")
        if not local.is_dir():
            raise SettingError(f"There is no folder {local}. Models of the hub are named owner/name.")
        _copy(local, out, force)
        return out
    api = _api()
    with tempfile.TemporaryDirectory(prefix="stcl-pull-") as temporary:
        download = Path(temporary)
        with _plain_errors(repository):
            info = api.model_info(repository, revision=revision)  # the commit stays the same while we look
            names = [file.rfilename for file in info.siblings or ()]
            if ABOUT not in names:
                raise SettingError(f"Repository {repository} holds no {ABOUT}: it is no model of stcl.")
            api.snapshot_download(repository, revision=info.sha, local_dir=download, allow_patterns=[ABOUT])
            about = read_about(download)
            refuse_unknown(f"Repository {repository}", about, names)
            api.snapshot_download(repository, revision=info.sha, local_dir=download, allow_patterns=_files(about))
        shutil.rmtree(download / ".cache", ignore_errors=True)  # the library's notes
        _copy(download, out, force)
    return out


def _local_folder(repository: str) -> Path | None:
    """The folder that a repository's name means, or None for one of the hub."""
    path = local_path(repository)
    if path is not None and (path.is_absolute() or repository.startswith(".")):
        return path
    if path is not None and path.is_dir():
        raise SettingError(
            f"'{repository}' could be a folder or a repository of the hub. For the folder: ./{repository}"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SettingError(
            f"'{repository}' is no repository: expected owner/name on the hub, or a local folder as ./folder, as an "
            "absolute path or as a file: URL."
        )
    return None


def _copy(folder: Path, out: Path, force: bool) -> None:
    about = read_about(folder)
    check_files(folder, about)
    with new_model_folder(out, force) as copy:
        for name in _files(about):
            if name in listed_files(about) or (folder / name).exists():  # the card may be missing
                shutil.copyfile(own_file(folder, name), copy / name)
        check_files(copy, about)


def _files(about: dict[str, Any]) -> list[str]:
    return [*about["files"], ABOUT, CARD]


def _api() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError("The Hugging Face hub", "huggingface_hub", "hub")
    from huggingface_hub import HfApi

    return HfApi(library_name="stcl")


@contextmanager
def _plain_errors(repository: str) -> Iterator[None]:
    """One sentence for what the hub refuses."""
    from httpx2 import HTTPError  # of the hub's own client
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise SettingError(f"Repository {repository} has no such revision. Look at its branches on the hub.") from None
    except errors.RepositoryNotFoundError:
        raise SettingError(f"The hub has no repository {repository}, or it is private. {LOG_IN}.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        hint = (
            f" {LOG_IN}, and check that it may write to {repository}." if status in (401, 403) else " Try again later."
        )
        raise SettingError(f"The hub refused ({' '.join(str(error).split())[:200]}).{hint}") from None
    except errors.HFValidationError as error:
        raise SettingError(f"The hub does not allow this name ({' '.join(str(error).split())[:200]}).") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, HTTPError) as error:
        raise SettingError(f"The hub cannot be reached ({' '.join(str(error).split())[:200]}).") from None
