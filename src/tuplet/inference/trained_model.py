"""A trained network as it lies on disk, a run's folder or a saved model, and how it wants its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError

from tuplet.config import DataConfig, RunConfig
from tuplet.errors import InputError
from tuplet.inference.preparation import prepared_as
from tuplet.models.embedder import Embedder
from tuplet.training.run_folder import Run


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, and what is known of how it came about.

    Attributes:
        network: on the CPU, ready to embed.
        config: how it wants its images.
        run: the run that trained it; None where nobody knows.
        has_images: whether the run's own images can be measured, which is so for a run's folder.
    """

    network: Embedder
    config: RunConfig
    run: Run | None
    has_images: bool


def open_model(folder: Path) -> TrainedModel:
    """The trained network in a folder.

    Args:
        folder: of a run, or one that `Embedder.save_pretrained` or `tuplet export --to hub` wrote, such as
            RUN/model. Where no run is above it, it wants images as its preprocessing.json says, or, without
            one, of the size that its backbone was pretrained with.

    Raises:
        InputError: neither of them is in the folder, or it cannot be read.
    """
    if (folder / "config.yaml").is_file():
        run = Run(folder)
        return TrainedModel(run.embedder(), run.config, run, has_images=True)
    if not ((folder / CONFIG_NAME).is_file() and (folder / SAFETENSORS_SINGLE_FILE).is_file()):
        raise InputError(
            f"{folder} holds neither a run (config.yaml) nor a saved model ({CONFIG_NAME} and"
            f" {SAFETENSORS_SINGLE_FILE}); want the folder of one of them"
        )
    try:
        network = Embedder.from_pretrained(str(folder))
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be read as a saved model ({' '.join(str(error).split())[:200]}); want a folder"
            " that Embedder.save_pretrained wrote"
        ) from None
    above = folder.resolve().parent
    if (above / "config.yaml").is_file() and Run(above).model_folder == folder.resolve():
        return TrainedModel(network, Run(above).config, Run(above), has_images=False)
    side = int(network.backbone.pretrained_cfg["input_size"][-1])
    data = prepared_as(DataConfig(image_size=side, resize=round(side * 256 / 224)), folder)
    return TrainedModel(network, RunConfig(data=data), None, has_images=False)
