"""The digit scenes on disk, and a few steps of the dense model that the demo trains on them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import ROOT
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits
from torchvision.datasets import CocoCaptions, ImageFolder

from amp.data import scenes
from amp.data.scenes import CLASS_NAMES, COLOURS, DIGITS, build_scenes, split_digits
from amp.demo.dense import caption_labels, contrastive_loss, load_scenes, normalise, train_dense
from amp.errors import UserError

pytestmark = pytest.mark.slow

MODEL_JSON = ROOT / "configs/models/digit_scenes.json"
SMALL = {"num_train": 60, "num_val": 10, "num_test": 125, "num_pairs": 400}
TINY = {"num_train": 10, "num_val": 5, "num_test": 60, "num_pairs": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    build_scenes(folder, **SMALL)
    return folder


def contents(root: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file under `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def part(files: dict[str, bytes], *tops: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.split("/")[0] in tops}


def captions(root: Path, name: str) -> dict[str, str]:
    coco = COCO(root / f"annotations/captions_{name}.json")
    return {coco.imgs[note["image_id"]]["file_name"]: note["caption"] for note in coco.anns.values()}


def test_split_parts_the_digits() -> None:
    train, test = split_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train, *test]) == list(range(1797))
    pictures = load_digits().data
    assert len(np.unique(pictures, axis=0)) == len(pictures), "one handwriting stands on both sides"


@pytest.mark.parametrize("side", [0, 1])
def test_digits_of_one_side_are_never_drawn_on_the_other(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_scenes(tmp_path / "whole", **TINY)
    source = load_digits()
    source.images[split_digits()[side]] = 0
    monkeypatch.setattr(scenes, "load_digits", lambda: source)
    build_scenes(tmp_path / "blanked", **TINY)
    whole, blanked = contents(tmp_path / "whole"), contents(tmp_path / "blanked")
    training, testing = (("train", "val"), ("test", "pairs"))
    drawn, other = (training, testing) if side == 0 else (testing, training)
    assert part(whole, *other) == part(blanked, *other)
    assert all(blanked[name] != data for name, data in part(whole, *drawn).items())


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_scenes(tmp_path / name, **TINY, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert not {d for n, d in first.items() if n.endswith("png")} & {d for n, d in other.items() if n.endswith("png")}


def test_counts_of_one_folder_do_not_change_another(tmp_path: Path) -> None:
    build_scenes(tmp_path / "a", **TINY)
    build_scenes(tmp_path / "b", **TINY | {"num_train": 20})
    few, many = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert part(few, "val", "test", "pairs") == part(many, "val", "test", "pairs")
    assert part(few, "train").items() <= part(many, "train").items()


def test_layout(root: Path) -> None:
    files = [name for name in contents(root) if name.endswith(".png")]
    folders = Counter(str(Path(name).parent) for name in files)
    assert {name: count for name, count in folders.items() if not name.startswith("test/")} == {
        "train/one": 24,
        "train/two": 36,
        "val/one": 4,
        "val/two": 6,
        "pairs": 400,
    }
    assert json.loads((root / "scenes.json").read_text())["counts"] == folders
    for name in files:
        with Image.open(root / name) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
    assert len(set(contents(root).values())) == len(contents(root)), "two scenes are the same"


def test_sixty_classes_sort_as_their_names(root: Path) -> None:
    assert CLASS_NAMES[:2] == ("red zero", "red one")
    assert CLASS_NAMES[-1] == f"{COLOURS[-1]} {DIGITS[-1]}"
    dataset = ImageFolder(root / "test")
    assert [name.split("_", 1)[1].replace("_", " ") for name in dataset.classes] == list(CLASS_NAMES)
    counts = Counter(dataset.targets)
    assert sum(counts.values()) == 125
    assert set(counts.values()) == {2, 3}


@pytest.mark.parametrize(("name", "folder"), [("train", "train"), ("pairs", "pairs")])
def test_captions_read_as_coco(root: Path, name: str, folder: str) -> None:
    texts = captions(root, name)
    assert set(texts) == {str(path.relative_to(root / folder)) for path in (root / folder).rglob("*.png")}
    dataset = CocoCaptions(root / folder, str(root / f"annotations/captions_{name}.json"))
    assert [dataset[i][1] for i in range(len(dataset))] == [[text] for text in texts.values()]
    for path, text in texts.items():
        one = text.removeprefix("a ") in CLASS_NAMES
        assert one == path.startswith("one/")
        assert one or any(f" {relation} a " in text for relation in scenes.RELATIONS)


def test_captions_of_pairs_are_unique(root: Path) -> None:
    texts = captions(root, "pairs").values()
    assert len(set(texts)) == len(texts) == 400


def test_captions_tell_what_the_picture_shows(root: Path) -> None:
    seen: Counter[str] = Counter()
    for path, text in captions(root, "pairs").items():
        first, _, *relation, _, second, _ = text.split()[1:]
        if {first, second} != {"red", "blue"}:
            continue
        picture = np.asarray(Image.open(root / "pairs" / path), dtype=float)
        redness_HW = picture[:, :, 0] - picture[:, :, 2]
        redness = redness_HW.sum(axis=1 if relation == ["above"] else 0)
        red_side, blue_side = (redness[:16], redness[16:]) if first == "red" else (redness[16:], redness[:16])
        assert red_side.sum() > 0 > blue_side.sum(), (path, text)
        seen[relation[0]] += 1
    assert set(seen) == {"left", "above"}


def test_whole_build_is_left_alone(root: Path) -> None:
    marker = root / "scenes.json"
    before = marker.stat().st_mtime_ns
    build_scenes(root, **TINY, seed=9)
    assert marker.stat().st_mtime_ns == before


def test_broken_off_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(captions: dict[str, str]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scenes, "_coco", stop)
        with pytest.raises(KeyboardInterrupt):
            build_scenes(tmp_path / "scenes", **TINY)
    assert list(tmp_path.iterdir()) == []
    # What kill -9 leaves: a hidden folder, which is nobody's.
    (tmp_path / ".scenes.0.partial/train/one").mkdir(parents=True)
    (tmp_path / "scenes").mkdir()
    build_scenes(tmp_path / "scenes", **TINY)
    assert len(contents(tmp_path / "scenes")) == 10 + 5 + 60 + 10 + 3


def test_second_of_two_builders_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = scenes._write

    def write_while_another_ends(folder: Path, settings: dict[str, int]) -> None:
        monkeypatch.setattr(scenes, "_write", write)
        build_scenes(tmp_path / "scenes", **TINY)
        write(folder, settings)

    monkeypatch.setattr(scenes, "_write", write_while_another_ends)
    build_scenes(tmp_path / "scenes", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    build_scenes(tmp_path / "scenes")


def test_folder_without_marker_is_refused(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", **TINY)
    (tmp_path / "scenes/scenes.json").unlink()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_text("text")
    for name in ("scenes", "photos", "file"):
        with pytest.raises(UserError, match=f"{name}: is not a digit-scenes folder") as caught:
            build_scenes(tmp_path / name, **TINY)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path / "photos") == {"holiday.jpg": b"dear"}


def test_damaged_and_foreign_builds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_scenes(tmp_path / "scenes", **TINY)
    with monkeypatch.context() as patched:
        patched.setattr(scenes, "FORMAT", scenes.FORMAT + 1)
        with pytest.raises(UserError, match="format 1 instead of 2"):
            build_scenes(tmp_path / "scenes")
    (tmp_path / "scenes/train/two/00003.png").unlink()
    with pytest.raises(UserError, match="train/two holds 5 of 6 images"):
        build_scenes(tmp_path / "scenes")


@pytest.mark.parametrize(("name", "value"), [("num_train", 1), ("num_test", 59), ("num_pairs", 7201), ("seed", -1)])
def test_counts_out_of_range_are_refused(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; allowed: "):
        build_scenes(tmp_path / "scenes", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_labels_of_captions() -> None:
    assert caption_labels("a green seven") == (1, 7, -100, -100, 2)
    assert caption_labels("a red three above a cyan nine") == (0, 3, 5, 9, 1)


def test_scenes_are_trained_on_as_open_clip_shows_them(root: Path) -> None:
    open_clip.add_model_config(MODEL_JSON)
    model, _, transform = open_clip.create_model_and_transforms("digit_scenes")
    trained = load_scenes(root)
    for index, (path, text) in list(enumerate(captions(root, "train").items()))[::7]:
        with Image.open(root / "train" / path) as image:
            torch.testing.assert_close(normalise(model, trained.images[index]), transform(image))
        assert trained.captions[trained.caption_ids[index]] == text


def test_equal_captions_count_as_matches() -> None:
    features = torch.eye(3)[[0, 0, 2]]
    scale = torch.tensor(50.0)
    # Two scenes that no one can tell apart cost log 2 each, in both directions; the third costs nothing.
    matched = contrastive_loss(features, features, scale, torch.tensor([4, 4, 1]))
    torch.testing.assert_close(matched, torch.tensor(2 / 3 * np.log(2), dtype=torch.float32))
    assert contrastive_loss(features, features[[2, 1, 0]], scale, torch.tensor([4, 4, 1])) > 10


def test_training_lowers_the_loss_of_a_file_that_open_clip_loads(root: Path, tmp_path: Path) -> None:
    trained = load_scenes(root)
    losses = []
    for name, steps in (("begun", 2), ("trained", 24)):
        out_file = tmp_path / name / "model.safetensors"
        train_dense(root, MODEL_JSON, out_file, steps)
        assert [path.name for path in out_file.parent.iterdir()] == ["model.safetensors"]
        model = open_clip.create_model("digit_scenes", pretrained=str(out_file)).eval()
        tokens_UC = open_clip.get_tokenizer("digit_scenes")(trained.captions)
        assert tokens_UC.shape[1] == 12
        with torch.no_grad():
            images_BD = model.encode_image(normalise(model, trained.images))
            texts_BD = model.encode_text(tokens_UC)[trained.caption_ids]
            scale = model.logit_scale.exp()
            losses.append(contrastive_loss(images_BD, texts_BD, scale, trained.caption_ids).item())
    assert losses[1] < 0.8 * losses[0]


def test_training_repeats_itself(root: Path, tmp_path: Path) -> None:
    callers_stream = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_dense(root, MODEL_JSON, tmp_path / name, steps=3, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), callers_stream)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other
