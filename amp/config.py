"""Typed, frozen settings: YAML -> settings. Every error names file, key, value and what is allowed.

Light on purpose: `--help` and mistakes in the settings must answer before torch is imported.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from amp.errors import UserError, nearest

Frame = Literal["open_clip"]
Precision = Literal["fp32", "bf16"]
DatasetName = Literal["coco", "imagenet1k", "imagefolder", "digit_scenes"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Base of all settings: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TransformSettings(Settings):
    input_size: Count | None = Field(None, description="side of the square input in pixels")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="centre crop / resized side")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="resize filter")
    mean: tuple[float, float, float] | None = Field(None, description="per-channel mean")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="per-channel deviation")


class ModelSettings(Settings):
    frame: Frame | None = Field(None, description="library the model comes from; also --frame")
    name: str = Field(description="the library's model name, or the path of an open_clip model JSON")
    pretrained: str | None = Field(None, description="weights: a tag of the library or a file; null: random")
    precision: Precision = Field("fp32", description="precision of the frozen weights")
    kwargs: dict[str, Any] = Field({}, description="passed to the library's factory (img_size, ...)")
    transform: TransformSettings = TransformSettings()


class DataSettings(Settings):
    name: DatasetName = Field(description="layout of the images on disk")
    root: str = Field(description="folder of the dataset")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images in one batch, over all processes")
    shuffle: bool = Field(True, description="one fixed shuffle of the images, by seed")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the shuffle and the augmentation")
    num_workers: Annotated[int, Field(ge=0)] = Field(4, description="loader workers per process")
    strict: bool = Field(False, description="stop at a broken image instead of skipping it")


class PruneDataSettings(DataSettings):
    num_samples: Count | None = Field(None, description="images to score on; null: all")
    num_val_samples: Count | None = Field(None, description="held-out images to search on; null: all")

    @model_validator(mode="after")
    def _samples_fill_a_batch(self) -> "PruneDataSettings":
        for key in ("num_samples", "num_val_samples"):
            value = getattr(self, key)
            if value is not None and value < self.batch_size:
                raise ValueError(f"{key} {value} is less than one batch of batch_size {self.batch_size}")
        return self


class ScoreSettings(Settings):
    criterion: Literal["entropy", "random"] = Field("entropy", description="what ranks the neurons")
    inverse_temperature: Positive = Field(15.0, description="factor on the similarities in the entropy")
    absolute: bool = Field(True, description="absolute value per image before the mean")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the criterion 'random'")


class SearchSettings(Settings):
    entropy_increase: Share = Field(1.0e-2, description="entropy a block may add, in nats")
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(6, description="probes per block")
    widths: tuple[Count, ...] | None = Field(None, description="one width a block; skips the search")


class OutputSettings(Settings):
    dir: str = Field(description="folder of the run")


class PruneConfig(Settings):
    """Settings of main_score.py and main_prune.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    prune: SearchSettings = SearchSettings()
    output: OutputSettings

    def with_frame(self, frame: Frame) -> "PruneConfig":
        """The same settings with `model.frame` filled in where it was left open."""
        return self.model_copy(update={"model": self.model.model_copy(update={"frame": self.model.frame or frame})})


class TeacherSettings(Settings):
    frame: Frame | None = Field(None, description="library the model comes from; also --frame")
    name: str = Field(description="the library's model name, or the path of an open_clip model JSON")
    pretrained: str | None = Field(None, description="weights: a tag of the library or a file; null: random")
    kwargs: dict[str, Any] = Field({}, description="passed to the library's factory (img_size, ...)")

    def as_model(self, precision: Precision) -> ModelSettings:
        """The dense model to build, frozen, in `precision`."""
        own = self.model_dump()
        return ModelSettings(**own, precision=precision)


class StudentSettings(Settings):
    pretrained: str = Field(description="a pruned/ folder")


class DistillDataSettings(DataSettings):
    augment: Literal["clip", "dinov2", "none"] = Field("clip", description="augmentation recipe")


