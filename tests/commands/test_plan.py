"""What a command says that it will do, before it does it."""

import pytest

from amp.commands._plan import describe_distillation, describe_scoring, describe_slicing
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config

PAPER = "configs/prune_entropy/open_clip_g_coco_entropy.yaml"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], "find the least width of each block that adds 0.02 nats of entropy at most (search: exact)"),
        (["prune.target.params=0.6"], "remove neurons, down to 0.6 of the tower's parameters (search allocation)"),
        (
            ["prune.target.flops=0.5", "prune.allocation=global", "prune.compensation=ridge"],
            "remove neurons, down to 0.5 of the tower's FLOPs (global allocation; ridge refit)",
        ),
        (["prune.widths=[8]"], "prune to the widths that the settings give"),
    ],
)
def test_a_pruning_says_how_widths_are_found(changes: list[str], says: str) -> None:
    config = load_config(PruneConfig, PAPER, ["prune.entropy_increase=0.02", *changes])
    lines = describe_slicing(config).splitlines()
    assert lines[1] == f"- take the scores of {config.output.dir}/scores.safetensors (entropy);"
    assert lines[2] == f"- {says};"


def test_images_that_are_not_counted_are_all() -> None:
    config = load_config(PruneConfig, PAPER, ["data.num_samples=null", "data.num_val_samples=null"])
    assert "rank the neurons on all images, in batches of " in describe_scoring(config)
    assert "measure on all held-out images" in describe_slicing(config)


def test_a_distillation_says_who_learns_from_whom() -> None:
    config = load_config(DistillConfig, "configs/distill/distill_open_clip_g.yaml")
    said = describe_distillation(config)
    assert said.startswith(f"{config.student.pretrained} learns from {config.teacher.name}")
    assert f"images of {config.data.root}:" in said.splitlines()[0]
