"""Tiny models of Hugging Face transformers on disk, for the tests of their towers."""

from io import BytesIO
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from amp.data.scenes import CLASS_NAMES
from amp.settings.model import ModelSettings
from amp.towers.base import quiet

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VISION = {**SIZE, "intermediate_size": 48}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
TEXT |= {"vocab_size": 54, "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 1}
DUAL = {"vision_config": VISION, "text_config": TEXT}
DINOV3 = {"num_register_tokens": 4}


def write(folder: Path, name: str, config: dict[str, Any], seed: int = 0) -> Any:
    """Saves a tiny model of a class with weights that make every part matter; returns it."""
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = kind(kind.config_class(**config)).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return model


def settings(folder: Path, **more: Any) -> ModelSettings:
    return ModelSettings(frame="hf", name=str(folder), **more)


def add_clip_tokenizer(folder: Path) -> None:
    """Of single letters; the end token has the last id, 53."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    transformers.CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)


def add_siglip_tokenizer(folder: Path) -> None:
    """SentencePiece, with the ids and the settings of the released ones."""
    file = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CLASS_NAMES),
        model_writer=file,
        vocab_size=48,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(file.getvalue())
    vocab_file = str(folder / "spiece.model")
    transformers.SiglipTokenizer(vocab_file, model_input_names=["input_ids"]).save_pretrained(folder)
