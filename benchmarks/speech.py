"""Speech and words: seconds of sound and windows of words per second, beside plain ways, and as a share of the GEMM.

    python -m benchmarks.speech [--device cpu|cuda] [--pairs 7] [--hubert small] [--roberta small] [--seconds 20]
                                [--only hubert,roberta,adapt] [-o FILE.json] [--text FILE.txt]

    hubert    a recording through the stage, from the samples in memory to float16 features in memory, as a share of
              transformers' bare forward of the same samples, that lie on the device normalised
    roberta   the distinct texts of the windows around the frames, by the stage; one text per forward takes how many
              times as long
    adapt     updates of ``extract adapt --stage hubert``, which read, crop and mask sound, against the bare step:
              forward, backward, clipping, AdamW on batches that lie ready

The share of the GEMM: arithmetic of the network (multiplications and additions of its matrix products, convolutions and
attention) per second, as a share of what a plain product of large matrices reached before. Weights are random, of the
named architecture; without names the smallest on a CPU, the published ones on a GPU. Ends with 1 if a gate fails, with
2 if the machine was too restless.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import setup
from benchmarks.adapt_steps import AdaptSteps
from benchmarks.gates import GateError, features_are_near, require
from benchmarks.machine import commit, gemm_gflops, load_per_core, name_of, ratios, said_after
from extract.adapt.hubert_config import HubertAdaptConfig
from extract.models import hubert as hubert_models
from extract.models import roberta as roberta_models
from extract.models.waveform import normalised
from extract.running.recipes import DEFAULT_PRECISION
from extract.stage import Context
from extract.stages.hubert import Hubert, HubertConfig
from extract.stages.wave import WAVE_HZ
from extract.weights.resolving import resolve

USUAL = {"cpu": ("small", "small", 20.0), "cuda": ("xlarge", "large", 100.0)}
"""Architectures and seconds of sound where none are named."""
H100_GOALS = {("hubert", "xlarge"): 1_800.0, ("roberta", "large"): 30_000.0}
"""Seconds of sound, in recordings of 100 s, and windows per second."""
BARE_GOAL, ADAPT_GOAL = 0.95, 0.9
MINUTES = {"cpu": 0.5, "cuda": 20.0}
"""Of speech whose words are read."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how."""

    device: torch.device
    precision: torch.dtype
    hubert: str
    roberta: str
    seconds: float
    pairs: int
    gemm_gflops: float


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    per_s: float
    unit: str
    gemm_share: float | None
    """None where no arithmetic is counted."""
    ratio: float
    low: float
    high: float
    """Median, and the range of four rounds in five."""
    ratio_of: str
    goal: float | None
    """Of the ratio."""
    h100_goal: float | None
    """Of ``per_s``."""
    gate: str

    def __str__(self) -> str:
        share = "" if self.gemm_share is None else f", {self.gemm_share:.0%} of the GEMM"
        wanted = "" if self.h100_goal is None else f" (goal on an H100: {self.h100_goal:,.0f})"
        goal = "" if self.goal is None else f", goal {self.goal:g}{'' if self.ratio >= self.goal else ' MISSED'}"
        return (
            f"{self.what}: {self.per_s:,.1f} {self.unit}{wanted}{share}\n"
            f"  {self.ratio_of}: {self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]{goal}\n"
            f"  gate: {self.gate}"
        )


# ---- HuBERT --------------------------------------------------------------------------------------------------------


