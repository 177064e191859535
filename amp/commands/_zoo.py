"""The models that people use most: a command for each, its size, and its size at 60 % of the parameters."""

import torch

from amp.models.sizes import count_by_width, count_params, neuron_params
from amp.pruning.size import Grid, of_neurons, stretched
from amp.run.console import progress
from amp.run.tables import human, table
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.towers import build_tower

SHARE = 0.6
# Family -> (library, name, weights).
ZOO: dict[str, list[tuple[str, str, str]]] = {
    "DeiT": [("timm", f"deit_{size}_patch16_224", "fb_in1k") for size in ("small", "base")],
    "DeiT-III": [
        ("timm", f"deit3_{size}", "fb_in22k_ft_in1k")
        for size in ("base_patch16_224", "large_patch16_224", "huge_patch14_224")
    ],
    "ViT (AugReg)": [
        ("timm", f"vit_{size}_patch16_224", "augreg_in21k_ft_in1k") for size in ("small", "base", "large")
    ],
    "CLIP": [
        ("open_clip", "ViT-B-32", "laion2b_s34b_b79k"),
        ("open_clip", "ViT-B-16", "laion2b_s34b_b88k"),
        ("open_clip", "ViT-L-14", "laion2b_s32b_b82k"),
        ("open_clip", "ViT-H-14", "laion2b_s32b_b79k"),
        ("open_clip", "ViT-g-14", "laion2b_s34b_b88k"),
        ("open_clip", "ViT-bigG-14", "laion2b_s39b_b160k"),
    ],
    "SigLIP": [
        ("open_clip", f"ViT-{size}", "webli") for size in ("B-16-SigLIP", "L-16-SigLIP-256", "SO400M-14-SigLIP-384")
    ],
    "SigLIP 2": [
        ("open_clip", f"ViT-{size}", "webli") for size in ("B-16-SigLIP2", "SO400M-14-SigLIP2", "gopt-16-SigLIP2-256")
    ],
    "MetaCLIP 2": [
        ("open_clip", f"ViT-{size}", "metaclip2_worldwide")
        for size in ("H-14-worldwide-quickgelu", "bigG-14-worldwide")
    ],
    "DINOv2 with registers": [
        ("timm", f"vit_{size}_patch14_reg4_dinov2", "lvd142m") for size in ("small", "base", "large", "giant")
    ],
    "DINOv3": [
        ("timm", f"vit_{size}_patch16_dinov3", "lvd1689m") for size in ("small", "base", "large", "huge_plus", "7b")
    ],
    "EVA-02": [
        *(("timm", f"eva02_{size}_patch14_448", "mim_in22k_ft_in22k_in1k") for size in ("base", "large")),
        ("eva_clip", "EVA02-L-14", "merged2b_s4b_b131k"),
    ],
    "BEiT and BEiT v2": [
        ("timm", f"{name}_patch16_224", tag)
        for name, tag in (
            ("beit_base", "in22k_ft_in22k_in1k"),
            ("beit_large", "in22k_ft_in22k_in1k"),
            ("beitv2_base", "in1k_ft_in22k_in1k"),
            ("beitv2_large", "in1k_ft_in22k_in1k"),
        )
    ],
}
PAGE = """# Model zoo

The vision transformers that people use most, with a command that prunes each. Sizes are those of the vision tower,
counted without weights: parameters, and FLOPs of one image (two a multiply-accumulate, without attention's products
of tokens with tokens). At 60 % every block keeps as many hidden neurons as the table says; `amp prune` gives each
block a number of its own, and comes to the same parameters and FLOPs. A library downloads its weights on first use;
`--weights FILE` takes yours. `amp models NAME` shows any other model. This page is written by
`amp models --zoo > docs/models.md`."""
HEADERS = ["model", "blocks", "width", "hidden", "image", "parameters", "FLOPs"]
HEADERS += ["hidden at 60 %", "parameters at 60 %", "FLOPs at 60 %"]


def zoo_page() -> str:
    """The page, a family after the other; every model is built, which takes a second or two of each."""
    parts = [PAGE]
    with progress(None, "models", "model", total=sum(map(len, ZOO.values()))) as bar:
        for family, models in ZOO.items():
            rows = []
            for model in models:
                rows.append(zoo_row(*model))
                bar.update()
            commands = "\n".join(prune_command(*model) for model in models)
            block = f"<!-- needs weights and images -->\n```bash\n{commands}\n```"
            parts.append(f"## {family}\n\n{table(HEADERS, rows)}\n\n{block}")
    return "\n\n".join(parts)


def prune_command(frame: str, name: str, weights: str) -> str:
    """What prunes a model to 60 % of its parameters, as people type it."""
    which = f"{frame}/{name}.{weights}" if frame == "timm" else f"{frame}/{name} --weights {weights}"
    return f"amp prune --model {which} --images photos --params {SHARE}"


def zoo_row(frame: str, name: str, weights: str) -> list[str]:
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
    shown = f"{name}.{weights}" if frame == "timm" else name
    return [f"`{shown}`", str(len(dense)), embedding, hidden, f"{tower.image_size} px", *ends[:2], kept, *ends[2:]]
