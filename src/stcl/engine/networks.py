"""From settings to networks: untrained, with starting weights, or as a run has left them."""

from pathlib import Path

import torch

from stcl.engine.settings import Settings, TrainingSettings
from stcl.errors import CheckpointError, SettingError, StclError
from stcl.methods import AdaptationMethod
from stcl.models import VideoSegmenter, build_segmenter, load_weights
from stcl.models.transfer import transfer_weights
from stcl.resources import list_weights, weights_path


def build_method(settings: Settings) -> AdaptationMethod:
    """The method of the settings around its network."""
    return settings.method_class(
        network=build_network(settings), space=settings.space, seed=settings.seed, **settings.method
    )


def prepare_networks(method: AdaptationMethod, training: TrainingSettings) -> None:
    """How a method's networks run in training: what is kept for the backward pass, memory format, compilation."""
    method.network.backbone.gradient_checkpointing = training.gradient_checkpointing
    if training.channels_last:
        method.to(memory_format=torch.channels_last)
    if training.compile:
        from stcl.models.compilation import compile_network  # brings torch's compiler in, which takes seconds

        compile_network(method, dynamic=method.preparation.rescale != (1.0, 1.0))


def build_network(settings: Settings) -> VideoSegmenter:
    """The network of the settings with its starting weights; the same seed gives the same random ones."""
    setting = settings.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = untrained(settings)
    if setting.weights is not None:
        transfer_weights(network, resolve_weights(setting.weights), settings.space.names)
    return network


def resolve_weights(name: str) -> Path:
    """A path, or ``builtin:NAME`` for weights that ship with the package."""
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return weights_path(rest)
    path = Path(name).expanduser()
    if not path.is_file():
        builtin = ", ".join(f"builtin:{known}" for known in list_weights()) or "none in this install"
        raise CheckpointError(
            f"There is no weights file '{path}' (network.weights). Give the path of a .safetensors file, or one that "
            f"comes with the package ({builtin})."
        )
    return path


def load_trained(settings: Settings, weights: Path) -> VideoSegmenter:
    """The trained network of a run, in evaluation mode."""
    if not weights.is_file():
        raise CheckpointError(
            f"{weights.parent} holds no {weights.name}: its training was interrupted or is still running. Wait for it, "
            f"or go on with: stcl train --resume {weights.parent}."
        )
    network = untrained(settings)
    load_weights(network, weights)
    return network.eval()


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
