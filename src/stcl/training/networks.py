"""From settings to networks: untrained, with starting weights, or as a run has left them."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from stcl.errors import CheckpointError, SettingError, StclError, lacks_memory
from stcl.files.paths import from_home
from stcl.files.plain import load_yaml
from stcl.labels import LabelSpace, get_space
from stcl.methods import AdaptationMethod
from stcl.models import BACKBONES, VideoSegmenter, build_segmenter, load_weights, save_weights
from stcl.models.weights.files import OURS, read_tensor_file
from stcl.models.weights.names import load_pretrained
from stcl.models.weights.own import compare_states, shown_names
from stcl.models.weights.published import PublishedNetwork
from stcl.models.weights.recognise import label_space, recognise
from stcl.models.weights.start import transfer_weights
from stcl.protocols import SELECTION
from stcl.resources import list_weights, weights_path
from stcl.training.checking import check_settings
from stcl.training.model_folder import is_model_folder, open_model_folder
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings, TrainingSettings
from stcl.types import ClipSpec


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint of any origin, ready to segment.

    Args:
        network: in evaluation mode, on the CPU; ``network.space`` is ``space``, too.
        space: its classes.
        description: what the file was recognised as, one line for people.
        size: ``(width, height)`` px of the target frames that it was trained on, where that is known.
    """

    network: VideoSegmenter
    space: LabelSpace
    description: str
    size: tuple[int, int] | None = None


def clip_specs(settings: Settings) -> tuple[ClipSpec, ClipSpec | None]:
    """The source and the target clips that a run's method wants, known without weights; the target's has no labels."""
    with torch.device("meta"):
        method = settings.method_class(untrained(settings), settings.space, settings.seed, settings.method)
    return method.source_spec, None if method.target_spec is None else method.target_spec.without_labels()


def build_method(settings: Settings) -> AdaptationMethod:
    """The method of the settings around its network."""
    return settings.method_class(build_network(settings), settings.space, settings.seed, settings.method)


def prepare_networks(method: AdaptationMethod, training: TrainingSettings) -> None:
    """How a method's networks run in training: what is kept for the backward pass, memory format, compilation."""
    method.network.backbone.gradient_checkpointing = training.gradient_checkpointing
    if training.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.compile:
        from stcl.models.compilation import compile_network  # brings torch's compiler in, which takes seconds

        compile_network(method, dynamic=method.preparation.rescale != (1.0, 1.0))


def build_network(settings: Settings) -> VideoSegmenter:
    """The network of the settings with its starting weights; the same seed gives the same random ones."""
    setting = settings.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = untrained(settings)
    kind, _, name = (setting.weights or "").partition(":")
    if kind == "pretrained":
        load_pretrained(network.backbone, setting.backbone, name)
    elif setting.weights is not None:
        known = inspect.signature(BACKBONES[setting.backbone]).parameters
        built = {key: known[key].default for key in known} | (setting.backbone_settings or {})
        random = transfer_weights(network, resolve_weights(setting.weights), settings.space.names, built)
        mistake = settings.method.untrained_start(setting.weights)
        if len(random) == len(settings.space) and mistake:
            raise SettingError(mistake)
    return network


def resolve_weights(name: str) -> Path:
    """A path, or ``builtin:NAME`` for weights that ship with the package."""
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return weights_path(rest)
    path = from_home(name)
    if not path.exists():
        raise CheckpointError(
            f"There is no weights file '{path}' (network.weights). Give the path of a file, one that comes with the "
            f"package ({_builtin_names()}), or pretrained:NAME."
        )
    return path


def _builtin_names() -> str:
    return ", ".join(f"builtin:{known}" for known in list_weights()) or "none in this install"


def load_trained(settings: Settings, weights: Path) -> VideoSegmenter:
    """The trained network of a run, in evaluation mode."""
    if not weights.exists():
        raise CheckpointError(
            f"{weights.parent} holds no {weights.name}: its training was interrupted or is still running. Wait for it, "
            f"or go on with: stcl train --resume {weights.parent}."
        )
    network = untrained(settings)
    load_weights(network, weights)
    return network.eval()


def save_trained(network: VideoSegmenter, config: str, space: LabelSpace, path: Path) -> None:
    """Write a trained network with what :func:`open_checkpoint` has to know beside it: its run's settings as YAML."""
    metadata = {"config": config, "classes": json.dumps(space.names), "selection": SELECTION}
    save_weights(network, path, metadata)


