"""What the towers of Hugging Face transformers read: images as their image processor makes them, texts as token ids."""

import math
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

import transformers
from PIL.Image import Resampling
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Lambda, Normalize, Resize, ToTensor

from amp.errors import UserError
from amp.settings.model import ModelSettings, TransformSettings
from amp.towers.base import first_line, quiet


def preprocessing(
    settings: ModelSettings, side: int, statistics: tuple[list[float], list[float]], any_size: bool
) -> dict[str, Any]:
    """`{size, mean, std, interpolation, resize, squash}`: as the image processor beside the model says.

    Args:
        side: the model's image size in pixels; it holds unless the model takes `any_size`.
        statistics: the family's mean and deviation, where there is no image processor.
    """
    usual = usual_preprocessing(side, statistics)
    folder = Path(settings.name)
    if folder.is_dir() and not any(folder.glob("*processor_config.json")):
        return usual
    try:
        with quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(settings.name, trust_remote_code=False)
    except Exception as error:  # As with the config: it may hold anything.
        if not folder.is_dir() and isinstance(error, OSError):
            return usual
        raise UserError("model.name", f"{settings.name}: image processor: {first_line(error)}") from None
    own, crop = dict(processor.size), processor.crop_size or {}
    squash = own.get("height") is not None
    resize = int(own["height"] if squash else own["shortest_edge"])
    size = int(crop.get("height") or resize) if processor.do_center_crop else resize
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    interpolation = Resampling(int(processor.resample)).name.lower()
    told = {"size": size, "mean": list(mean), "std": list(std), "interpolation": interpolation}
    built = side if not any_size or "img_size" in settings.kwargs else None
    return _resized({**told, "resize": resize, "squash": squash}, built)


def usual_preprocessing(side: int, statistics: tuple[list[float], list[float]]) -> dict[str, Any]:
    """Of a model without an image processor: resized and cropped to its side."""
    mean, std = statistics
    return {"size": side, "mean": mean, "std": std, "interpolation": "bicubic", "resize": side, "squash": False}


def _resized(preprocess: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """For another input size, with the same share of the image cropped."""
    if size is None or size == preprocess["size"]:
        return dict(preprocess)
    return {**preprocess, "size": size, "resize": round(preprocess["resize"] * size / preprocess["size"])}


def override(preprocess: Mapping[str, Any], own: TransformSettings) -> dict[str, Any]:
    """`preprocess` with the user's settings in place."""
    changed = _resized(preprocess, own.input_size)
    if own.crop_pct is not None:
        changed |= {"resize": math.floor(changed["size"] / own.crop_pct), "squash": False}
    return changed | own.model_dump(mode="json", include={"interpolation", "mean", "std"}, exclude_none=True)


def transform(preprocess: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """PIL image -> (3, S, S) fp32, by torchvision."""
    side, interpolation = preprocess["resize"], InterpolationMode(preprocess["interpolation"])
    resize = Resize((side, side) if preprocess["squash"] else side, interpolation)
    normalize = Normalize(preprocess["mean"], preprocess["std"])
    return Compose(
        [Lambda(methodcaller("convert", "RGB")), resize, CenterCrop(preprocess["size"]), ToTensor(), normalize]
    )


def tokenize(name: str, config: Any) -> Callable[[list[str]], Tensor]:
    """texts -> ids (N, context), by the tokenizer beside the model; its files are read now.

    SigLIP and SigLIP 2 were trained on lower-case texts; files of the latter may name the tokenizer of Gemma, which
    keeps capitals. A tokenizer that says `do_lower_case: false` is left as it is.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    context = config.text_config.max_position_embeddings
    fit = {"padding": "max_length", "truncation": True, "max_length": context, "return_tensors": "pt"}
    lower = config.model_type == "siglip" and tokenizer.init_kwargs.get("do_lower_case", True)

    def read(texts: list[str]) -> Tensor:
        ids_NT: Tensor = tokenizer([text.lower() for text in texts] if lower else texts, **fit).input_ids
        return ids_NT

    return read