def hubert(setting: Setting) -> Iterator[Row]:
    stage = ready(setting.hubert, setting.device, setting.precision)
    samples = sound(setting.seconds)
    lying = normalised(samples).to(setting.device, setting.precision)[None]

    def ours() -> Tensor:
        found = stage.compute({"wave.samples": samples.to(setting.device), "wave.start_s": 0.0})
        return found.arrays["feature"].to(torch.float16).cpu()  # type: ignore[union-attr]

    @torch.inference_mode()
    def bare() -> Tensor:
        hidden: Tensor = stage._final_norm(stage._model(lying).last_hidden_state[0])
        return hidden

    gate = near_plain(stage, setting, samples, bare())
    took, times, low, high = ratios(ours, bare, setting.device, setting.pairs)
    share = hubert_gflop(hubert_models.ARCHITECTURES[setting.hubert], len(samples)) / took / setting.gemm_gflops
    yield Row(
        f"hubert {setting.hubert}, {setting.seconds:g} s",
        setting.seconds / took,
        "seconds of sound/s",
        share,
        times,
        low,
        high,
        "share of the bare forward",
        BARE_GOAL,
        H100_GOALS.get(("hubert", setting.hubert)),
        gate,
    )


def ready(architecture: str, device: torch.device, precision: torch.dtype) -> Hubert:
    config: dict[str, Any] = {"weights": "random", "architecture": architecture, "dtype": "float32"}
    stage = Hubert(HubertConfig(**config))
    stage.setup(Context(device, precision, resolve("random", stage)))
    return stage


def sound(seconds: float) -> Tensor:
    """Noise that swells: [n] at 16 kHz."""
    at = torch.arange(round(seconds * WAVE_HZ)) / WAVE_HZ
    noise = torch.randn(len(at), generator=torch.Generator().manual_seed(0))
    return 0.1 * noise * (0.6 + 0.4 * torch.sin(5 * at))


def near_plain(stage: Hubert, setting: Setting, samples: Tensor, bare: Tensor) -> str:
    """Raises GateError where the stage's features are not those of transformers' forward in float32."""
    found = stage.compute({"wave.samples": samples.to(setting.device), "wave.start_s": 0.0}).arrays["feature"]
    exact = ready(setting.hubert, setting.device, torch.float32)
    with torch.inference_mode():
        reference = exact._final_norm(exact._model(normalised(samples).to(setting.device)[None]).last_hidden_state[0])
    return features_are_near(found, bare, reference)  # type: ignore[arg-type]


