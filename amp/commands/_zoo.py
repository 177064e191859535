"""The models that people use most: a command for each, its size, and its size at 60 % of the parameters."""

from collections.abc import Sequence

import torch

from amp.models.sizes import count_by_width, count_params, neuron_params
from amp.pruning.size import Grid, of_neurons, stretched
from amp.run.console import progress
from amp.run.tables import human, table
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.towers import build_tower

SHARE = 0.6


def _of_timm(tag: str, *names: str) -> list[tuple[str, str, None]]:
    return [("timm", f"{name}.{tag}", None) for name in names]


# Family -> (library, name, weights where the name does not say them).
ZOO: dict[str, Sequence[tuple[str, str, str | None]]] = {
    "DeiT": _of_timm("fb_in1k", "deit_small_patch16_224", "deit_base_patch16_224"),
    "DeiT-III": _of_timm(
        "fb_in22k_ft_in1k", "deit3_base_patch16_224", "deit3_large_patch16_224", "deit3_huge_patch14_224"
    ),
    "ViT (AugReg)": _of_timm(
        "augreg_in21k_ft_in1k", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"
    ),
    "CLIP": [
        ("open_clip", "ViT-B-32", "laion2b_s34b_b79k"),
        ("open_clip", "ViT-B-16", "laion2b_s34b_b88k"),
        ("open_clip", "ViT-L-14", "laion2b_s32b_b82k"),
        ("open_clip", "ViT-H-14", "laion2b_s32b_b79k"),
        ("open_clip", "ViT-g-14", "laion2b_s34b_b88k"),
        ("open_clip", "ViT-bigG-14", "laion2b_s39b_b160k"),
    ],
    "SigLIP": [
        ("open_clip", "ViT-B-16-SigLIP", "webli"),
        ("open_clip", "ViT-L-16-SigLIP-256", "webli"),
        ("open_clip", "ViT-SO400M-14-SigLIP-384", "webli"),
    ],
    "SigLIP 2": [
        ("open_clip", "ViT-B-16-SigLIP2", "webli"),
        ("open_clip", "ViT-SO400M-14-SigLIP2", "webli"),
        ("open_clip", "ViT-gopt-16-SigLIP2-256", "webli"),
    ],
    "MetaCLIP 2": [
        ("open_clip", "ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide"),
        ("open_clip", "ViT-bigG-14-worldwide", "metaclip2_worldwide"),
    ],
    "DINOv2 with registers": _of_timm(
        "lvd142m", *(f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant"))
    ),
    "DINOv3": _of_timm(
        "lvd1689m", *(f"vit_{size}_patch16_dinov3" for size in ("small", "base", "large", "huge_plus", "7b"))
    ),
    "EVA-02": [
        *_of_timm("mim_in22k_ft_in22k_in1k", "eva02_base_patch14_448", "eva02_large_patch14_448"),
        ("eva_clip", "EVA02-L-14", "merged2b_s4b_b131k"),
    ],
    "BEiT and BEiT v2": [
        *_of_timm("in22k_ft_in22k_in1k", "beit_base_patch16_224", "beit_large_patch16_224"),
        *_of_timm("in1k_ft_in22k_in1k", "beitv2_base_patch16_224", "beitv2_large_patch16_224"),
    ],
}
PAGE = """# Model zoo

The most used vision transformers, with a command that prunes each. The sizes are those of the vision tower, counted
without loading weights: parameters, and FLOPs per image (two per multiply-accumulate, without the products of tokens
with tokens in attention). For the columns "at 60 %", all blocks keep the same number of hidden neurons; `amp prune`
chooses a number for each block and reaches about the same parameters and FLOPs. The library downloads the weights on
first use; `--weights FILE` uses your own. `amp models NAME` shows any other model. `amp models --zoo > docs/models.md`
writes this page."""
HEADERS = ["model", "blocks", "width", "hidden", "image", "parameters", "FLOPs"]
HEADERS += ["hidden at 60 %", "parameters at 60 %", "FLOPs at 60 %"]


def zoo_page() -> str:
    """The page, a family after the other; every model is built, which takes a second or two of each."""
    parts = [PAGE]
    with progress(None, "models", "model", total=sum(map(len, ZOO.values()))) as bar:
        for family in ZOO:
            parts.append(zoo_part(family))
            bar.update(len(ZOO[family]))
    return "\n\n".join(parts)


def zoo_part(family: str) -> str:
    """A family's part of the page: the table of its models, and what prunes each."""
    rows = [zoo_row(*model[:2]) for model in ZOO[family]]
    commands = "\n".join(prune_command(*model) for model in ZOO[family])
    block = f"<!-- needs weights and images -->\n```bash\n{commands}\n```"
    return f"## {family}\n\n{table(HEADERS, rows)}\n\n{block}"


def prune_command(frame: str, name: str, weights: str | None) -> str:
    """What prunes a model to 60 % of its parameters, as people type it."""
    more = "" if weights is None else f" --weights {weights}"
    return f"amp prune --model {frame}/{name}{more} --images photos --params {SHARE}"


def zoo_row(frame: str, name: str) -> list[str]:
    """A model's line of the table; it is built and sliced on meta tensors."""
    tower = build_tower(ModelSettings.model_validate({"frame": frame, "name": name}), "meta")
    sizes, dense = count_by_width(tower), tower.widths
    whole = sizes(dense)
    grid = Grid(dense, SearchSettings.model_validate({"allocation": "uniform", "target": {"params": SHARE}}))
    share = of_neurons(dense, [neuron_params(slot) / whole["params"] for slot in tower.slots])
    widths = grid.nearest(stretched(grid, dense, share, SHARE).widths)
    smaller = sizes(widths)
    for slot, width in zip(tower.slots, widths, strict=True):
        slot.keep(torch.arange(width))
    assert count_params(tower) == smaller["params"]
    kept, hidden, embedding = (
        "/".join(map(str, sorted({*values})))
        for values in (widths, dense, (slot.out_projection.out_features for slot in tower.slots))
    )
    ends = [word for own in (whole, smaller) for word in map(human, (own["params"], own["flops"]))]
    return [f"`{name}`", str(len(dense)), embedding, hidden, f"{tower.image_size} px", *ends[:2], kept, *ends[2:]]
