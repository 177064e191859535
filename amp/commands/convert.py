"""Converts a pruned/ folder to a published vision checkpoint, and back.

A published checkpoint is the state dict of the pruned vision tower alone, under the parameter names of the model's
original code, for programs that expect these. If FROM is a folder, TO is the file to write (.pt, .pth, .bin, or
.safetensors). If FROM is such a file, TO is the folder to write, and --model names the dense model that was pruned.
"""

import argparse
from pathlib import Path

from amp.errors import UserError
from amp.registry import FRAMES
from amp.run.console import say
from amp.settings.base import MOST_SIDE, Parser, at_least
from amp.settings.model import ModelSettings

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def parse_args() -> argparse.Namespace:
    """The command line. Mistakes in it raise UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("source", metavar="FROM", help="a pruned/ or distilled/ folder, or a published checkpoint")
    add("target", metavar="TO", help="the published checkpoint, or the folder, to write")
    add("--model", metavar="NAME|JSON", help="for a published checkpoint: the dense model that was pruned")
    add("--model_type", "--frame", choices=FRAMES.names, help="library of --model (default: open_clip)")
    add(
        "--img_size",
        type=at_least(1, MOST_SIDE),
        metavar="PIXELS",
        help="image size of --model (default: the model's own)",
    )
    add(
        "--text_pretrained",
        metavar="CKPT",
        help="weights of the dense model, a tag or a file, from which the text tower is copied",
    )
    args: argparse.Namespace = parser.parse_args()
    if Path(args.target).exists():
        raise UserError(args.target, "already exists; give another name, or delete it")
    own = [f"--{key}" for key in ("model", "model_type", "img_size", "text_pretrained") if getattr(args, key)]
    if Path(args.source).is_dir():
        if own:
            parser.error(f"{', '.join(own)}: only allowed with a published checkpoint; {args.source} is a folder")
        if Path(args.target).suffix not in SUFFIXES:
            parser.error(f"TO: {args.target}: expected a file name that ends in {', '.join(SUFFIXES)}")
    elif not Path(args.source).is_file():
        parser.error(f"FROM: {args.source}: no such file or folder")
    elif not args.model:
        parser.error("--model: missing; name the dense model that this checkpoint was pruned from")
    return args


def main() -> None:
    args = parse_args()

    from amp.models.folder import load_tower, save_tower
    from amp.models.open import describe_published, open_published
    from amp.models.published import write_published
    from amp.towers import default_frame

    target = Path(args.target)
    if Path(args.source).is_dir():
        write_published(load_tower(args.source), target)
    else:
        kwargs = {"img_size": args.img_size} if args.img_size else {}
        frame = args.model_type or default_frame(args.model, option="--model_type")
        settings = ModelSettings(frame=frame, name=args.model, pretrained=args.source, kwargs=kwargs)
        tower = open_published(settings, args.text_pretrained)
        if tower is None:
            raise UserError(args.source, f"not a pruned vision tower of {args.model}")
        if any(parameter.is_meta for parameter in tower.model.parameters()):
            raise UserError(
                "--text_pretrained",
                f"missing; {args.source} holds only the vision tower, and a folder needs the whole model: "
                f"give weights of the dense {args.model}",
            )
        save_tower(tower, None, describe_published(tower, args.source).provenance, target)
    say(f"wrote {target}")