def hubert_gflop(sizes: hubert_models.Architecture, num_samples: int) -> float:
    """1e9 multiplications and additions of one forward of a whole recording."""
    length, channels, total = num_samples, 1, 0
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        length = (length - kernel) // stride + 1
        total += length * kernel * channels * sizes.conv_width
        channels = sizes.conv_width
    total += length * channels * sizes.width  # projection
    # The positional convolution: 128 steps, 16 groups; of an even kernel comes one row too many.
    total += (length + 1) * 128 * sizes.width * (sizes.width // 16)
    total += sizes.num_layers * layer_products(length, sizes.width, sizes.mlp_width)
    return 2 * total / 1e9


def layer_products(length: int, width: int, mlp_width: int) -> int:
    """Multiplications of one transformer layer: four projections, two of the MLP, scores and their sums."""
    return length * (4 * width * width + 2 * width * mlp_width) + 2 * length * length * width


# ---- RoBERTa -------------------------------------------------------------------------------------------------------


def roberta(setting: Setting) -> Iterator[Row]:
    minutes = MINUTES[setting.device.type]
    (pair,) = setup.texts(setting.roberta, minutes, setting.device, setting.precision)
    gate = pair.gate()
    found: Any = pair.ours()
    lengths = lengths_of(found.arrays["range"])
    took, times, low, high = ratios(pair.ours, pair.plain, setting.device, setting.pairs)
    share = roberta_gflop(roberta_models.ARCHITECTURES[setting.roberta], lengths) / took / setting.gemm_gflops
    yield Row(
        f"roberta {setting.roberta}, {len(lengths)} windows of {sum(lengths) / len(lengths):.0f} tokens",
        len(lengths) / took,
        "windows/s",
        share,
        times,
        low,
        high,
        "one text per forward takes so many times as long",
        None,
        H100_GOALS.get(("roberta", setting.roberta)),
        gate,
    )


def lengths_of(ranges: Tensor) -> list[int]:
    """Tokens of each distinct text, of the frames' ranges [T, 2]."""
    return [stop - start for start, stop in torch.unique(ranges, dim=0).tolist() if stop > start]


def roberta_gflop(sizes: roberta_models.Architecture, lengths: Sequence[int]) -> float:
    """1e9 multiplications and additions: each text between ``<s>`` and ``</s>``."""
    each = (layer_products(length + 2, sizes.width, sizes.mlp_width) for length in lengths)
    return 2 * sizes.num_layers * sum(each) / 1e9


def adapting(setting: Setting) -> Iterator[Row]:
    """Updates of ``extract adapt``, float32 on a CPU and bfloat16 on a GPU, of crops of up to 15.6 s."""
    config, number = HubertAdaptConfig(), 8
    if setting.device.type == "cpu":  # little sound in an update, so that a round takes seconds
        config, number = config.model_copy(update={"batch_s": 16.0, "device_s": 8.0}), 4
    with tempfile.TemporaryDirectory() as folder:
        steps = AdaptSteps(Path(folder), setting.hubert, setting.device, config, number)
        apart = steps.gradients_apart()
        require(apart <= 1e-6, f"gradients {apart:.1e} apart")
        took, times, low, high = ratios(steps.loop, steps.bare, setting.device, setting.pairs)
        steps.close()
    yield Row(
        f"adapt {setting.hubert}",
        steps.sound_s / took,
        "seconds of sound/s",
        None,
        times,
        low,
        high,
        "share of the bare step",
        ADAPT_GOAL,
        None,
        f"the gradients of an update, {apart:.1e} apart (1e-6)",
    )


# ---- the command ---------------------------------------------------------------------------------------------------

ROWS: Mapping[str, Callable[[Setting], Iterator[Row]]] = {"hubert": hubert, "roberta": roberta, "adapt": adapting}
"""What can be measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    torch.set_num_threads(asked.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(asked.device)
    precision_name = DEFAULT_PRECISION[device.type]
    precision = getattr(torch, precision_name)
    load, before = load_per_core(), gemm_gflops(device, precision)
    facts = {"device": name_of(device), "torch": torch.__version__, "precision": precision_name, "commit": commit()}
    say("{device}; torch {torch}; {precision}; commit {commit}".format_map(facts))
    say(f"GEMM {before:,.0f} GFLOP/s; load per core {load:.2f}; medians of {asked.pairs} rounds, range of four in five")
    usual = USUAL[device.type]
    setting = Setting(
        device,
        precision,
        asked.hubert or usual[0],
        asked.roberta or usual[1],
        asked.seconds or usual[2],
        asked.pairs,
        before,
    )
    rows, failed = [], False
    for name in asked.only.split(","):
        try:
            for row in ROWS[name](setting):
                rows.append(row)
                say(str(row))
        except GateError as error:
            say(f"{name}: NOT EQUAL: {error}; its speed says nothing")
            failed = True
    after = said_after(before, device, precision, say, load)
    if asked.text:
        asked.text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if asked.output:
        whole = facts | {"gemm_gflops": before, "after": asdict(after), "rows": [asdict(row) for row in rows]}
        asked.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0 if after.quiet else 2


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; two contend on a shared machine")
    parser.add_argument("--hubert", choices=hubert_models.ARCHITECTURES)
    parser.add_argument("--roberta", choices=roberta_models.ARCHITECTURES)
    parser.add_argument("--seconds", type=float, help="of sound; up to 300 of it attend to each other")
    parser.add_argument("--only", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--text", type=Path, help="what is printed, as a file too")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    asked = parser.parse_args(arguments)
    if asked.pairs < 2:
        parser.error("--pairs: at least 2, for a range")
    if asked.seconds is not None and not 1 <= asked.seconds <= 300:
        parser.error("--seconds: 1 to 300; what is longer is cut, which the bare forward does not do")
    unknown = sorted({*asked.only.split(",")} - {*ROWS})
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} unknown; expected some of {','.join(ROWS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
