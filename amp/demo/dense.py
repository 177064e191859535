"""The dense CLIP of the demonstration: trained on digit scenes with open_clip, saved as open_clip loads it.

    python -m amp.demo.dense --scenes out/demo/scenes --out out/demo/dense/model.safetensors

Under a minute on two CPU cores; top-1 0.97 over the 60 classes, text-to-image recall@1 0.94 among the 512 pairs.

Shapes: N scenes on disk, U different captions among them, B scenes of a batch, C token positions, D embedding width.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from amp.data.scenes import COLOURS, DIGITS, RELATIONS, build_scenes
from amp.demo import MODEL
from amp.run.console import progress, run_script
from amp.run.files import atomic
from amp.run.sealed import write_tensors
from amp.settings.base import Parser, at_least
from amp.towers.base import quiet

STEPS = 1500
BATCH_SIZE = 48  # 96 in half the steps take as long and learn less
MAX_LR = 2e-3
WARMUP_SHARE = 0.2
MAX_LOGIT_SCALE = 100.0
LABEL_WEIGHT = 2.0  # of the label heads' loss beside the contrastive one

# What a caption says: colour and digit of the first, colour and digit of the second, relation or none.
_LABEL_SIZES = [len(COLOURS), len(DIGITS), len(COLOURS), len(DIGITS), len(RELATIONS) + 1]
_ABSENT = -100  # cross_entropy leaves it out: a class "no second digit" taught less


class TrainingScenes(NamedTuple):
    """The scenes of root/train in memory: pictures, and the place of each one's caption among `captions`."""

    images: Tensor  # (N, 3, H, W) uint8
    caption_ids: Tensor  # (N,) int64
    captions: list[str]  # U, sorted


def train_dense(scenes_root: Path, model_json: Path, out_file: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Trains the model of an open_clip JSON on the scenes that `build_scenes` wrote; saves its state dict.

    The loss is CLIP's, where scenes of equal captions count as matches, plus the loss of linear label heads
    on the image features: without these the digits are learned several times slower. The heads are not saved.
    The same arguments and number of torch threads give the same bytes.
    `out_file` is a safetensors file, which `open_clip.create_model(name, pretrained=out_file)` loads.
    Raises FileNotFoundError where `scenes_root` holds no scenes.
    """
    scenes = load_scenes(scenes_root)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        open_clip.add_model_config(model_json)
        with quiet():
            model = open_clip.create_model(model_json.stem)
        tokens_UC = open_clip.get_tokenizer(model_json.stem)(scenes.captions)
        _forget_other_words(model, tokens_UC)
        _fit(model, scenes, tokens_UC, steps)
    with atomic(out_file) as partial:
        write_tensors(partial, model.state_dict())


def load_scenes(scenes_root: Path) -> TrainingScenes:
    """The scenes of root/train, by their captions file."""
    captions_file = scenes_root / "annotations" / "captions_train.json"
    coco = json.loads(captions_file.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    pictures, texts = [], []
    for annotation in coco["annotations"]:
        with Image.open(scenes_root / "train" / names[annotation["image_id"]]) as picture:
            pictures.append(np.asarray(picture))
        texts.append(annotation["caption"])
    captions = sorted(set(texts))
    place = {caption: index for index, caption in enumerate(captions)}
    images_N3HW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return TrainingScenes(images_N3HW, torch.tensor([place[text] for text in texts]), captions)


def normalise(model: open_clip.CLIP, images_B3HW: Tensor) -> Tensor:
    """uint8 pictures of the model's own size -> float, as open_clip's evaluation transform gives them."""
    settings = open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (images_B3HW / 255 - mean) / std


def contrastive_loss(images_BD: Tensor, texts_BD: Tensor, logit_scale: Tensor, caption_ids_B: Tensor) -> Tensor:
    """CLIP's loss; where a caption stands more than once in the batch, its scenes share the target equally."""
    logits_BB = logit_scale * F.normalize(images_BD, dim=-1) @ F.normalize(texts_BD, dim=-1).T
    equal_BB = (caption_ids_B[:, None] == caption_ids_B).float()
    targets_BB = equal_BB / equal_BB.sum(dim=1)
    return (F.cross_entropy(logits_BB, targets_BB) + F.cross_entropy(logits_BB.T, targets_BB)) / 2


def caption_labels(caption: str) -> tuple[int, int, int, int, int]:
    """Class indices for the label heads; of one digit there is no second, and the relation is the last class."""
    words = caption.split()
    first = (COLOURS.index(words[1]), DIGITS.index(words[2]))
    if len(words) == 3:
        return *first, _ABSENT, _ABSENT, len(RELATIONS)
    relation = RELATIONS.index(" ".join(words[3:-3]))
    return *first, COLOURS.index(words[-2]), DIGITS.index(words[-1]), relation


def _forget_other_words(model: open_clip.CLIP, tokens_UC: Tensor) -> None:
    """Words that no caption has are zero and no word is trained: 3.2 million parameters of 3.7, for some 20 words."""
    weight_VD = model.token_embedding.weight.requires_grad_(False)
    used_V = torch.zeros(len(weight_VD), dtype=torch.bool)
    used_V[tokens_UC] = True
    weight_VD[~used_V] = 0.0


def _fit(model: open_clip.CLIP, scenes: TrainingScenes, tokens_UC: Tensor, steps: int) -> None:
    """Trains `model` in place for `steps` steps of AdamW, one cycle of the learning rate."""
    heads = nn.Linear(model.text_projection.shape[1], sum(_LABEL_SIZES))
    labels_U5 = torch.tensor([caption_labels(caption) for caption in scenes.captions])
    trained = [p for p in (*model.parameters(), *heads.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps, pct_start=WARMUP_SHARE)
    model.train()
    bar = progress(_batches(len(scenes.images), steps), "dense CLIP", "step")
    for rows_B in bar:
        ids_B = scenes.caption_ids[rows_B]
        images_BD = model.encode_image(normalise(model, scenes.images[rows_B]))
        texts_BD = model.encode_text(tokens_UC[ids_B])
        loss = contrastive_loss(images_BD, texts_BD, model.logit_scale.exp(), ids_B)
        for logits, labels_B in zip(heads(images_BD).split(_LABEL_SIZES, dim=1), labels_U5[ids_B].T, strict=True):
            loss = loss + LABEL_WEIGHT * F.cross_entropy(logits, labels_B, ignore_index=_ABSENT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(MAX_LOGIT_SCALE))
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _batches(num_scenes: int, steps: int) -> Tensor:
    """Scenes of each step, (steps, B), shuffled: each one comes once before any comes again."""
    batch_size = min(BATCH_SIZE, num_scenes)
    needed = steps * batch_size
    rounds = [torch.randperm(num_scenes) for _ in range(-(-needed // num_scenes))]
    return torch.cat(rounds)[:needed].view(steps, batch_size)


def main() -> None:
    parser = Parser(prog="python -m amp.demo.dense", description="Trains the demo's dense CLIP.")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of the digit scenes; built if missing")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--model", type=Path, default=MODEL, help="open_clip model JSON (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="seed of the initialisation and the order of images (default: %(default)s)",
    )
    args = parser.parse_args()
    build_scenes(args.scenes)
    train_dense(args.scenes, args.model, args.out, args.steps, args.seed)


if __name__ == "__main__":
    run_script(main)
