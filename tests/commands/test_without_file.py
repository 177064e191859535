"""A model, images and a size without a YAML: from the command line to a folder that loads."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, refusal
from helpers.hf_models import VISION, write
from helpers.numbered_images import write_images

import amp
from amp.commands._plan import estimate_seconds, in_words, times
from amp.commands._without_file import find_weights, fitted
from amp.data.batches import Batches
from amp.data.files import walk
from amp.data.listing import Listing, list_images
from amp.settings.model import ModelSettings
from amp.settings.prune import RECOMMENDED, PruneConfig
from amp.settings.reading.command_line import parse_prune, parse_score
from amp.towers import build_tower, find_frame

Call = Callable[..., tuple[int, str, str]]
TINY = ["--model", f"{GOLDEN}/tiny-clip.json", "--weights", f"{GOLDEN}/tiny-clip.safetensors"]


@pytest.fixture
def photos(tmp_path: Path, golden_images: Path) -> str:
    """The 64 golden images to score on and as many others, without a split."""
    (tmp_path / "photos").mkdir()
    for split in ("train", "val"):
        (tmp_path / "photos" / f"of_{split}").symlink_to(golden_images / split)
    return str(tmp_path / "photos")


def _config(*words: str) -> PruneConfig:
    _, options = parse_prune("", words)
    assert options.named
    return fitted(options.named, Listing(options.named.config().data))


@pytest.mark.slow
def test_one_command_scores_prunes_and_says_what_is_next(golden_images: Path, tmp_path: Path, call: Call) -> None:
    words = [
        *TINY,
        "--images",
        golden_images,
        "--output",
        tmp_path / "out",
        "--set",
        "data.num_workers=0",
        "--set",
        "prune.refit_steps=0",
    ]
    code, said, err = call("main_prune.py", *words, "--params", "0.7")
    assert code == 0, err
    for part in (
        "rank the neurons on 64 images, in batches of 64 (criterion: reconstruction)",
        "estimated time, from one batch: about",
        f"--model {tmp_path}/out/pruned",
    ):
        assert part in said
    record = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert record["params"]["pruned"] / record["params"]["dense"] == pytest.approx(0.7, abs=0.01)
    model, _, _ = amp.load_pruned(tmp_path / "out" / "pruned")
    assert sum(p.numel() for p in model.visual.parameters()) == record["params"]["pruned"]

    settings = tmp_path / "same.yaml"
    settings.write_text(json.dumps({**record["settings"], "output": {"dir": str(tmp_path / "out")}}))
    for script in ("main_score.py", "main_prune.py"):
        code, said, err = call(script, "--config_file", settings)
        assert (code, "already done" in said) == (0, True), err

    code, said, err = call("main_prune.py", *words, "--params", "0.7", "--set", "data.seed=1")
    assert (code, err.splitlines()[-1].startswith(f"error: --output: {tmp_path}/out holds another run: ")) == (2, True)
    assert "output.dir" not in err

    code, said, err = call("main_prune.py", *words, "--sweep", "params", "0.5", "0.6")
    assert code == 0, err
    assert "to reach 0.6 and 0.5 times the dense parameters" in said
    assert f"already done: {tmp_path}/out/scores.safetensors" in said
    assert call("main_prune.py", *words, "--sweep", "params", "0.6", "--params", "0.6")[0] == 2
    for size in ("0.6", "0.5"):
        assert (tmp_path / "out" / f"params-{size}" / "pruned").is_dir()


@pytest.mark.slow
def test_a_command_lists_its_images_once(
    photos: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []

    def noted(folder: Path, key: str) -> Iterator[Path]:
        listed.append(str(folder))
        return walk(folder, key)

    monkeypatch.setattr("amp.data.pixels.walk", noted)
    words = [*TINY, "--images", photos, "--output", tmp_path / "out", "--set", "data.num_workers=0"]
    ended = call("main_prune.py", *words, "--set", "prune.refit_steps=0", "--sweep", "params", "0.8", "0.7")
    assert (ended[0], listed) == (0, [photos]), ended[2]


@pytest.mark.parametrize("inside", ["", "out"])
def test_a_run_among_its_own_images_is_refused(inside: str, photos: str, call: Call) -> None:
    before = sorted(Path(photos).rglob("*"))
    output = str(Path(photos) / inside)
    code, _, err = call("main_prune.py", *TINY, "--images", photos, "--output", output, "--params", "0.7")
    assert code == 2
    assert err.splitlines()[-1].endswith(
        f"{output} is inside {photos}, which holds the input images; choose a folder outside it"
    )
    assert sorted(Path(photos).rglob("*")) == before


def test_settings_are_the_recommended_ones_where_there_are_images_enough(tmp_path: Path) -> None:
    config = _config(*TINY, "--images", str(_many(tmp_path, 260)), "--params", "0.6")
    for group, settings in RECOMMENDED.items():
        own = getattr(config, group).model_dump()
        counts = {"num_samples": 195, "num_val_samples": 65} if group == "data" else {}
        assert {key: own[key] for key in settings} == {**settings, **counts}
    assert config.output.dir == "out/tiny-clip"
    few = _config(*TINY, "--images", str(_many(tmp_path / "few", 40)), "--params", "0.6", "--output", "x")
    assert (few.data.batch_size, few.data.num_samples, few.data.num_val_samples, few.output.dir) == (8, 30, 10, "x")
    mine = _config(*TINY, "--images", str(tmp_path / "few"), "--params", "0.6", "--set", "data.batch_size=10")
    assert mine.data.batch_size == 10
    fewer = _config(*TINY, "--images", str(tmp_path / "few"), "--params", "0.6", "--set", "data.num_samples=5")
    assert (fewer.data.batch_size, fewer.data.num_samples) == (5, 5)
    fast = _config(*TINY, "--images", str(tmp_path / "few"), "--set", "prune.target.throughput=1.5")
    assert (fast.prune.target.throughput, fast.prune.allocation) == (1.5, RECOMMENDED["prune"]["allocation"])


def _many(folder: Path, count: int) -> Path:
    write_images(folder, *(f"{'ab'[i % 2]}/{i:03d}.png" for i in range(count)))
    return folder


def test_the_library_is_a_prefix_or_found_by_the_name(tmp_path: Path) -> None:
    write(tmp_path / "mine", "ViTModel", VISION)
    for name, frame in (
        ("vit_tiny_patch16_224.augreg_in21k", "timm"),
        ("ViT-B-32", "open_clip"),
        ("EVA02-B-16", "open_clip"),
        ("EVA-CLIP-8B", "eva_clip"),
        (str(tmp_path / "mine"), "hf"),
    ):
        assert find_frame(name) == frame
    assert "did you mean 'vit_tiny_patch16_224'" in refusal(lambda: find_frame("vit_tiny_patch16_225"))
    assert "no library 'tim'; did you mean 'timm'?" in refusal(lambda: find_frame("tim/vit_tiny_patch16_224"))
    assert "use --frame dinov2 or --frame timm" in refusal(lambda: find_frame("vit_small_patch14_dinov2"))
    _, options = parse_score("", ["--model", "hf/google/vit", "--images", "photos"])
    assert options.named
    model = options.named.config().model
    assert (model.frame, model.name) == ("hf", "google/vit")
    assert options.named.settings["output"]["dir"] == "out/vit"


def test_weights_are_those_that_are_named_and_never_random_unasked() -> None:
    def of(name: str, frame: Any, weights: str | None = None) -> str | None:
        return find_weights(ModelSettings(name=name, pretrained=weights), frame)

    assert of("vit_tiny_patch16_224.augreg_in21k", "timm") == "augreg_in21k"
    assert of("ViT-B-32", "open_clip", "openai") == "openai"
    assert of("ViT-B-32", "open_clip", "random") is None
    assert of("google/vit", "hf") is None
    assert "a tag of ViT-B-32 (openai, " in refusal(lambda: of("ViT-B-32", "open_clip"))
    assert "missing; give a file, or random" in refusal(lambda: of("EVA-CLIP-8B", "eva_clip"))
    said = refusal(lambda: of("vit_bse_patch16_224", "timm"))
    assert said.startswith("model.name: timm knows no 'vit_bse_patch16_224'; did you mean 'vit_base_patch16_224'")


BAD = {
    "no images": (["--model", "timm/x", "--params", "0.5"], "--images: missing"),
    "no model": (["--images", "x"], "--model: missing"),
    "nothing": ([], "--config_file: missing; give a YAML of settings, or --model and --images"),
    "no size": ([*TINY, "--images", "x"], "--params: missing; give the share"),
    "percent": ([*TINY, "--images", "x", "--params", "60"], "--params: 60 is not a share"),
    "both": (
        ["--config_file", "x", "--model", "y"],
        "--model: cannot be used with --config_file; use --set model.n",
    ),
    "no folder": ([*TINY, "--images", "nowhere", "--params", "0.5"], "--images: nowhere: no such folder"),
    "few images": ([*TINY, "--images", "{few}", "--params", "0.5"], "--images: {few}: 7 images; at least 8 are needed"),
    "large batch": (
        [*TINY, "--images", "{photos}", "--params", "0.5", "--set", "data.batch_size=999"],
        "data.batch_size: 999 is more than the ",
    ),
    "no weights": ([*TINY[:2], "--images", "{photos}", "--params", "0.5"], "--weights: missing; give a file"),
    "wrong weights": (["--model", "ViT-B-32", *TINY[2:], "--images", "{photos}", "--params", "0.5"], "--weights: "),
    "out of reach": (
        [*TINY[:2], "--weights", "README.md", "--images", "{photos}", "--params", "0.01"],  # which are not read yet
        "--params: 0.01: out of reach",
    ),
    "sweep": ([*TINY, "--images", "{photos}", "--sweep", "params", "0.9", "0.01"], "--params: 0.01: out of reach"),
    "output": ([*TINY, "--images", "{photos}", "--params", ".5", "--output", "README.md/x"], "--output: README.md/x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_the_words_of_the_options(case: str, photos: str, tmp_path: Path, call: Call) -> None:
    words, said = BAD[case]
    few = str(_many(tmp_path / "few", 7))
    own = [word.format(few=few, photos=photos) for word in words]
    place = [] if "--output" in own or not own or "--config_file" in own else ["--output", f"{tmp_path}/out"]
    code, _, err = call("main_prune.py", *own, *place)
    last = err.splitlines()[-1]
    assert (code, last.startswith(f"error: {said.format(few=few)}")) == (2, True), last
    assert not [*(tmp_path / "out").rglob("*scores*")], "told before anything is scored"


@pytest.mark.slow
def test_the_duration_grows_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_second(work: Callable[[], object]) -> float:
        work()
        return 1.0

    monkeypatch.setattr(times, "_seconds", a_second)
    tower_of: dict[int, float | None] = {}
    words = [
        *TINY,
        "--images",
        str(_many(tmp_path, 260)),
        "--params",
        "0.6",
        "--set",
        "data.num_workers=0",
        "--set",
        "prune.refit_steps=0",
    ]
    for count in (64, 192):
        config = _config(*words, "--set", f"data.num_samples={count}")
        tower = build_tower(config.model)
        batches = Batches(list_images(config.data, "train"), tower.transform, config.data, count)
        tower_of[count] = estimate_seconds(config, tower, batches)
    few, many = tower_of[64], tower_of[192]
    assert few
    assert many
    assert 0 < few < many
    other = _config(*words, "--set", "score.criterion=entropy")
    assert estimate_seconds(other, tower, batches) is None
    assert [in_words(seconds) for seconds in (1, 44, 600, 9000)] == [
        "10 seconds",
        "40 seconds",
        "10 minutes",
        "2.5 hours",
    ]
