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

SR_WIDTH, SR_CONVS = 16, 4
"""Of a network of the form of ``realesr-general-x4v3``, which has 64 and 32."""
LEFT_OUT = "labels=null"


def small(folder: Path) -> ExtractConfig:
    """The demo's config, with a small Real-ESRGAN in place of its Lanczos: x4 on at most 112 pixels, as published."""
    shapes = realesrgan.srvgg_shapes(SR_WIDTH, num_convs=SR_CONVS)
    drawn = random.draw(shapes, seed="pipeline")
    # Levels stay near those of the picture that is added at the end.
    drawn[f"body.{2 * SR_CONVS + 2}.weight"] *= np.float32(0.02)
    path = folder / "superres.safetensors"
    _save(path, drawn)
    return load_extract_config("demo", [LEFT_OUT, f"superres.weights={path}", "superres.outscale=4"])


def published(folder: Path, spec: str = "default") -> ExtractConfig:
    """A built-in config, its networks' weights drawn once and read from files, as a user's would be.

    Those of the default take 6 GB, and HuBERT-XL's alone half a minute to draw.
    """
    settings = [LEFT_OUT, "run.compile=on"]  # as `auto` would, with as many frames as a real run has
    for name, instance in build_graph(load_extract_config(spec, settings)).items():
        stage = instance.stage
        if stage.device != "gpu" or stage.weights is None:
            continue
        into = folder / name
        into.mkdir(parents=True)
        path = into / "model.safetensors"
        drawn = dict(stage.random_weights())
        _save(path, seeing(drawn) if stage.name == "superres" else drawn)
        if stage.name == "roberta":
            write_vocabulary(into, roberta.ARCHITECTURES[stage.config.architecture].num_ids)
            path = into
        settings.append(f"{name}.weights={path}")
    return load_extract_config(spec, settings)


def seeing(drawn: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights of an RRDBNet through which a face remains one: else no later step would find any.

    Its first three channels hand the picture's colours on, enlarged; the others compute as before, and show faintly.
    """
    weights = {name: values.copy() for name, values in drawn.items()}
    weights["conv_last.weight"] *= np.float32(0.02 / 0.04)
    weights["conv_last.bias"] *= np.float32(0)
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_body", "conv_last"):
        if name != "conv_last":  # which mixes the others in
            weights[f"{name}.weight"][:3] = 0
        weights[f"{name}.bias"][:3] = 0
        if name != "conv_body":  # whose result is added to the colours
            weights[f"{name}.weight"][range(3), range(3), 1, 1] = 1
    return weights


def write_vocabulary(folder: Path, size: int) -> None:
    """A byte-level vocabulary of ``size`` entries, in which the demo's words, if there is room, are few tokens each."""
    merges: dict[tuple[str, str], None] = {}
    for voice in load_words().values():
        for word in voice:
            for text in (word.text, f"\u0120{word.text}"):  # byte-level BPE writes a space as U+0120
                merges.update(((text[:end], text[end]), None) for end in range(1, len(text)))
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    kept = list(merges)[: size - len(symbols)]
    symbols += dict.fromkeys(before + after for before, after in kept)
    symbols += [f"<unused{number}>" for number in range(size - len(symbols))]
    (folder / "vocab.json").write_text(json.dumps({text: number for number, text in enumerate(symbols)}))
    lines = ["#version: 0.2", *(f"{before} {after}" for before, after in kept)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _save(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    save_file({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}, path)
