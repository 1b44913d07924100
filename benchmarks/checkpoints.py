"""Checkpoints of the shapes in use, their weights from a seed: as fast as trained ones.

For machines where those that were trained are not at hand. Every part of a benchmark that wants
one names a folder, and finds there what another part has made before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RATE = 16000

# As many as KBLab/wav2vec2-large-voxrex-swedish has: 46.
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyzåäöéüàáèëïñóôøæ"]

_LAST = "preprocessor_config.json"  # what is written last


def seeded_large(folder: Path) -> Path:
    """A checkpoint of the shape of wav2vec2-large (voxrex, XLS-R, MMS), 315 M parameters."""
    return _seeded(
        folder,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )


def seeded_base(folder: Path) -> Path:
    """A checkpoint of the shape of wav2vec2-base, 94 M parameters."""
    return _seeded(folder)


def _seeded(folder: Path, **shape: Any) -> Path:
    if (folder / _LAST).is_file():
        return folder
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    torch.manual_seed(1)
    config = Wav2Vec2Config(vocab_size=len(LETTERS), pad_token_id=0, **shape)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(folder)
    return folder
