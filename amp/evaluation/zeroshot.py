"""Zero-shot classification and retrieval: the measurements of clip_benchmark, over any number of processes.

In fp32 they equal those of clip_benchmark on one process to the last digit, on every number of processes, and so does
the text classifier where a batch of prompts is a class; where batches cross the classes it differs by rounding, 1e-6 at
most. In bf16 the encoders autocast, but similarities stay in fp32: the 8 bits of bf16 would tie neighbouring classes.

Shapes: B images (of a batch, or all), T texts, C classes, D width of an embedding, K highest classes or items.
"""

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.utils.data import default_collate

from amp.errors import UserError
from amp.evaluation.classifiers import classifier_header, load_classifiers, save_classifier
from amp.evaluation.options import ZeroshotOptions
from amp.evaluation.results import Evaluation, digest_model, open_evaluation, open_model, with_images
from amp.evaluation.sharding import ShardedBatches
from amp.run.console import progress, say
from amp.run.files import check_writable, file_sha256
from amp.run.identity import PACKAGES
from amp.run.world import world
from amp.settings.base import Precision
from amp.towers import Tower

Metrics = dict[str, float | None]
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
            logits_BC = (100.0 * self._embed_images(images) @ classifier_DC).cpu()
            if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classifier_DC.shape[1]:
                raise UserError(
                    self.option,
                    f"labels from {int(labels.min())} to {int(labels.max())}; "
                    f"of {classifier_DC.shape[1]} classes, 0 to {classifier_DC.shape[1] - 1} are allowed",
                    rank_local=True,
                )
            if labels.ndim == 2:
                own[index] = (logits_BC, labels)
            else:
                top_BK = logits_BC.topk(min(5, logits_BC.shape[1])).indices
                # argmax and topk break ties differently, and clip_benchmark takes both.
                own[index] = (logits_BC.argmax(dim=1), top_BK, labels)
        columns = self._own_batches.columns(own, self.option)
        measure = _average_precision if len(columns) == 2 else _accuracies
        return world().from_main(lambda: (measure(*columns), len(columns[0])))

    def retrieve(self, dataset: Any) -> tuple[Metrics, int]:
        """image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5, 10, and the number of images.

        Recall: the share of texts with their image, or of images with one of their texts, in the k nearest.
        """
        self.check_text()
        tokenizer = self.tower.make_tokenizer()
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images, captions) in self._own_batches.batches(dataset, list, self.option):
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
                f"{self.tower.base['name']} has no text encoder, as zero-shot tasks need; a published "
                "vision checkpoint takes that of --text_pretrained, and classification text classifiers of --load_clfs",
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
            raise UserError(
                "--model", f"{self.tower.base['name']}: its features are no numbers (NaN or infinite)", rank_local=True
            )
        return features


def _accuracies(pred_B: Tensor, top_BK: Tensor, label_B: Tensor) -> Metrics:
    hits_BK = top_BK == label_B[:, None]
    with warnings.catch_warnings():
        # It warns of few images a class, and of predicted classes without an image.
        warnings.simplefilter("ignore", UserWarning)
        recall = float(balanced_accuracy_score(label_B.numpy(), pred_B.numpy()))
    return {
        "acc1": hits_BK[:, 0].sum().item() / len(label_B),
        "acc5": hits_BK.sum().item() / len(label_B) if top_BK.shape[1] == 5 else None,
        "mean_per_class_recall": recall,
    }


def _average_precision(logits_BC: Tensor, labels_BC: Tensor) -> Metrics:
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class

    return {"mean_average_precision": average_precision_per_class(logits_BC, labels_BC).mean().item()}


def open_evaluations(each: Sequence[ZeroshotOptions]) -> list[Evaluation[ZeroshotOptions]]:
    """The evaluation of each data set, by the options of `amp.evaluation.options.parse_zeroshot`; nothing is measured.

    Raises:
        UserError: a file cannot be written.
    """
    model = each[0]
    precision = model.precision or ("bf16" if world().device.type == "cuda" else "fp32")

    def open_all() -> list[Evaluation[ZeroshotOptions]]:
        digests, of_texts = digest_model(model), {"text_sha256": file_sha256(model.text_pretrained)}
        for key, file in [("--table", file) for file in model.table] + [("--save_clf", own.save_clf) for own in each]:
            if file:
                check_writable(key, file)
        return [
            with_images(
                open_evaluation(
                    replace(own, precision=precision),
                    (own.dataset, own.task),
                    digests,
                    (*PACKAGES, "clip_benchmark"),
                    load_clfs_sha256=[*map(file_sha256, own.load_clfs)],
                    **(of_texts if own.builds_classifier else {}),
                ),
                (DATASET_ROOT, own.dataset_root),
            )
            for own in each
        ]

    return world().from_main(open_all)


def find_record(run: Evaluation[ZeroshotOptions]) -> dict[str, Any] | None:
    """The record, if it and the classifier that is asked for are there. Raises UserError where it is of another run."""
    record, classifier = run.found(run.name), run.config.save_clf
    return record if world().from_main(lambda: classifier is None or Path(classifier).exists()) else None


def open_evaluator(options: ZeroshotOptions) -> Evaluator:
    """The model, on the device of this process.

    Args:
        options: of any of the data sets, of an evaluation that is open.
    Raises:
        UserError: there is no such model, or it lacks the text encoder that is needed.
    """
    assert options.precision is not None
    tower = open_model(options, "fp32", str(world().device), options.text_pretrained)
    evaluator = Evaluator(tower, options.batch_size, options.precision, options.num_workers, options.text_batch_size)
    if not options.load_clfs:
        evaluator.check_text()
    return evaluator


def measure_zeroshot(run: Evaluation[ZeroshotOptions], evaluator: Evaluator) -> dict[str, Any]:
    """The record of one data set, which is written: `{metrics, num_images, seconds, ...}`."""
    options, tower = run.config, evaluator.tower
    dataset = options.benchmark.build(tower.transform)
    run = world().from_main(lambda: with_images(run, (DATASET_ROOT, options.dataset_root)))  # some are made or fetched
    started = time.monotonic()
    if options.task == "zeroshot_retrieval":
        metrics, num_images = evaluator.retrieve(dataset)
    else:
        metrics, num_images = evaluator.classify(dataset, _open_classifier(options, evaluator, dataset))
    record = {key: getattr(options, key) for key in ("model", "pretrained", "task", "dataset")}
    record |= {"base": tower.base["name"], "metrics": metrics, "num_images": num_images}
    return run.write(run.name, {**record, "seconds": round(time.monotonic() - started, 2)})


def _open_classifier(options: ZeroshotOptions, evaluator: Evaluator, dataset: Any) -> Tensor:
    """The (D, C) text classifier, from --load_clfs or from the class names; written to --save_clf."""
    header = classifier_header(evaluator.tower, options.dataset, options.language, dataset)
    if options.load_clfs:
        width, any_model = evaluator.embed_width(), not evaluator.has_text
        classifier_DC = world().from_main(lambda: load_classifiers(options.load_clfs, header, width, any_model))
    else:
        classifier_DC = evaluator.text_classifier(dataset.classes, dataset.templates)
    if options.save_clf and world().is_main:
        save_classifier(Path(options.save_clf), classifier_DC, header)
        say(f"wrote {options.save_clf}")
    return classifier_DC
