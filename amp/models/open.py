"""Models from what a user names: a library's name, a folder of ours, a published checkpoint."""

from dataclasses import replace
from pathlib import Path

from amp.errors import UserError, under
from amp.models.folder import FORMAT, FolderConfig, check_readable, is_model_folder, load_tower, read_folder_config
from amp.models.published import is_published, load_published, outside_tower
from amp.registry import FRAMES
from amp.run.files import file_sha256
from amp.settings.base import Precision
from amp.settings.model import Frame, ModelSettings
from amp.towers import Tower, build_tower, default_frame, known_weights, knows


def open_tower(
    name: str | None,
    frame: Frame | None = None,
    pretrained: str | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    text_pretrained: str | None = None,
    img_size: int | None = None,
    shapes: Tower | None = None,
) -> Tower:
    """A dense or a pruned model from what a user types: `--model NAME|JSON|FOLDER --pretrained TAG|FILE|FOLDER`.

    Args:
        img_size: side of a dense model's images in pixels; None: the model's own. That of a folder is fixed.
        shapes: the dense model on the meta device, where it is at hand.
        text_pretrained: weights of the dense model, whose text tower a published vision checkpoint goes with.
    Raises:
        UserError: neither is known, or a folder does not belong to the model named beside it.
    """
    for path in (pretrained, name):
        check_readable(path)
    check_no_part(pretrained)
    folder = next((p for p in (pretrained, name) if is_model_folder(p)), None)
    if folder is None:
        settings = _dense_settings(name, frame, pretrained, precision, img_size)
        return open_dense(settings, text_pretrained, device, shapes)
    if folder == name and pretrained not in (None, name):
        raise UserError(
            "--pretrained", f"{pretrained}: not allowed, because {name} is a pruned model with its own weights"
        )
    tower = load_tower(folder, device, precision)
    if img_size not in (None, tower.image_size):
        raise UserError(
            "--img_size",
            f"{img_size}: {folder} has the fixed image size {tower.image_size}: leave --img_size out; for another size "
            "score and prune the dense model with model.kwargs: {img_size: ...}",
        )
    if frame not in (None, tower.base["frame"]):
        raise UserError("--model_type", f"{frame}: {folder} is a model of {tower.base['frame']}")
    if folder == pretrained and name is not None and name != pretrained:
        dense = build_tower(ModelSettings(frame=tower.base["frame"], name=name, kwargs=tower.base["kwargs"]), "meta")
        if difference := dense.difference(tower.base):
            key, own, asked = difference
            told = f"{folder} is a pruned {tower.base['name']!r}, not {name!r}"
            raise UserError("--pretrained", f"{told}: its {key} is {own!r}, not {asked!r}")
    return tower


def _dense_settings(
    name: str | None, frame: Frame | None, pretrained: str | None, precision: Precision | None, img_size: int | None
) -> ModelSettings:
    """Of the dense model that a user names. Raises UserError where no library knows it."""
    if name is None and pretrained is not None and Path(pretrained).is_dir():
        read_folder_config(pretrained)
    if name is None:
        raise UserError("--model", "missing; give a model name, an open_clip model JSON or a pruned/ folder")
    candidates = [frame] if frame else FRAMES.names
    if Path(name).is_dir() and not any(knows(candidate, name) for candidate in candidates):
        read_folder_config(name)
    frame = frame or default_frame(name, option="--model_type")
    return ModelSettings(
        frame=frame,
        name=name,
        pretrained=known_weights(pretrained, frame),
        precision=precision or "fp32",
        kwargs={} if img_size is None else {"img_size": img_size},
    )


def check_no_part(pretrained: str | None) -> None:
    """Raises UserError for a file inside of a folder of ours, which alone does not tell the widths of its blocks."""
    if pretrained is not None and Path(pretrained).is_file() and is_model_folder(str(Path(pretrained).parent)):
        raise UserError(
            "--pretrained", f"{pretrained}: is one file of a pruned model; give the folder, {Path(pretrained).parent}"
        )


def open_dense(
    settings: ModelSettings, text_pretrained: str | None = None, device: str = "cpu", shapes: Tower | None = None
) -> Tower:
    """The model of the settings; a pruned one where `settings.pretrained` is a published checkpoint.

    Args and errors: as of `open_published` and `amp.towers.build_tower`.
    """
    published = open_published(settings, text_pretrained, device, shapes)
    return published or build_tower(settings, device, shapes=shapes)


def open_published(
    settings: ModelSettings, text_pretrained: str | None = None, device: str = "cpu", shapes: Tower | None = None
) -> Tower | None:
    """The tower of the published checkpoint `settings.pretrained`; None where that is none of `settings.name`.

    Args:
        text_pretrained: tag or file of the dense model's weights; without it the text tower stays empty.
        shapes: the dense model on the meta device, with the images of these weights, where it is at hand.
    Raises:
        UserError: widths that do not belong to that model, blocks that are missing.
    """
    path, rest = settings.pretrained, None
    if path is None or device == "meta" or not Path(path).is_file():
        return None
    dense = shapes or build_tower(settings.model_copy(update={"pretrained": text_pretrained or path}), "meta")
    if not is_published(path, dense):
        return None
    if text_pretrained is not None:
        with under("--text_pretrained", instead_of="model.pretrained"):
            rest = outside_tower(build_tower(settings.model_copy(update={"pretrained": text_pretrained})))
    return replace(load_published(path, dense.base, rest, device), notes=dense.notes)


def check_student(path: str) -> None:
    """Raises UserError unless `path` is a file or a folder of ours: at once, before a teacher is loaded."""
    if not Path(path).is_file():
        read_folder_config(path)


def load_student(path: str, teacher: Tower) -> tuple[Tower, FolderConfig]:
    """The pruned model to distil, and what is known of it: a pruned/ folder or a published vision checkpoint.

    Args:
        teacher: the dense model, in fp32; what a published checkpoint lacks, as the text tower, is the teacher's.
    Returns:
        tower: in fp32 on the CPU.
    Raises:
        UserError: neither, or a damaged one.
    """
    if not Path(path).is_file():
        config = read_folder_config(path)
        return load_tower(path, precision="fp32", config=config), config
    tower = load_published(path, teacher.base, outside_tower(teacher))
    return tower, describe_published(tower, path)


def describe_published(tower: Tower, path: str) -> FolderConfig:
    """What a folder of a published checkpoint's tower says of itself."""
    provenance = {"published": path, "sha256": file_sha256(path)}
    return FolderConfig(
        format=FORMAT, base=dict(tower.base), widths=tuple(tower.widths), kept=None, provenance=provenance
    )
