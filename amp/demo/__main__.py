"""Prunes a small CLIP that comes with the package and evaluates it: `amp demo`, or `make demo`.

With --full, it also trains that model, prunes it as in the paper, and distils it: `amp demo --full`, or
`make demo-full`.
"""

import time
from pathlib import Path
from shlex import quote

from amp.demo import MODEL
from amp.demo.pipeline import HOME, Demo, Row
from amp.errors import UserError, under
from amp.run.console import run_script
from amp.run.options import prepare_output
from amp.run.sealed import read_json, write_json
from amp.settings.base import Parser, at_least

STEPS = 1500
NAMES = {
    "dense": "dense",
    "pruned": "pruned as published",
    "random_same_widths": "random neurons, same widths",
    "refitted": "pruned and refitted",
    "distilled": "pruned as published, distilled",
}
SCENES = "pictures of one or two coloured, handwritten digits, with captions such as 'a red three left of a blue seven'"
QUICK = f"""This demo prunes the vision tower of a small CLIP to half its size, in about a minute on two CPU cores:
1. draw 14,736 digit scenes, {SCENES};
2. unpack the trained CLIP that comes with this package;
3. amp prune: rank its hidden neurons on 2,048 scenes without labels, remove the least important, refit the others;
4. amp eval compare: measure zero-shot top-1 and retrieval of the dense and the pruned model on unseen digits."""
FULL = f"""This demo runs the whole pipeline on a small CLIP, in about five minutes on two CPU cores:
1. draw 14,736 digit scenes, {SCENES}, and train the CLIP on them;
2. amp score, amp prune: prune as in the paper; for comparison, prune random neurons and prune with a refit;
3. amp distill: train the model pruned as in the paper to match the dense one, without labels, in two processes;
4. amp eval zsc: measure zero-shot top-1 and retrieval of every model on unseen digits."""


def show(demo: Demo, rows: dict[str, Row], folder: Path, seconds: float) -> None:
    """The closing table, summary.json and summary.png.

    Args:
        folder: of the pruning whose widths are shown.
    """
    from amp.demo.summary import plot_summary
    from amp.run.tables import human, table

    write_json(demo.home / "summary.json", {**rows, "seconds": round(seconds, 1)})
    plot_summary(read_json(folder / "prune.json"), {NAMES[name]: row for name, row in rows.items()}, demo.home)
    lines = [
        [
            NAMES[name],
            human(row["params"]),
            human(row["flops"]),
            f"{row['top1']:.3f}",
            f"{row['recall1']:.3f}",
            f"{demo.seconds[name]:.0f}" if name in demo.seconds else "-",
        ]
        for name, row in rows.items()
    ]
    print("\n" + table(["model", "tower parameters", "FLOPs", "top-1", "recall@1", "seconds"], lines))
    print("top-1: accuracy over 60 classes; recall@1: retrieval of images by their captions; both on unseen digits.")
    print(f"total time {seconds:.0f} s, of which evaluation {demo.seconds['evaluation']:.0f} s.")
    print(f"wrote {demo.home}/summary.json and summary.png; the models are in {demo.home}/*/")


def what_next(demo: Demo, half: Path) -> str:
    """What to type after the quick demo."""
    dense = f"--model {quote(str(MODEL))} --weights {quote(str(demo.dense))} --images {quote(str(demo.scenes))}"
    return "\n".join(
        [
            "next:",
            f"  python -c 'import amp; model, transform, tokenizer = amp.load_pruned(\"{half / 'pruned'}\")'",
            f"  amp prune {dense} --params 0.4 --output {quote(str(half))}   # another size",
            "  amp prune --model timm/vit_base_patch16_224.augreg_in21k_ft_in1k --images photos --params 0.6",
            "  amp demo --full   # the whole pipeline: training, pruning as in the paper, distillation; five minutes",
        ]
    )


def main() -> None:
    parser = Parser(prog="amp demo", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="also train the dense model and distil the pruned one (about five minutes)"
    )
    parser.add_argument("--out", type=Path, default=HOME, help="output folder (default: %(default)s)")
    steps = f"with --full: training steps of the dense model (default: {STEPS})"
    parser.add_argument("--steps", type=at_least(1), help=steps)
    args = parser.parse_args()
    if args.steps and not args.full:
        raise UserError("--steps", f"{args.steps}: only allowed with --full, which trains the model")
    with under("--out", instead_of="output.dir"):
        prepare_output(str(args.out))
    print(FULL if args.full else QUICK, flush=True)
    started = time.monotonic()
    demo, half = Demo(args.out), args.out / "half"
    if args.full:
        demo.train_dense(args.steps or STEPS)
        demo.prune_as_published()
        demo.distill()
        rows = demo.evaluate()
        show(demo, rows, args.out / "amp", time.monotonic() - started)
        print("next: amp prune --help tells how to prune your own model on your own images")
    else:
        demo.unpack_dense()
        demo.refit("refitted", half, 0.5)
        rows = demo.compare(half)
        show(demo, rows, half, time.monotonic() - started)
        print(what_next(demo, half))


if __name__ == "__main__":
    run_script(main)
