"""Lists what can be pruned: the supported families, the most used models, one model, or all models of a library."""

from collections import Counter

from amp.errors import UserError
from amp.registry import FRAMES
from amp.run.console import progress
from amp.settings.base import Parser
from amp.settings.model import Frame, ModelSettings, library_before


def show_families() -> None:
    """The table of what is supported."""
    from amp.run.tables import table
    from amp.towers import library

    rows = [(frame, *family) for frame in FRAMES.names for family in library(frame).families]
    print(table(["frame", "family", "MLP layout", "for example"], rows))
    print("\namp models NAME shows one model, amp models --zoo the most used ones,")
    print("amp models --all --frame FRAME checks all models of one library.")


def show_tower(name: str, frame: Frame | None) -> None:
    """One model's tower, on meta tensors: no weights are needed, except an hf folder's or id's config."""
    from amp.models.sizes import count_flops, count_mlp_params, count_params
    from amp.run.tables import human, table
    from amp.towers import build_tower, find_frame

    before, name = (frame, name) if frame else library_before(name)
    tower = build_tower(ModelSettings(frame=before or find_frame(name), name=name), "meta")
    blocks = Counter((slot.hidden_width, slot.out_projection.out_features, slot.layout) for slot in tower.slots)
    rows = [[str(count), str(hidden), str(width), layout] for (hidden, width, layout), count in blocks.items()]
    print(f"{name} ({tower.base['frame']}), images of {tower.image_size} px")
    print(table(["blocks", "hidden width", "embedding width", "MLP layout"], rows))
    params, mlps = count_params(tower), count_mlp_params(tower)
    print(f"vision tower: {human(params)} parameters, {mlps / params:.1%} of them in these MLPs")
    print(f"FLOPs per image: {human(count_flops(tower))} (2 * MACs, without the attention products)")


def show_all(frame: Frame) -> None:
    """How many of a library's models can be pruned, and why others cannot."""
    from amp.towers import build_tower, library

    list_names = library(frame).names
    if list_names is None:
        raise UserError("--all", f"there is no list of the models of {frame}; name one model")
    names = list_names()
    refused = {}
    for name in progress(names, frame, "model"):
        try:
            build_tower(ModelSettings(frame=frame, name=name), "meta")
        except UserError as error:
            refused[name] = str(error)
    print(f"{len(names) - len(refused)} of {len(names)} models can be pruned; refused:")
    for name, reason in refused.items():
        print(f"- {name}: {reason}")


def main() -> None:
    parser = Parser(prog="amp models", description=__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        help="a model, with or without its library in front (timm/NAME), or for hf a folder or hub id",
    )
    parser.add_argument("--frame", "--model_type", choices=FRAMES.names, help="library (default: found by the name)")
    parser.add_argument("--all", action="store_true", help="check every model of the library")
    parser.add_argument("--zoo", action="store_true", help="print a page about the most used models")
    args = parser.parse_args()
    if args.zoo:
        from amp.commands._zoo import zoo_page

        print(zoo_page())
    elif args.all:
        show_all(args.frame or "open_clip")
    elif args.name:
        show_tower(args.name, args.frame)
    else:
        show_families()
