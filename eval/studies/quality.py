"""The quality of a tower on images that are held in memory.

B images, C classes, N texts or labelled images, E width of an embedding, D width of a feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.identity import folder_digest
from amp.errors import UserError, under
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.knn import KS, vote
from amp.evaluation.readers.folders import ClassFolders
from amp.evaluation.readers.texts import read_lines
from amp.evaluation.zeroshot import Evaluator
from amp.evaluation.zeroshot.classifiers import load_classifiers
from amp.run.files import file_sha256, json_sha256
from amp.run.world import world
from amp.settings.compare import CompareConfig, CompareTestSettings
from amp.towers import Tower, build_tower

AT_ONCE = 512  # images
Quality = dict[str, float]
Embed = Callable[[Tensor], Tensor]  # images (B, C, S, S) -> unit embeddings (B, E), fp32, on the CPU
Classify = Callable[[Embed, Tensor], Tensor]  # and embeddings (B, E) -> classes (B,)


@dataclass(frozen=True)
class InMemoryQuality:
    """Measures a tower on images held in memory; its text tower is the dense one's.

    Attributes:
        dense: the tower whose features are the target.
        classify: what class an embedding is of.
        labelled: (image, class) of every test image.
        captioned: (image, captions) of every scene; none where there are no captions.
    """

    dense: Tower
    classify: Classify
    labelled: Sequence[tuple[Tensor, int]]
    captioned: Sequence[tuple[Tensor, Sequence[str]]] = ()

    @property
    def device(self) -> torch.device:
        return self.dense.device

    @cached_property
    def _labelled(self) -> Tensor:
        return torch.stack([image for image, _ in self.labelled]).to(self.device, self.dense.dtype)

    @cached_property
    def _captioned(self) -> Tensor:
        return torch.stack([image for image, _ in self.captioned]).to(self.device, self.dense.dtype)

    @property
    def _watched(self) -> Tensor:
        """The images whose features are compared with the dense ones."""
        return self._captioned if self.captioned else self._labelled

    @cached_property
    @torch.no_grad()
    def _texts(self) -> Tensor:
        assert self.dense.encode_text is not None
        texts = [text for _, captions in self.captioned for text in captions]
        tokens = self.dense.make_tokenizer()(texts).to(self.device)
        return F.normalize(self.dense.encode_text(tokens).float(), dim=-1).cpu()

    @cached_property
    def _features(self) -> Tensor:
        return run_all(self.dense.feature, self._watched)

    @torch.no_grad()
    def measure(self, tower: Tower) -> Quality:
        """`{top1, recall1, cosine}`: of the classes, text to image where there are captions, and mean cosine of the
        features to the dense ones.
        """
        features_BD = run_all(tower.feature, self._watched)
        cosine = F.cosine_similarity(features_BD, self._features).mean().item()
        if not self.captioned:
            embedded = tower.encode_image is None
            known_BE = F.normalize(features_BD, dim=-1) if embedded else embed(tower, self._labelled)
            return {"top1": self._accuracy(tower, known_BE), "cosine": cosine}
        owners = [i for i, (_, captions) in enumerate(self.captioned) for _ in captions]
        found_N = (self._texts @ embed(tower, self._captioned).T).argmax(dim=1)
        recall = (found_N == torch.tensor(owners)).double().mean().item()
        return {"top1": self.top1(tower), "recall1": recall, "cosine": cosine}

    def top1(self, tower: Tower) -> float:
        """Accuracy alone."""
        return self._accuracy(tower, embed(tower, self._labelled))

    def _accuracy(self, tower: Tower, embeddings_BE: Tensor) -> float:
        classes_B = torch.tensor([label for _, label in self.labelled])
        found_B = self.classify(partial(embed, tower), embeddings_BE)
        return (found_B == classes_B).double().mean().item()


@torch.no_grad()
def run_all(run: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Tensor:
    """What `run` makes of all images, some at a time, fp32 on the CPU."""
    return torch.cat([run(part_BCHW).float().cpu() for part_BCHW in images_BCHW.split(AT_ONCE)])


def embed(tower: Tower, images_BCHW: Tensor) -> Tensor:
    """(B, E) of unit length, on the CPU: features where the model has no text tower."""
    return F.normalize(run_all(tower.encode_image or tower.feature, images_BCHW), dim=-1)


def by_texts(classifier_EC: Tensor) -> Classify:
    """The class of the nearest text."""
    return lambda embed, embeddings_BE: (embeddings_BE @ classifier_EC).argmax(dim=1)


def by_neighbours(images_NCHW: Tensor, labels_N: Tensor, k: int = KS[0]) -> Classify:
    """The class that the `k` nearest labelled images vote for, as `amp.evaluation.knn` counts."""
    return lambda embed, embeddings_BE: vote(embed(images_NCHW), labels_N, embeddings_BE, [k])[k]


def open_quality(config: CompareConfig) -> InMemoryQuality:
    """On the test images, decoded once.

    Raises:
        UserError: the model has no text tower where one is asked, or what `test` names does not fit.
    """
    dense, data = build_tower(config.model, str(world().device)), config.data
    if config.test is not None:
        return _open_own(dense, config.test)
    labelled = Benchmark("zeroshot_classification", data.name, data.root).build(dense.transform)
    captioned = Benchmark("zeroshot_retrieval", data.name, data.root).build(dense.transform)
    classifier_EC = Evaluator(dense).text_classifier(labelled.classes, labelled.templates)
    return InMemoryQuality(dense, by_texts(classifier_EC), list(labelled), list(captioned))


def _open_own(dense: Tower, test: CompareTestSettings) -> InMemoryQuality:
    images = ClassFolders("test.root", test.root, dense.transform)
    if test.neighbours is not None:
        others = ClassFolders("test.neighbours", test.neighbours, dense.transform)
        if others.classes != images.classes:
            raise UserError("test.neighbours", f"{test.neighbours}: its class folders differ from those of {test.root}")
        pairs = _read(others)
        others_NCHW = torch.stack([image for image, _ in pairs]).to(world().device, dense.dtype)
        return InMemoryQuality(
            dense, by_neighbours(others_NCHW, torch.tensor([label for _, label in pairs])), _read(images)
        )
    if test.text_features is None:
        built = Benchmark("zeroshot_classification", "imagefolder", test.root).build(dense.transform)
        classifier_EC = Evaluator(dense).text_classifier(built.classes, built.templates)
        return InMemoryQuality(dense, by_texts(classifier_EC), _read(images))
    names = images.classes if test.text_classes is None else read_lines("test.text_classes", test.text_classes)
    if missing := sorted(set(images.classes) - set(names)):
        raise UserError("test.text_classes", f"{test.text_classes}: has no line for the class folder {missing[0]}")
    header = {"num_classes": str(len(names)), "dataset": test.root, "language": "en", "model": str(dense.base["name"])}
    header["classes_sha256"] = json_sha256(names)
    with under("test.text_features", instead_of="--load_clfs"):
        width = embed(dense, images[0][0][None].to(world().device, dense.dtype)).shape[1]
        classifier_EC = load_classifiers([test.text_features], header, width, any_model=True)
    labelled = [(image, names.index(images.classes[label])) for image, label in _read(images)]
    return InMemoryQuality(dense, by_texts(F.normalize(classifier_EC, dim=0)), labelled)


def _read(images: ClassFolders) -> list[tuple[Tensor, int]]:
    return [images[index] for index in range(len(images))]


def digests_of_test(config: CompareConfig) -> dict[str, str | None]:
    """Of the files that `test` names, for what decides a result. Raises UserError where a folder cannot be read."""
    test = config.test
    if test is None:
        return {}
    folders = {"test": test.root, "neighbours": test.neighbours}
    files = {"text_features": test.text_features, "text_classes": test.text_classes}
    return {
        **{f"{key}_sha256": folder_digest(root, f"test.{key}") for key, root in folders.items() if root is not None},
        **{f"{key}_sha256": file_sha256(path) for key, path in files.items() if path is not None},
    }
