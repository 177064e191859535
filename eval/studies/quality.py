"""The quality of a tower on images that are held in memory.

B images, C classes, N texts, E width of an embedding, D width of a feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.zeroshot import Evaluator
from amp.run.world import world
from amp.settings.compare import CompareConfig
from amp.towers import Tower, build_tower

Quality = dict[str, float]


@dataclass(frozen=True)
class InMemoryQuality:
    """Measures a tower on images held in memory; its text tower is the dense one's.

    Attributes:
        dense: the tower whose features are the target.
        classifier_EC: text embeddings of the classes.
        labelled: (image, class) of every test image.
        captioned: (image, captions) of every scene.
    """

    dense: Tower
    classifier_EC: Tensor
    labelled: Sequence[tuple[Tensor, int]]
    captioned: Sequence[tuple[Tensor, Sequence[str]]]

    @property
    def device(self) -> torch.device:
        return next(self.dense.visual.parameters()).device

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor]:
        labelled_BCHW, captioned_BCHW = (
            torch.stack([image for image, _ in items]).to(self.device, self.dense.dtype)
            for items in (self.labelled, self.captioned)
        )
        return labelled_BCHW, captioned_BCHW

    @cached_property
    @torch.no_grad()
    def _texts(self) -> Tensor:
        assert self.dense.encode_text is not None
        texts = [text for _, captions in self.captioned for text in captions]
        return F.normalize(self.dense.encode_text(self.dense.make_tokenizer()(texts).to(self.device)).float(), dim=-1)

    @cached_property
    @torch.no_grad()
    def _features(self) -> Tensor:
        return self.dense.feature(self._images[1])

    @torch.no_grad()
    def measure(self, tower: Tower) -> Quality:
        """`{top1, recall1, cosine}`: zero-shot, text to image, and mean cosine of the features to the dense ones."""
        assert tower.encode_image is not None
        _, captioned_BCHW = self._images
        owners = [i for i, (_, captions) in enumerate(self.captioned) for _ in captions]
        embeddings_BE = F.normalize(tower.encode_image(captioned_BCHW).float(), dim=-1)
        found_N = (self._texts @ embeddings_BE.T).argmax(dim=1).cpu()
        cosine_B = F.cosine_similarity(tower.feature(captioned_BCHW), self._features)
        return {
            "top1": self.top1(tower),
            "recall1": (found_N == torch.tensor(owners)).double().mean().item(),
            "cosine": cosine_B.mean().item(),
        }

    @torch.no_grad()
    def top1(self, tower: Tower) -> float:
        """Zero-shot accuracy alone."""
        assert tower.encode_image is not None
        classes_B = torch.tensor([label for _, label in self.labelled])
        found_B = (tower.encode_image(self._images[0]).float().cpu() @ self.classifier_EC).argmax(dim=1)
        return (found_B == classes_B).double().mean().item()


def open_quality(config: CompareConfig) -> InMemoryQuality:
    """On the test images of the data set, decoded once. Raises UserError where the model has no text tower."""
    dense, data = build_tower(config.model, str(world().device)), config.data
    labelled = Benchmark("zeroshot_classification", data.name, data.root).build(dense.transform)
    captioned = Benchmark("zeroshot_retrieval", data.name, data.root).build(dense.transform)
    classifier_EC = Evaluator(dense).text_classifier(labelled.classes, labelled.templates)
    return InMemoryQuality(dense, classifier_EC, list(labelled), list(captioned))
