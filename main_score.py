"""Scores the hidden neurons of every MLP by one criterion; writes scores.safetensors."""

from amp.run.console import run_script
from amp.settings.command_line import parse_args, plan_options
from amp.settings.prune import PruneConfig


def main() -> None:
    options = plan_options()
    config = parse_args(PruneConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()
    if args.dry_run:
        from amp.prune.memory import describe_plan

        print(describe_plan(config, "scoring", args.gpu_memory))
        return

    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.run import world as distributed
    from amp.run.console import progress, say
    from amp.run.files import prepare_output
    from amp.run.identity import check_same, identity, versions
    from amp.score.scores_file import load_scores, save_scores
    from amp.score.scoring import NO_IMAGES, folder_labels, score
    from amp.score.state import ScoringState
    from amp.towers import build_tower, default_frame

    with distributed.start() as world:
        config = config.with_frame(config.model.frame or default_frame(config.model.name))
        folder = world.from_main(lambda: prepare_output(config.output.dir))
        path, unfinished = folder / "scores.safetensors", folder / "scores_unfinished.safetensors"
        header = {**identity(config, ("prune",)), "versions": versions()}
        if world.broadcast(path.exists()):
            check_same(path, load_scores(path)[1], header)
            world.from_main(lambda: unfinished.unlink(missing_ok=True))
            say(f"already done: {path}")
            return
        paths = list_images(config.data, "train")
        list_images(config.data, "val")  # What the search will need is better missed now than after the scoring.
        tower = build_tower(config.model, str(world.device))
        blocks, widths = len(tower.slots), sorted(set(tower.widths))
        say(f"{config.model.name}: {blocks} blocks of {widths} neurons, {tower.slots[0].layout} MLPs")
        if config.score.criterion in NO_IMAGES:
            scores = score(tower, [], config.score)
        else:
            batches = Batches(paths, tower.transform, config.data, config.data.num_samples)
            labels = folder_labels(batches, config.score)
            state = ScoringState(unfinished, header, config.score.save_every)
            done = state.num_batches
            if done:
                say(f"going on after batch {done} of {len(batches)}")
            remaining = batches.epoch(0, done) if done else batches
            bar = progress(remaining, "score", "batch", total=len(batches), initial=done)
            scores = score(tower, bar, config.score, labels, state)
            batches.say_broken()
        if world.is_main:
            save_scores(scores, header, path)
            unfinished.unlink(missing_ok=True)
        world.barrier()
        say(f"wrote {path}; next: main_prune.py with the same settings")


if __name__ == "__main__":
    run_script(main)