class OptimSettings(Settings):
    base_lr: Positive = Field(description="learning rate at a global batch of 256")
    min_lr: Share = Field(description="learning rate at the end, not scaled with the batch")
    epochs: Count = Field(description="passes over the images")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(1, description="epochs of linear warm-up from 0")
    weight_decay: Share = Field(0.04, description="weight decay at the start")
    weight_decay_end: Share = Field(0.2, description="weight decay at the end (cosine)")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW betas"
    )
    precision: Literal["fp32", "bf16", "pure_bf16"] = Field(
        "fp32", description="bf16: autocast; pure_bf16: weights and moments too, Kahan-summed"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "OptimSettings":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        return self


class DistillOutputSettings(OutputSettings):
    save_every: Count = Field(500, description="steps between resumable checkpoints")
    log_every: Count = Field(10, description="steps between TensorBoard points")


class DistillConfig(Settings):
    """Settings of distill.py."""

    teacher: TeacherSettings
    student: StudentSettings
    data: DistillDataSettings
    optim: OptimSettings
    output: DistillOutputSettings


Config = TypeVar("Config", PruneConfig, DistillConfig)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-2 as a string and keeps the last of two equal keys; users mean neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if str(key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_args(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Reads --config_file, --frame and --set of an entry script. Raises UserError; --help exits with 0."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="settings (YAML, or --set key.path=value):\n" + settings_help(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", required=True, metavar="YAML", help="settings of the run (required)")
    parser.add_argument(
        "--frame", choices=get_args(Frame), help="library of the model (default: the YAML's, else open_clip)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, repeatable"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    base = "teacher" if config_class is DistillConfig else "model"
    frame: list[str] = [f"{base}.frame={args.frame}"] if args.frame else []
    return load_config(config_class, args.config_file, [*args.set, *frame])


def load_config(config_class: type[Config], config_file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Settings from a YAML file, with 'key.path=value' overrides. Raises UserError."""
    raw = _read_yaml(Path(config_file))
    overridden: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected key.path=value, for example --set data.batch_size=64")
        _set_path(raw, key, _parse_value(override, text))
        overridden.add(key)
    try:
        # Through JSON, since strict types accept a list for a tuple only there.
        return config_class.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise UserError(_explain(error, config_class, str(config_file), overridden)) from None


def settings_help(config_class: type[BaseModel], prefix: str = "") -> str:
    """One line for every setting: key path, default, meaning."""
    lines = []
    for key, field in config_class.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines.append(settings_help(kind, f"{prefix}{key}."))
            continue
        default = "required" if field.is_required() else f"default {_as_yaml(field.default)}"
        lines.append(f"  {prefix + key:<28} {field.description} ({default})")
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    return json.dumps(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(p) for p in Path("configs").glob("**/*.yaml")]
        raise UserError(f"{path}: no such file{nearest(str(path), siblings)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}:{where} not a YAML file: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected settings as 'key: value' lines, found {type(raw).__name__}")
    return raw


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not YAML") from None


def _set_path(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if raw.get(parent) is None:
            raw[parent] = {}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise UserError(f"--set {key}: {parent!r} is a value, not a group of settings")
    raw[last] = value


def _explain(error: ValidationError, config_class: type[BaseModel], file: str, overridden: set[str]) -> str:
    problem, *others = error.errors()
    key = ".".join(str(part) for part in problem["loc"])
    own = [o for o in overridden if f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.")]
    source = f"--set {key}" if own else f"{file}: {key}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        group: Any = config_class
        for part in problem["loc"][:-1]:
            group = group.model_fields[part].annotation
        known = list(group.model_fields)
        text = f"unknown key{nearest(str(problem['loc'][-1]), known)} (known: {', '.join(known)})"
    elif problem["type"] == "missing":
        text = "missing, and it has no default"
    elif problem["type"] == "value_error":
        text = message
    else:
        text = f"{json.dumps(problem['input'], default=str)} is not allowed: {message[0].lower() + message[1:]}"
    more = f" (and {len(others)} more mistakes)" if others else ""
    return f"{source}: {text}{more}"
