"""Configs for a measurement of the whole pipeline: small networks for a CPU, published sizes for a GPU. Untrained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from extract.config import ExtractConfig, load_extract_config
from extract.demo.sound import load_words
from extract.graph import build_graph
from extract.models import random, realesrgan, roberta
from extract.weights.table import RANDOM

SMALL_SR = {"width": 16, "num_convs": 4}
"""A network of the form of ``realesr-general-x4v3``, which has 64 and 32."""
LEFT_OUT = "labels=null"


def small(folder: Path) -> ExtractConfig:
    """The demo's config, with a small Real-ESRGAN in place of its Lanczos: x4 on at most 112 pixels, as published."""
    shapes = realesrgan.srvgg_shapes(SMALL_SR["width"], num_convs=SMALL_SR["num_convs"])
    drawn = random.draw(shapes, seed="pipeline")
    last = f"body.{2 * SMALL_SR['num_convs'] + 2}.weight"
    drawn[last] *= np.float32(0.02)  # levels stay near those of the picture that is added at the end
    path = folder / "superres.safetensors"
    _save(path, drawn)
    return load_extract_config("demo", [LEFT_OUT, f"superres.weights={path}", "superres.outscale=4"])


def published(folder: Path) -> ExtractConfig:
    """The built-in default, its weights drawn once and read from files, as a user's would be.

    HuBERT-XL's are drawn for half a minute; all files take 6 GB.
    """
    default = load_extract_config("default", [LEFT_OUT])
    settings = []
    for name, instance in build_graph(default).items():
        stage = instance.stage
        if stage.device != "gpu" or stage.weights is None:
            continue
        into = folder / name
        into.mkdir(parents=True)
        path = into / "model.safetensors"
        _save(path, stage.random_weights())
        if stage.name == "roberta":
            write_vocabulary(into, roberta.ARCHITECTURES[stage.config.architecture].num_ids)
            path = into
        settings.append(f"{name}.weights={path}")
    return load_extract_config("default", [LEFT_OUT, *settings])


def write_vocabulary(folder: Path, size: int) -> None:
    """A byte-level vocabulary of that many entries, in which the demo's words are one or a few tokens each."""
    merges: dict[tuple[str, str], None] = {}
    for voice in load_words().values():
        for word in voice:
            for text in (word.text, f"\u0120{word.text}"):  # byte-level BPE writes a space as U+0120
                merges.update(((text[:end], text[end]), None) for end in range(1, len(text)))
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [one for one in dict.fromkeys(a + b for a, b in merges) if one not in symbols]
    symbols += [f"<unused{number}>" for number in range(size - len(symbols))]
    (folder / "vocab.json").write_text(json.dumps({text: number for number, text in enumerate(symbols)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def untrained(config: ExtractConfig) -> bool:
    """Whether an instance draws its weights itself, on every run anew."""
    return any(instance.stage.weights == RANDOM for instance in build_graph(config).values())


def _save(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    save_file({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}, path)
