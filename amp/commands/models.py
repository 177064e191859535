"""What can be pruned: the supported families, one model's blocks, or every model that a library names."""

import argparse
from collections import Counter
from typing import get_args

from amp.errors import UserError
from amp.run.console import progress
from amp.settings.model import Frame

FAMILIES = [
    ("open_clip", "native ViT and CoCa", "plain", "ViT-g-14"),
    ("open_clip", "SigLIP, SigLIP2, PE, EVA01 trunks", "plain", "ViT-SO400M-14-SigLIP"),
    ("open_clip", "EVA02 base and large trunks", "split gate + norm", "EVA02-L-14"),
    ("open_clip", "ViTamin trunks", "split gate", "ViTamin-L"),
    ("eva_clip", "EVA02-CLIP-E, EVA-CLIP-8B", "plain", "EVA-CLIP-8B"),
    ("dinov2", "DINOv2 small to large, with registers or without", "plain", "vit_large_patch14_dinov2"),
    ("dinov2", "DINOv2 giant", "packed gate", "vit_giant_patch14_dinov2"),
    ("dinov2", "DINOv3 small to large; H+ and 7B", "plain; split gate", "vit_large_patch16_dinov3"),
    ("timm", "ViT, DeiT, BEiT, EVA01, SigLIP", "plain", "vit_base_patch16_224"),
    ("timm", "BEiT-3", "plain + norm", "beit3_base_patch16_224"),
    ("timm", "EVA02 tiny and small; base and large", "packed gate; split gate + norm", "eva02_base_patch14_224"),
    ("hf", "CLIP, SigLIP, ViT, DeiT, BEiT, DINOv2, DINOv3", "plain", "a folder or hub id"),
    ("hf", "Data2Vec, FLAVA's image tower", "plain, in two modules", "a folder or hub id"),
    ("hf", "DINOv2 giant, DINOv3 gated, AIMv2", "split gate", "a folder or hub id"),
]


def show_families() -> None:
    """The table of what is supported."""
    from amp.run.tables import table

    print(table(["frame", "family", "MLP layout", "for example"], FAMILIES))
    print("One model: python -m amp.towers NAME --frame FRAME. All that a library names: --all --frame FRAME.")


def show_tower(name: str, frame: Frame | None) -> None:
    """One model's tower, on meta tensors: no weights are needed, except an hf folder's or id's config."""
    from amp.models.sizes import count_flops, count_mlp_params, count_params
    from amp.run.tables import human, table
    from amp.settings.model import ModelSettings
    from amp.towers import build_tower

    tower = build_tower(ModelSettings(frame=frame, name=name), "meta")
    blocks = Counter((slot.hidden_width, slot.out_projection.out_features, slot.layout) for slot in tower.slots)
    rows = [[str(count), str(hidden), str(width), layout] for (hidden, width, layout), count in blocks.items()]
    print(f"{name} ({tower.base['frame']}), images of {tower.image_size} px")
    print(table(["blocks", "hidden width", "embedding width", "MLP layout"], rows))
    params, mlps = count_params(tower), count_mlp_params(tower)
    print(f"tower {human(params)} parameters, {mlps / params:.1%} in these MLPs; FLOPs {human(count_flops(tower))}")
    print("(2 * MACs of one image, without the attention products)")


def show_all(frame: Frame) -> None:
    """How many of a library's models can be pruned, and why others cannot."""
    import open_clip
    import timm

    from amp.settings.model import ModelSettings
    from amp.towers import build_tower

    names = {
        "open_clip": open_clip.list_models(),
        "eva_clip": [*(n for n in open_clip.list_models() if "EVA" in n), "EVA-CLIP-8B"],
        "dinov2": timm.list_models("*dinov[23]*"),
        "timm": [n for family in ("vit_*", "deit*", "beit*", "eva*") for n in timm.list_models(family)],
    }
    if frame not in names:
        raise UserError("--all", f"the models of {frame} have no list; name one")
    refused = {}
    for name in progress(names[frame], frame, "model"):
        try:
            build_tower(ModelSettings(frame=frame, name=name), "meta")
        except UserError as error:
            refused[name] = str(error)
    total = len(names[frame])
    print(f"{total - len(refused)} of {total} models can be pruned; refused:")
    for name, reason in refused.items():
        print(f"- {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m amp.towers", description=__doc__)
    parser.add_argument("name", nargs="?", help="a model of the library, or for hf a folder or hub id")
    parser.add_argument("--frame", choices=get_args(Frame), help="library (default: open_clip)")
    parser.add_argument("--all", action="store_true", help="try every model that the library names")
    args = parser.parse_args()
    if args.all:
        show_all(args.frame or "open_clip")
    elif args.name:
        show_tower(args.name, args.frame)
    else:
        show_families()
