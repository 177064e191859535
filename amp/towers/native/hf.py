"""What transformers reads of a pruned model's folder, and what a sliced model's own config says.

Widths that are all the same are said in the family's own words. No vision model of transformers reads a width for
each layer, and `per_layer_config` is not read by any either: then the config says `mlp_widths`, where heads are gone
`attention_heads`, and `modeling_pruned.py` beside it reads them. The plain class builds the dense model, whose shapes
the weights do not have: it raises.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load
from PIL.Image import Resampling
from transformers.models.auto import modeling_auto

from amp.errors import UserError
from amp.towers.base import Tower, quiet
from amp.towers.frames._hf_inputs import tokenize
from amp.towers.frames._tokenizer import Tokenizer
from amp.towers.library import FOLDER, Files, Native, or_heads, path_of_blocks, resizing, same_shapes

WIDTHS, HEADS = "mlp_widths", "attention_heads"
INSTEAD = "use amp.save(model, folder), which also writes a README that tells how transformers loads the model"
MODELING = "modeling_pruned"
# What stands beside a model for its images, its texts and what it generates.
COPIED: tuple[str, ...] = ("*processor_config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json")
COPIED += ("added_tokens.json", "chat_template.*", "vocab.*", "merges.txt", "*.model")


def settle(tower: Tower) -> None:
    """The model's own config says the widths that it is sliced to, so that `save_pretrained` writes them."""
    config: Any = tower.model.config
    vision: Any = tower.visual.config
    alike = {id(own): own for own in _configs(tower) if _plain(own) is _plain(vision)}
    said = next((own for own in _candidates(tower, vision) if _builds(tower, config, own)), None)
    for own in alike.values():
        _forget(own)
        for key, value in (_by_block(tower) if said is None else said).items():
            setattr(own, key, value)
    for own in (config, *alike.values()):
        own.__class__ = _plain(own) if said is not None else _unsaved(_plain(own))


def _by_block(tower: Tower) -> dict[str, list[int]]:
    """What no config of a family's own says."""
    return {WIDTHS: list(tower.widths)} | ({HEADS: tower.num_heads} if tower.heads else {})


def _forget(config: Any) -> None:
    for key in (WIDTHS, HEADS):
        vars(config).pop(key, None)


