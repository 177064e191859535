"""Which searches the comparison of costs runs, and its command line. Light: it imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amp.run.options import check_writable
from amp.settings.base import Parser, at_least, number_from
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config

CONFIG = "configs/demo/search_cost.yaml"
# What is set of each search.
SEARCHES: dict[str, dict[str, str]] = {
    "plain": {"search": "plain"},
    "exact": {"search": "exact"},
    "racing strict": {"search": "racing", "preset": "strict"},
    "racing fast": {"search": "racing", "preset": "fast"},
    "exact + ridge": {"search": "exact", "compensation": "ridge"},
}


@dataclass(frozen=True)
class Plan:
    """What is searched: which searches, at which thresholds, over how many orders of the images.

    Attributes:
        searches: names of `SEARCHES`.
        thresholds: in nats.
        num_seeds: orders, from the seed of the settings on.
        num_fresh: images that no search sees.
        json: where the numbers are written.
    """

    searches: Sequence[str]
    thresholds: Sequence[float]
    num_seeds: int = 1
    num_fresh: int = 0
    json: Path | None = None


def read_options(description: str) -> tuple[PruneConfig, Plan]:
    """The command line. Raises UserError; other mistakes in it exit with 2, --help with 0."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--config_file", default=CONFIG, metavar="YAML", help="settings of main_prune.py (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, repeatable")
    add("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="searches to measure (default: all)")
    add(
        "--thresholds", nargs="+", type=number_from(0), metavar="NATS", help="entropy increases (default: the config's)"
    )
    add(
        "--num_seeds",
        type=at_least(1),
        default=1,
        help="orders of the images, by seeds from that of the config on (default: 1)",
    )
    add(
        "--fresh",
        type=at_least(0),
        default=0,
        metavar="N",
        help="also measure the entropy at equal size on N further images (default: 0)",
    )
    add("--json", metavar="FILE", help="file to write the numbers to (default: none)")
    args = parser.parse_args()
    if args.json:
        check_writable("--json", args.json)
    config = load_config(PruneConfig, args.config_file, args.set).with_frame("open_clip")
    thresholds = args.thresholds or [config.prune.entropy_increase]
    return config, Plan(args.searches, thresholds, args.num_seeds, args.fresh, args.json and Path(args.json))
