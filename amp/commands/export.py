"""Exports a model to a file that runs without this project: ONNX, or a program of torch.export.

FROM is a pruned/ or distilled/ folder, or the name of a dense model in its library. TO ends in .onnx or .pt2. The file
takes batches of any size. The preprocessing of images is written to a file beside it, named as TO with
.preprocess.json. Before the file gets its name, it is run once and compared with the model: the outputs may differ by
1e-4 of the largest output (fp16: 1e-2).
"""

import argparse

from amp.errors import UserError, under
from amp.export import check_target
from amp.registry import FRAMES
from amp.run.console import run_script, say
from amp.run.options import check_model, check_weights
from amp.settings.base import Parser
from amp.settings.model import library_before


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = Parser(prog="amp export", description=__doc__)
    add = parser.add_argument
    add("source", metavar="FROM", help="a pruned/ or distilled/ folder, or the name of a dense model")
    add("target", metavar="TO", help="the file to write, .onnx or .pt2")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="precision of the weights (default: fp32)")
    add(
        "--output",
        choices=("embeddings", "logits", "features"),
        help="what the file returns for an image (default: the first of these that the model has)",
    )
    found = "library of a dense model (default: found by the name)"
    add("--model_type", "--frame", choices=FRAMES.names, help=found)
    add("--pretrained", "--weights", metavar="CKPT", help="weights of a dense model, a tag or a file")
    args = parser.parse_args()
    args.target = check_target(args.target)
    check_model("FROM", args.source)
    check_weights("--pretrained", args.pretrained)
    if args.target.exists():
        raise UserError("TO", f"{args.target}: already exists; give another name, or delete it")
    return args


def main() -> None:
    args = parse_args()

    from amp.export import export_tower
    from amp.models import is_model_folder, open_tower
    from amp.towers import find_frame

    frame, source = args.model_type, args.source
    with under("FROM", instead_of="model.name"), under("--pretrained", instead_of="model.pretrained"):
        if not (frame or any(map(is_model_folder, (source, args.pretrained)))):
            frame, source = library_before(source)
            frame = frame or find_frame(source, "--model_type")
        tower = open_tower(source, frame, args.pretrained, precision="fp32")
    found = export_tower(tower, args.target, args.precision, args.output)
    say(f"wrote {args.target} ({found['bytes'] / 1e6:.1f} MB; {found['output']} of size {found['width']} per image)")
    if found["checked"]:
        difference, scale = found["difference"], found["scale"]
        say(f"checked against the model: largest difference {difference:.2g}, outputs up to {scale:.3g}")
    else:
        say("not checked against the model: onnxruntime is not installed (pip install onnxruntime)")


if __name__ == "__main__":
    run_script(main)