class Unsaved:
    """Of a config whose class cannot say the widths: the plain class would not read what `save_pretrained` writes."""

    def save_pretrained(self, *inputs: Any, **named: Any) -> None:
        """Raises UserError."""
        name = _plain(self).__name__
        raise UserError("save_pretrained", f"a {name} cannot record widths that differ between blocks; {INSTEAD}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_plain(self), dict(vars(self)))


@cache
def _unsaved(kind: type) -> type:
    """The class of a config, but that it is not saved."""
    return type(kind.__name__, (Unsaved, kind), {"__module__": kind.__module__})


def _plain(config: Any) -> type:
    """The class of a config as transformers has it."""
    kind = type(config)
    return kind.__mro__[2] if issubclass(kind, Unsaved) else kind


def _restored(kind: type, values: dict[str, Any]) -> Any:
    """A copy, or what a pickle holds."""
    config: Any = object.__new__(_unsaved(kind))
    vars(config).update(values)
    return config


def _configs(tower: Tower) -> Iterator[Any]:
    for module in tower.model.modules():
        own = getattr(module, "config", None)
        yield from (own, getattr(own, "vision_config", None))


def _candidates(tower: Tower, vision: Any) -> Iterator[dict[str, int]]:
    """Ways to say one width for all blocks."""
    yield {}
    if len(set(tower.widths)) > 1:
        return
    (width,), wide = set(tower.widths), tower.slots[0].out_projection.out_features
    if hasattr(vision, "intermediate_size"):
        yield {"intermediate_size": width}
    elif hasattr(vision, "mlp_ratio"):
        # Of DINOv2, a whole number; of its gated MLPs two thirds are left, rounded up to a multiple of 8.
        yield from ({"mlp_ratio": ratio} for ratio in {width // wide, 3 * width // (2 * wide)} if ratio)


def _builds(tower: Tower, config: Any, said: Mapping[str, int]) -> bool:
    """Whether the class builds a model of the tower's shapes from its config with these values."""
    own = copy.deepcopy(config)
    vision = getattr(own, "vision_config", own)
    _forget(vision)
    for key, value in said.items():
        setattr(vision, key, value)
    kind: Any = type(tower.model)
    with quiet(), torch.device("meta"):
        return same_shapes(kind._from_config(own), tower.model)


def files(tower: Tower) -> Files:
    """The files of a settled tower."""
    model: Any = tower.model
    kind = type(model).__name__
    values = json.loads(model.config.to_json_string())
    for key in ("auto_map", "_name_or_path"):
        values.pop(key, None)
    values |= {"architectures": [kind], "dtype": str(tower.dtype).removeprefix("torch.")}
    source = Path(tower.base["name"])
    copied = [path for pattern in COPIED for path in sorted(source.glob(pattern)) if _is_plain(path)]
    own = {"config.json": values}
    changed = any(
        value is not None for value in (*tower.base["transform"].values(), tower.base["kwargs"].get("img_size"))
    )
    if changed or not any(path.match("*processor_config.json") for path in copied):
        copied = [path for path in copied if not path.match("*processor_config.json")]
        own["preprocessor_config.json"] = _image_processor(tower.preprocess)
    texts, trust, autos = {}, "", [name for name, _ in _autos(model)]
    if hasattr(tower.visual.config, WIDTHS):
        classes = _classes(tower)
        values["auto_map"] = {auto: f"{MODELING}.Pruned{name}" for auto, (name, _) in classes.items()}
        texts[f"{MODELING}.py"] = _modeling(tower, dict(classes.values()))
        trust, autos = ", trust_remote_code=True", [auto for auto, (name, _) in classes.items() if name == kind]
    own_class = (
        f"`{MODELING}.py` builds the class with these MLP widths{or_heads(tower)}, which a config cannot record:"
    )
    why = own_class if trust else ""
    return Files("transformers", why, _loading(autos[0] if autos else kind, trust), own, texts, copied, alone=True)


def _loading(name: str, trust: str) -> str:
    code = [
        "import transformers",
        "",
        f'folder = "{FOLDER}"',
        f"model = transformers.{name}.from_pretrained(folder{trust})",
        "processor = transformers.AutoImageProcessor.from_pretrained(folder)",
    ]
    return "\n".join(code)


def _is_plain(path: Path) -> bool:
    """A file, without names of code to run."""
    return path.is_file() and (path.suffix != ".json" or b"auto_map" not in path.read_bytes())


def _image_processor(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    side, size = preprocess["resize"], preprocess["size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if preprocess["squash"] else {"shortest_edge": side},
        "resample": int(Resampling[preprocess["interpolation"].upper()]),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def _autos(model: Any) -> Iterator[tuple[str, str]]:
    """(auto class, class) of those that give this model's class for its config."""
    for name, auto in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto, "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and _plain(model.config) in mapping:
            found = mapping[_plain(model.config)]
            names = [own.__name__ for own in (found if isinstance(found, (list, tuple)) else [found])]
            if type(model).__name__ in names:
                yield name, type(model).__name__


def _classes(tower: Tower) -> dict[str, tuple[str, str]]:
    """(class, path of its blocks) by the auto class that gives it: this model's, and the one below its head."""
    model: Any = tower.model
    path, prefix = path_of_blocks(tower), f"{model.base_model_prefix}."
    own = {auto: (name, path) for auto, name in _autos(model)}
    if not own:
        return {"AutoModel": (type(model).__name__, path)}
    if "AutoModel" not in own and path.startswith(prefix):
        below = dict(_autos(model.base_model)).get("AutoModel")
        own |= {"AutoModel": (below, path.removeprefix(prefix))} if below else {}
    return own


def _modeling(tower: Tower, blocks: Mapping[str, str]) -> str:
    lines = resizing(tower, "self.get_submodule(self.blocks)", f"vision.{WIDTHS}", f"vision.{HEADS}")
    parts = [
        '"""Classes of transformers whose MLPs have the widths that config.json lists, one per block: `mlp_widths`.\n\n'
        "Use them with `from_pretrained(folder, trust_remote_code=True)`. Everything else is as in transformers.\n"
        '"""\n\n'
        "import transformers\n"
        "from torch import nn\n",
        "class Pruned:\n"
        '    """Gives the MLPs of the blocks their widths, before the weights are loaded."""\n\n'
        "    def __init__(self, config, *args, **kwargs):\n"
        "        super().__init__(config, *args, **kwargs)\n"
        '        vision = getattr(config, "vision_config", config)\n'
        + "".join(f"        {line}\n" for line in lines).rstrip("\n"),
    ]
    parts += [
        f'class Pruned{name}(Pruned, transformers.{name}):\n    blocks = "{path}"'
        for name, path in sorted(blocks.items())
    ]
    return "\n\n".join(part if number == 0 else f"{part}\n" for number, part in enumerate(parts))


def beside(tower: Tower, folder: Path) -> Tower:
    """Its tokenizer is the folder's, which is there when the dense model is not."""
    if tower.encode_text is None or not any(folder.glob("tokenizer*")):
        return tower
    config: Any = tower.model.config
    text = config.text_config
    read = partial(tokenize, str(folder), config)
    own = Tokenizer(str(folder), read, text.max_position_embeddings, text.vocab_size)
    return replace(tower, make_tokenizer=lambda: own)


def origin(base: Mapping[str, Any], pretrained: str | None) -> dict[str, str]:
    """Of a hub id, or of a local folder by the model card in it, if that can be read."""
    name = pretrained or base["name"]
    card = Path(name) / "README.md"
    if not Path(name).is_dir():
        return {"base_model": name} if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else {}
    try:
        known = (metadata_load(card) if card.is_file() else None) or {}
    except Exception:  # A README may hold anything.
        known = {}
    return {key: str(known[key]) for key in ("license", "license_name", "license_link") if known.get(key)}


NATIVE = Native(files, origin, settle, beside)
