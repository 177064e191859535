"""Compares ways of pruning, and other libraries, on one dense model; writes compare.md and compare.png."""

from amp.errors import UserError
from amp.run.console import run_script, say
from amp.settings.compare import CompareConfig
from amp.settings.reading.command_line import parse_args


def main() -> None:
    config = parse_args(CompareConfig, __doc__)
    if config.test is None and config.data.name != "digit_scenes":
        raise UserError(
            "test", f"missing; with data.name: {config.data.name} it must name the class folders to test on"
        )

    from studies.methods import check_method

    for name, peer in config.peers.items():
        check_method(f"peers.{name}.method", peer.method)

    from studies.compare_cells import NOT_OF_A_CELL, fill_cells, open_cells, read_cells, train_dense
    from studies.compare_table import plot, tabulate
    from studies.quality import open_quality

    from amp.commands._plan.evaluations import describe_study
    from amp.run.run import open_run
    from amp.run.world import world

    with open_run(config, leave_out=NOT_OF_A_CELL) as run:
        own, distilled = config.compare, ", and distil each of them" if config.distil else ""
        lines = [
            f"prune it in {len(config.lines)} ways to {', '.join(f'{size:g}' for size in own.sizes)} of its parameters"
            f"{distilled}, with {len(own.seeds)} choices of images each; finished networks are reused"
        ]
        title = f"{config.model.name} ({config.model.weights}), images from {config.data.root}"
        say(describe_study(title, lines, f"write compare.md and compare.png to {run.folder}"))
        world().from_main(lambda: train_dense(config))
        quality = open_quality(config)
        cells = open_cells(run)
        fill_cells(cells, quality)
        if world().is_main:
            found, dense = read_cells(cells), quality.measure(quality.dense)
            text = tabulate(found, dense)
            run.path("compare.md").write_text(text + "\n", encoding="utf-8")
            plot(found, dense, run.path("compare.png"))
            say(f"{text}\nwrote {run.folder}/compare.md and compare.png")


if __name__ == "__main__":
    run_script(main)