def untrained(settings: Settings) -> VideoSegmenter:
    """The network of the settings with whatever weights it is made with."""
    setting = settings.network
    try:
        return build_segmenter(
            len(settings.space),
            setting.backbone,
            setting.head,
            setting.auxiliary,
            setting.backbone_settings,
            setting.head_settings,
            setting.fusion,
        )
    except StclError:
        raise
    except (TypeError, ValueError) as error:  # their values go to the network as they are
        raise SettingError(
            f"network.backbone_settings {setting.backbone_settings} and network.head_settings {setting.head_settings} "
            f"do not fit backbone '{setting.backbone}' and head '{setting.head}': {error}."
        ) from error
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise SettingError(
            f"The network is too large for this machine's memory: backbone '{setting.backbone}' with "
            f"network.backbone_settings {setting.backbone_settings} and network.head_settings {setting.head_settings}."
        ) from error


def open_checkpoint(path: str | Path, space: str | LabelSpace | None = None) -> OpenedModel:
    """Open a trained network, whoever trained it; docs/checkpoints.md lists what is recognised.

    Args:
        path: folder of a run, weights or checkpoint of one, a model folder, ``builtin:NAME``, or a published
            checkpoint.
        space: the classes of a published network, where their number does not say which they are; otherwise only
            compared with what the file says.

    Raises:
        CheckpointError: the file is damaged, unknown, or has no heads.
        SettingError: ``space`` is missing, unknown or has another number of classes.
    """
    model = _open(path, space)
    known, wanted = model.space, get_space(space) if isinstance(space, str) else space
    if wanted is not None and wanted.names != known.names:
        raise CheckpointError(
            f"'{path}' was trained on the classes of '{known.name}' ({', '.join(known.names)}), not on those of "
            f"'{wanted.name}' ({', '.join(wanted.names)}). Take the argument space out, or choose another file."
        )
    model.network.space = known
    model.network.eval()
    return model


def _open(path: str | Path, space: str | LabelSpace | None) -> OpenedModel:
    if Path(path).is_dir() and (Path(path) / "config.yaml").is_file():
        folder = RunFolder(Path(path))
        settings = folder.settings()
        network = load_trained(settings, folder.weights)
        return OpenedModel(network, settings.space, f"run {settings.name}", settings.target.size)
    if is_model_folder(Path(path)):
        network, classes, size = open_model_folder(Path(path))
        return OpenedModel(network, classes, "model folder", size)
    if str(path).startswith("pretrained:"):
        raise CheckpointError(
            f"'{path}' is a backbone and has no heads to segment with. It can start a training: network.weights {path}."
        )
    if not str(path).startswith("builtin:") and not from_home(path).exists():
        raise CheckpointError(
            f"There is no checkpoint '{path}'. Give the folder of a run, a model folder, a file of weights, or one "
            f"that comes with the package ({_builtin_names()})."
        )
    file = resolve_weights(str(path))
    tensors, metadata, wrapper = read_tensor_file(file)
    if "config" not in metadata:
        return _open_published(recognise(tensors, file), file, space)
    try:
        data = load_yaml(metadata["config"]) if isinstance(metadata["config"], str) else None
        if not isinstance(data, dict):
            raise SettingError("it is no table of settings")
        settings = check_settings(data, "config")
    except ValueError as error:  # a SettingError is one, too
        raise CheckpointError(
            f"'{file}' has a configuration in its metadata that is not one of this version of 'stcl train' "
            f"({' '.join(str(error).split())}). Was it written by another program, or by another version? Save the "
            "tensors alone to have them recognised by their names."
        ) from None
    network = untrained(settings)
    differences = compare_states(tensors, network.state_dict())
    if differences:
        raise CheckpointError(f"'{file}' does not fit the network of its own configuration: {'; '.join(differences)}.")
    network.load_state_dict(tensors)
    kind = "checkpoint" if wrapper == OURS else "weights"
    return OpenedModel(network, settings.space, f"{kind} of run {settings.name}", settings.target.size)


def _open_published(published: PublishedNetwork, path: Path, space: str | LabelSpace | None) -> OpenedModel:
    if published.head is None or published.classes is None:
        rest = f" Left aside: {shown_names([*published.left_out])}." if published.left_out else ""
        raise CheckpointError(
            f"'{path}' is a backbone, {published.title}, and has no heads to segment with.{rest} It can start a "
            f"training: network.weights, with network.backbone {published.backbone}."
        )
    classes = label_space(published, path, space)
    network = build_segmenter(
        published.classes,
        published.backbone,
        published.head,
        published.auxiliary,
        published.backbone_settings,
        fusion=published.fusion,
    )
    differences = compare_states(published.tensors, network.state_dict())
    if differences:
        raise CheckpointError(
            f"'{path}' was recognised as {published.title}, but is not quite one: {'; '.join(differences)}. Is it "
            "whole, and of the published code?"
        )
    network.load_state_dict(published.tensors)
    return OpenedModel(network, classes, published.title)
