"""Laws of the cross entropy of zero-shot classification, and of the scores by it.

B images, C classes, E embedding width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal
from helpers.gates import by_masks, random_batches
from helpers.numbered_images import write_images
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.run.world import World, among
from amp.scoring.criteria.cross_entropy import (
    class_embeddings,
    folder_labels,
    score_classification,
    zero_shot_cross_entropy,
)
from amp.scoring.criterion import Scoring
from amp.settings.data import DataSettings
from amp.settings.model import ModelSettings
from amp.settings.score import ScoreSettings
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower, build_tower


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_that_of_cosines_times_100() -> None:
    embedding_BE, classifier_EC = normal(6, 5), F.normalize(normal(5, 4, seed=1), dim=0)
    label_B = torch.tensor([0, 3, 1, 1, 2, 0])
    cosine_BC = (embedding_BE / embedding_BE.norm(dim=1, keepdim=True)).double() @ classifier_EC.double()
    expected = -(100 * cosine_BC).log_softmax(dim=1)[torch.arange(6), label_B].sum()
    found = zero_shot_cross_entropy(7 * embedding_BE, classifier_EC, label_B)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    predicted = zero_shot_cross_entropy(embedding_BE, classifier_EC)
    assert torch.equal(predicted, zero_shot_cross_entropy(embedding_BE, classifier_EC, cosine_BC.argmax(dim=1)))
    assert predicted < found


@pytest.mark.parametrize("with_labels", [False, True])
def test_cross_entropy_scores_are_its_gates_derivatives(tower: Tower, with_labels: bool) -> None:
    (images_BCHW,) = random_batches(1)
    classifier_EC = F.normalize(torch.randn(48, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    labels = [0, 1, 2, 3, 4, 0] if with_labels else None
    label_B = torch.tensor(labels) if labels else None
    expected = by_masks(
        tower,
        images_BCHW,
        lambda: zero_shot_cross_entropy(tower.encode_image(images_BCHW), classifier_EC, label_B) / len(images_BCHW),
    )
    found = score_classification(Scoring(tower, [images_BCHW], ScoreSettings()), classifier_EC, labels)
    for found_H, expected_BH in zip(found, expected, strict=True):
        torch.testing.assert_close(found_H, expected_BH.abs().mean(dim=0), rtol=1e-3, atol=1e-6)


def test_cross_entropy_without_a_text_tower_is_refused() -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    tower = build_tower(ModelSettings(frame="timm", name="vit_base_patch16_224", kwargs=kwargs))
    settings = ScoreSettings(criterion="cross_entropy", classes=("a", "b"))
    message = refusal(lambda: class_embeddings(tower, settings))
    assert message.startswith("score.criterion: cross_entropy: vit_base_patch16_224 has no text encoder")


def test_labels_go_on_with_their_images(tower: Tower, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randn(5, 4, 3, 32, 32, generator=generator))
    classifier_EC, labels = torch.randn(48, 3, generator=generator), [i % 3 for i in range(20)]

    def first_three() -> Iterator[Tensor]:
        yield from batches[:3]
        raise KeyboardInterrupt

    class Three(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            return first_three() if index == slice(0, None) else super().__getitem__(index)

    def run(images: list[Tensor], saved: SavedSums | None) -> list[Tensor]:
        return score_classification(Scoring(tower, images, ScoreSettings(), saved), classifier_EC, labels)

    path, header = tmp_path / "sums.safetensors", {"settings": {}}
    with pytest.raises(KeyboardInterrupt):
        run(Three(batches), SavedSums(path, header, 2))
    saved = SavedSums(path, header, 2)
    assert saved.num_batches == 2
    resumed, whole = run(batches, saved), run(batches, None)
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_are_the_folders_of_each_process_in_order(tower: Tower, tmp_path: Path, shuffle: bool) -> None:
    write_images(tmp_path, *(f"train/{'cab'[i % 3]}/{i:03d}.png" for i in range(23)))
    settings = DataSettings(name="imagefolder", root=str(tmp_path), batch_size=4, shuffle=shuffle, num_workers=0)
    paths = list_images(settings, "train")
    found: list[list[int]] = []
    for rank in range(2):
        with among(World(rank, 2, torch.device("cpu"))):
            found.append(folder_labels(Batches(paths, tower.transform, settings), 3))
    batches = Batches(paths, tower.transform, settings)
    files = [batches.files(0, batch) for batch in range(5)]
    expected = [["abc".index(Path(str(file)).parent.name) for file in batch] for batch in files]
    assert found == [[label for batch in expected for label in batch[2 * rank : 2 * rank + 2]] for rank in range(2)]
    assert folder_labels(batches, 3) == [label for batch in expected for label in batch]
