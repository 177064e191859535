"""Zero-shot classification and retrieval: the measurements of clip_benchmark, over any number of processes.

In fp32 they equal those of clip_benchmark on one process to the last digit, on every number of processes, and so does
the text classifier where a batch of prompts is a class; where batches cross the classes it differs by rounding, 1e-6 at
most. In bf16 the encoders autocast, but similarities stay in fp32: the 8 bits of bf16 would tie neighbouring classes.

Shapes: B images (of a batch, or all), T texts, C classes, D width of an embedding, K highest classes or items.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from amp.errors import UserError
from amp.evaluation.accuracy import Metrics, accuracies
from amp.evaluation.sharding import ShardedBatches
from amp.run.console import progress
from amp.run.world import world
from amp.settings.base import Precision
from amp.towers import Tower

DATASET_ROOT = "--dataset_root"
RECALL_KS = (1, 5, 10)


@dataclass(frozen=True)
class Evaluator:
    """Measures a model, each process on its share of the batches.

    Attributes:
        tower: needs no text encoder for `classify`; without an image encoder of its own, its feature is the embedding.
        batch_size: images in one batch on one process.
        precision: 'bf16' autocasts the encoders.
        num_workers: loader workers per process, at most one a core.
        text_batch_size: prompts of the text classifier in one batch on one process; 80 are a class of ImageNet.
        option: that named the dataset's folder, for messages.
        in_step: as of `ShardedBatches`.
    """

    tower: Tower
    batch_size: int = 256
    precision: Precision = "fp32"
    num_workers: int = 4
    text_batch_size: int = 80
    option: str = DATASET_ROOT
    in_step: bool = False
    _classifiers: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_text(self) -> bool:
        """Whether the model can embed texts."""
        return self.tower.encode_text is not None

    @property
    def _own_batches(self) -> ShardedBatches:
        return ShardedBatches(self.batch_size, self.num_workers, self.in_step)

    def embed_width(self) -> int:
        """D of the model's images."""
        side = self.tower.image_size
        return self._embed_images(torch.zeros(1, 3, side, side)).shape[1]

    def text_classifier(self, classes: Sequence[str], templates: Any) -> Tensor:
        """(D, C) fp32 on the CPU: for each class the mean of its prompts' embeddings, normalised.

        Kept: ImageNet, ImageNetV2 and ImageNet-Sketch have one.

        Args:
            templates: prompts with '{c}' where the class stands, or a dict with the prompts of each class.
        Raises:
            UserError: the model has no text encoder.
        """
        self.check_text()
        by_class = isinstance(templates, dict)
        prompts = tuple(tuple(templates[c] if by_class else [t.replace("{c}", c) for t in templates]) for c in classes)
        if prompts not in self._classifiers:
            self._classifiers[prompts] = self._build_classifier(prompts)
        return self._classifiers[prompts]

    def _build_classifier(self, prompts: tuple[tuple[str, ...], ...]) -> Tensor:
        # Two pairs of ImageNet's classes share a name. Embedded once, they tie in every image, as in clip_benchmark.
        distinct = list(dict.fromkeys(prompts))
        texts = [(row, prompt) for row, of_class in enumerate(distinct) for prompt in of_class]
        tokenizer = self.tower.make_tokenizer()
        prompt_batches = ShardedBatches(self.text_batch_size, 0)
        own: dict[int, dict[int, Tensor]] = {}
        for index, span in progress(prompt_batches.spans(len(texts)).items(), "text classifier", "batch"):
            rows, batch = zip(*(texts[i] for i in span), strict=True)
            counts = Counter(rows)  # in the order of the rows
            parts = self._embed_texts(tokenizer, list(batch)).split(list(counts.values()))
            own[index] = {row: part.sum(dim=0).cpu() for row, part in zip(counts, parts, strict=True)}
        sums_D: dict[int, Any] = defaultdict(float)
        for of_batch in prompt_batches.in_order(own):
            for row, sum_D in of_batch.items():
                sums_D[row] = sums_D[row] + sum_D
        means_D = {of_class: sums_D[row] / len(of_class) for row, of_class in enumerate(distinct)}
        return torch.stack([means_D[of_class] / means_D[of_class].norm() for of_class in prompts], dim=1)

    def classify(self, dataset: Any, classifier_DC: Tensor) -> tuple[Metrics, int]:
        """The metrics and the number of images.

        One label an image: acc1, acc5 (None below five classes), mean_per_class_recall. Several labels an
        image: mean_average_precision.
        """
        classifier_DC = classifier_DC.to(world().device)
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images, labels) in self._own_batches.batches(dataset, default_collate, self.option):
            logits_BC = self.logits(images, classifier_DC)
            if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classifier_DC.shape[1]:
                raise UserError(
                    self.option,
                    f"labels from {int(labels.min())} to {int(labels.max())}; "
                    f"with {classifier_DC.shape[1]} classes, 0 to {classifier_DC.shape[1] - 1} are allowed",
                    rank_local=True,
                )
            if labels.ndim == 2:
                own[index] = (logits_BC, labels)
            else:
                top_BK = logits_BC.topk(min(5, logits_BC.shape[1])).indices
                # argmax and topk break ties differently, and clip_benchmark takes both.
                own[index] = (logits_BC.argmax(dim=1), top_BK, labels)
        columns = self._own_batches.columns(own, self.option)
        measure = _average_precision if len(columns) == 2 else accuracies
        return world().from_main(lambda: (measure(*columns), len(columns[0])))

    def logits(self, images_BCHW: Tensor, classifier_DC: Tensor) -> Tensor:
        """(B, C) fp32 on the CPU; the classifier lies on the device of this process."""
        return (100.0 * self._embed_images(images_BCHW) @ classifier_DC).cpu()

    def retrieve(self, dataset: Any) -> tuple[Metrics, int]:
        """image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5, 10, and the number of images.

        Recall: the share of texts with their image, or of images with one of their texts, in the k nearest.
        """
        self.check_text()
        tokenizer = self.tower.make_tokenizer()
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images, captions) in self._own_batches.batches(dataset, list, self.option, "captioned images"):
            counts_B = torch.tensor([len(of_image) for of_image in captions])
            texts_TD = self._embed_texts(tokenizer, [text for of_image in captions for text in of_image])
            own[index] = (self._embed_images(images).cpu(), texts_TD.cpu(), counts_B)
        columns = self._own_batches.columns(own, self.option)
        return world().from_main(lambda: (self._recalls(*columns), len(columns[0])))

    def _recalls(self, images_BD: Tensor, texts_TD: Tensor, counts_B: Tensor) -> Metrics:
        scores_TB = texts_TD @ images_BD.t()
        image_of_T = torch.arange(len(images_BD)).repeat_interleave(counts_B)
        metrics: Metrics = {}
        for k in RECALL_KS:
            hit_T = (self._nearest(scores_TB, k) == image_of_T[:, None]).any(dim=1)
            hit_B = (image_of_T[self._nearest(scores_TB.t(), k)] == torch.arange(len(images_BD))[:, None]).any(dim=1)
            metrics[f"image_retrieval_recall@{k}"] = hit_T.float().mean().item()
            metrics[f"text_retrieval_recall@{k}"] = hit_B.float().mean().item()
        return metrics

    def _nearest(self, scores: Tensor, k: int) -> Tensor:
        """Columns of the k highest scores of every row, on the CPU; of all when there are fewer."""
        k = min(k, scores.shape[1])
        return torch.cat([rows.to(world().device).topk(k).indices.cpu() for rows in scores.split(self.batch_size)])

    def check_text(self) -> None:
        """Raises UserError when the model has no text encoder."""
        if not self.has_text:
            raise UserError(
                "--model",
                f"{self.tower.base['name']} has no text encoder, which zero-shot tasks need; add one to a published "
                "vision checkpoint with --text_pretrained, or give text classifiers for classification with "
                "--load_clfs",
            )

    def _embed_images(self, images_BCHW: Tensor) -> Tensor:
        encode = self.tower.encode_image or self.tower.feature
        return self._embed(encode, images_BCHW.to(world().device, self.tower.dtype))

    def _embed_texts(self, tokenizer: Any, texts: list[str]) -> Tensor:
        assert self.tower.encode_text is not None
        return self._embed(self.tower.encode_text, tokenizer(texts).to(world().device))

    def _embed(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        autocast = torch.autocast(world().device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.no_grad(), autocast:
            features = encode(inputs)
        features = F.normalize(features.float(), dim=-1)
        if not features.isfinite().all():
            raise UserError("--model", f"{self.tower.base['name']}: its features are NaN or infinite", rank_local=True)
        return features


def _average_precision(logits_BC: Tensor, labels_BC: Tensor) -> Metrics:
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class

    return {"mean_average_precision": average_precision_per_class(logits_BC, labels_BC).mean().item()}
