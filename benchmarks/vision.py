"""The vision stages: frames per second, work per frame, share of the machine's peak; each with its equality gate.

    python -m benchmarks.vision [--device cpu|cuda] [--compile] [--precision float16] [--pairs 7]
                                [--stages superres,ghfeat] [-o FILE.json]

Every stage is timed as the pipeline calls it (uint8 in, uint8 or float32 out, its own batch), in turn with the naive
way: one picture at a time, channels first, norms not folded, as the original scripts work. The networks have a row
without their levers and, on a GPU or with ``--compile``, one with them: batches for the device, the push form, and
with ``--compile`` compiled blocks and CUDA graphs. Weights are random, of the published sizes (benchmarks/gates.py);
pictures are smooth noise. Ends with 1 if a gate fails, with 2 if the machine was too restless.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import one_by_one
from benchmarks.gates import GateError, features_are_near, pictures_are_near, realistic, require
from benchmarks.machine import gemm_gflops, name_of, ratios, said_after
from extract.models import realesrgan
from extract.models.ffhq import align as ffhq
from extract.models.ghfeat import network
from extract.running.recipes import DEFAULT_PRECISION
from extract.stage import Context, RowsStage
from extract.stages import ghfeat, swin
from extract.stages import superres as superres_stage
from extract.stages.align import Align, AlignConfig
from extract.stages.crop import TEMPLATE, Crop, CropConfig, fit_similarity, five_points, patches
from extract.stages.landmarks import Landmarks, LandmarksConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.weights.files import Weights
from extract.weights.resolving import resolve

EXPECTED_GFLOP = {"superres": 449.75, "ghfeat": 16.96, "swin": 8.98}
"""Per frame, counted on the published architectures."""
H200_GOALS = {"superres": 527, "ghfeat": 13_000, "swin": 17_600}
"""Frames per second."""


@dataclass(frozen=True)
class Way:
    """How the networks are run."""

    device: torch.device
    precision: torch.dtype
    levers: bool = False
    """Batches for the device, the push form."""
    compile: bool = False
    """Compiled blocks and CUDA graphs as well."""

    def rows(self, stage: type[RowsStage[Any]], on_cpu: int) -> int:
        """Frames per call."""
        if self.device.type == "cpu":
            return on_cpu
        return (self.levers and stage.device_batch) or stage.batch


@dataclass(frozen=True)
class Subject:
    """One stage and what it is compared with."""

    stage: str
    frames: int
    """Per call of ``ours``."""
    ours: Callable[[], object]
    naive: Callable[[], object]
    """The same frames."""
    gflop: float | None
    gate: Callable[[], str]
    """What was compared, and how near it is; raises GateError."""
    levers: dict[str, Any]
    """What is in force."""
    setup_s: float
    """Weights, compiling and capturing."""


@dataclass(frozen=True)
class Row:
    """What was measured of a stage."""

    stage: str
    batch: int
    frames_per_s: float
    ms_per_frame: float
    gflop_per_frame: float | None
    expected_gflop: float | None
    share_of_gemm: float | None
    naive_times: float
    """How many times as long the naive way takes, with the range of four pairs in five."""
    naive_low: float
    naive_high: float
    h200_goal_per_s: int | None
    gate: str
    levers: dict[str, Any]
    setup_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; two contend on a shared machine")
    parser.add_argument("--stages", default="crop,superres,landmarks,align,ghfeat,swin")
    parser.add_argument("--compile", action="store_true", help="compile blocks, capture CUDA graphs")
    parser.add_argument("--precision", choices=("float32", "float16", "bfloat16"), help="default: the device's own")
    parser.add_argument("-o", "--output", dest="out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(asked.device)
    precision = getattr(torch, asked.precision or DEFAULT_PRECISION[device.type])
    before = gemm_gflops(device, precision)
    print(f"{name_of(device)}; torch {torch.__version__}; {precision}; GEMM {before:,.0f} GFLOP/s")
    rows, failed = [], False
    for subject in subjects(Way(device, precision), asked.stages.split(","), compiled=asked.compile):
        try:
            gate = subject.gate()
        except GateError as error:
            print(f"{subject.stage}: NOT EQUAL: {error}; its speed says nothing")
            failed = True
            continue
        rows.append(measure(subject, device, asked.pairs, before, gate))
        print(said(rows[-1]), flush=True)
    after = said_after(before, device, precision)
    if asked.out:
        facts = {
            "device": name_of(device),
            "torch": torch.__version__,
            "precision": str(precision),
            "gemm_gflops": before,
            "gemm_gflops_after": after.gemm_gflops,
            "load_per_core": after.load_per_core,
            "restless": not after.quiet,
            "pairs": asked.pairs,
        }
        asked.out.write_text(json.dumps(facts | {"stages": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 1 if failed else 0 if after.quiet else 2


def measure(subject: Subject, device: torch.device, pairs: int, gemm: float, gate: str) -> Row:
    took, times, low, high = ratios(subject.ours, subject.naive, device, pairs)
    per_s = subject.frames / took
    share = None if subject.gflop is None else per_s * subject.gflop / gemm
    return Row(
        subject.stage, subject.frames, per_s, 1e3 / per_s, subject.gflop, EXPECTED_GFLOP.get(subject.stage), share,
        times, low, high, H200_GOALS.get(subject.stage), gate, subject.levers, subject.setup_s,
    )  # fmt: skip


def said(row: Row) -> str:
    work = f"{row.gflop_per_frame:8.2f} GFLOP (table {row.expected_gflop})" if row.gflop_per_frame else " " * 8
    share = f"{row.share_of_gemm:.0%} of GEMM" if row.share_of_gemm is not None else ""
    goal = f"; goal on an H200 {row.h200_goal_per_s:,}/s" if row.h200_goal_per_s else ""
    naive = f"naive x{row.naive_times:.2f} [{row.naive_low:.2f}, {row.naive_high:.2f}]"
    speed = f"{row.stage:10} {row.frames_per_s:9.2f} frames/s  batch {row.batch}"
    levers = f"\n{'':10} {row.levers}, set up in {row.setup_s:.1f} s" if row.levers else ""
    return f"{speed}  {work}  {share}  {naive}{goal}{levers}\n{'':10} gate: {row.gate}"


# ---- the stages ----------------------------------------------------------------------------------------------------


NETWORKS = ("superres", "ghfeat", "swin")


def subjects(way: Way, wanted: list[str], *, compiled: bool) -> Iterator[Subject]:
    """Built one after the other: their weights are large."""
    makers = {
        "crop": crop,
        "superres": superres,
        "landmarks": landmarks,
        "align": align,
        "ghfeat": gh_feat,
        "swin": swin_tiny,
    }
    for name in wanted:
        yield makers[name](way)
        if name in NETWORKS and (compiled or way.device.type == "cuda"):
            yield makers[name](Way(way.device, way.precision, levers=True, compile=compiled))


def pictures(count: int, side: int) -> Tensor:
    """Smooth noise, uint8 [count, side, side, 3]."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((count, 3, 12, 12), dtype=np.float32))
    fine = functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 255
    return fine.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def ready(stage: RowsStage[Any], way: Way, rows: int, weights: Weights) -> float:
    """Set up; the seconds it took."""
    start = time.perf_counter()
    pushed_on = superres_stage.PUSHED_ON if way.levers else frozenset()
    with patch.object(superres_stage, "PUSHED_ON", pushed_on):
        stage.setup(Context(way.device, way.precision, weights, compile=way.compile, batch=rows))
    return time.perf_counter() - start


def gflop_of(net: torch.nn.Module, picture: Tensor) -> float:
    """Multiplications and additions of one forward."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(picture)
    return float(counter.get_total_flops()) / 1e9


def superres(way: Way) -> Subject:
    stage = Superres(SuperresConfig(weights="random"))
    weights = realistic(resolve("random", stage))
    count = way.rows(Superres, on_cpu=1)
    setup_s = ready(stage, way, count, weights)
    images = pictures(count, 112).to(way.device)
    boxes = torch.zeros(count, 4)
    net = realesrgan.load(weights).net.to(way.device)  # channels first
    gflop = gflop_of(realesrgan.load(weights).net.to("meta"), torch.empty(1, 3, 112, 112, device="meta"))

    def naive(kind: torch.dtype = way.precision) -> Tensor:
        net.to(kind)
        with torch.inference_mode():
            planes = [net((image.permute(2, 0, 1)[None].float() / 255).to(kind)) for image in images]
        return torch.cat(planes).float().clamp(0, 1).mul(255).round().permute(0, 2, 3, 1)

    def ours() -> Any:
        return stage.compute({"crop.patch": list(images), "crop.patch_box": boxes})["image"]

    def gate() -> str:
        reference = naive(torch.float32)  # first: the other number types round the weights
        return pictures_are_near(torch.stack(ours()), naive(), reference)

    return Subject("superres", count, ours, naive, gflop, gate, stage.levers, setup_s)


def gh_feat(way: Way, architecture: Literal["resnet50-256", "resnet18-256", "small"] = "resnet50-256") -> Subject:
    stage = ghfeat.Ghfeat(ghfeat.GhfeatConfig(weights="random", architecture=architecture))
    weights = resolve("random", stage)
    count = way.rows(ghfeat.Ghfeat, on_cpu=8)
    setup_s = ready(stage, way, count, weights)
    side = network.ARCHITECTURES[architecture].image_px
    images = pictures(count, side).to(way.device)
    whole = network.build(architecture)
    counters = {n: torch.zeros((), dtype=torch.long) for n in whole.state_dict() if n.endswith("tracked")}
    whole.load_state_dict(counters | weights.tensors(), assign=True)
    whole = whole.to(way.device)
    planes = ghfeat.prepare(images, side, "bilinear")
    with torch.device("meta"):
        gflop = gflop_of(network.build(architecture), torch.empty(1, 3, side, side))
    return _network("ghfeat", stage, "align.image", "code", images, whole, planes, gflop, way, setup_s)


def swin_tiny(way: Way) -> Subject:
    from extract.models import swin as models

    config = swin.SwinConfig(weights="random", output="tokens")
    stage = swin.Swin(config)
    weights = resolve("random", stage)
    count = way.rows(swin.Swin, on_cpu=8)
    setup_s = ready(stage, way, count, weights)
    images = pictures(count, 112).to(way.device)
    net = models.load("tiny", weights).to(way.device)
    planes = swin.prepare(images, config)
    gflop = gflop_of(models.load("tiny", weights), torch.zeros(1, 3, 224, 224))

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.forward_features(x).flatten(1, 2)

    return _network("swin", stage, "crop.image", "token", images, Tokens(), planes, gflop, way, setup_s)


def _network(
    name: str,
    stage: RowsStage[Any],
    given: str,
    output: str,
    images: Tensor,
    net: torch.nn.Module,
    planes: Tensor,
    gflop: float,
    way: Way,
    setup_s: float,
) -> Subject:
    """A stage that ends in one network; ``net`` is the plain one, ``planes`` what it is fed in float32."""

    def naive(kind: torch.dtype = way.precision) -> Tensor:
        net.to(kind)
        with torch.inference_mode():
            return torch.cat([net(one[None].to(kind)) for one in planes]).float()

    def ours() -> Any:
        return stage.compute({given: images})[output]

    def gate() -> str:
        reference = naive(torch.float32)  # first: the other number types round the weights
        return features_are_near(ours(), naive(), reference)

    return Subject(name, len(images), ours, naive, gflop, gate, stage.levers, setup_s)


def landmarks(way: Way) -> Subject:
    del way  # dlib, one thread
    import dlib
    from PIL import Image

    photo = Path(__file__).resolve().parents[1].parent / "shared" / "media" / "one_face.jpg"
    stage = Landmarks(LandmarksConfig())
    weights = resolve(stage.config.weights, stage, offline=True)
    stage.setup(Context(torch.device("cpu"), torch.float32, weights))
    if photo.exists():
        with Image.open(photo) as opened:
            image = np.array(opened.convert("RGB").resize((448, 448)))
    else:
        image = pictures(1, 448)[0].numpy()
    found = dlib.get_frontal_face_detector()(image, 0)
    edges = (found[0].left(), found[0].top(), found[0].right(), found[0].bottom()) if found else (100, 100, 350, 350)
    batch: dict[str, Any] = {
        "superres.image": [torch.from_numpy(image)] * 4,
        "superres.box": torch.tensor([edges] * 4).float(),
    }
    predictor, detector = dlib.shape_predictor(str(weights.path)), dlib.get_frontal_face_detector()

    def naive(upsample: int = 1) -> list[Any]:
        """As FFHQ's scripts: the picture doubled first."""
        return [predictor(image, (detector(image, upsample) or [dlib.rectangle(*edges)])[0]) for _ in range(4)]

    def ours() -> Any:
        return stage.compute(batch)["point"]

    def gate() -> str:
        expected = [[point.x, point.y] for point in naive(0)[0].parts()]
        require(ours()[0].tolist() == expected, "not dlib's own points")
        face = "a face" if found else "no face"
        return f"equal to dlib's own points ({face} in the picture); the naive way doubles the picture first"

    return Subject("landmarks", 4, ours, naive, None, gate, {}, 0.0)


def align(way: Way) -> Subject:
    """Pictures of the sizes that super-resolution gives; half of the faces leave theirs."""
    count = 32 if way.device.type == "cuda" else 8
    images = [pictures(1, (256, 448, 448, 640)[i % 4])[0] for i in range(count)]
    marks = torch.zeros(count, 68, 2)
    marks[:, 36:42], marks[:, 42:48] = torch.tensor([-0.12, -0.08]), torch.tensor([0.12, -0.07])
    marks[:, 48], marks[:, 54] = torch.tensor([-0.09, 0.16]), torch.tensor([0.09, 0.165])
    sides = torch.tensor([float(len(image)) for image in images])[:, None, None]
    grown = torch.tensor([1.0, 1.0, 0.6, 0.6])[torch.arange(count) % 4][:, None, None]
    marks = (marks * grown + 0.5) * sides
    stage = Align(AlignConfig())
    on_device = [image.to(way.device) for image in images]
    plan = ffhq.plan(marks, images, 256)
    preparations = [found for found in map(plan.row, range(count)) if found is not None]

    def ours() -> Any:
        return stage.compute({"superres.image": on_device, "landmarks.point": marks})["image"]

    def naive() -> Tensor:
        """Its geometry is given."""
        return torch.stack([
            one_by_one.aligned(image, preparation, 256, 1024)
            for image, preparation in zip(on_device, preparations, strict=True)
        ])

    def gate() -> str:
        found = ours().cpu().int()
        off = (found - ffhq.align(images, plan, 256, 1024, "pillow").int()).abs()
        same, most = float((off == 0).all(dim=-1).float().mean()), int(off.max())
        require(same >= 0.985, f"{same:.2%} of the pixels equal to Pillow's")
        require(most <= 1, f"{most} levels from Pillow")
        near = float((found == naive().cpu().int()).all(dim=-1).float().mean())
        require(near >= 0.997, f"{near:.2%} of the pixels equal to one picture at a time")
        return f"{same:.2%} of the pixels equal to Pillow's, {most} level apart at most (at least 98.5 %, 1)"

    return Subject("align", count, ours, naive, None, gate, {}, 0.0)


def crop(way: Way) -> Subject:
    """Frames of 1280 x 720; the naive way computes on their device too, one after the other."""
    count = 32
    frames = pictures(count, 1280)[:, :720].contiguous()
    five = (torch.tensor(TEMPLATE) - 56) * torch.linspace(1, 3, count)[:, None, None] + torch.tensor([640.0, 360])
    marks = five[:, 2:3].repeat(1, 68, 1)
    marks[:, 36:42], marks[:, 42:48], marks[:, 48], marks[:, 54] = five[:, :1], five[:, 1:2], five[:, 3], five[:, 4]
    stage = Crop(CropConfig())
    on_device, boxes = frames.to(way.device), torch.zeros(count, 4)

    def ours() -> Any:
        given = {"frames.image": on_device, "faces.landmarks": marks, "faces.box": boxes}
        return stage.compute(given)["image"]

    def naive(images: Tensor = on_device) -> Tensor:
        turn, shift, _ = fit_similarity(five_points(marks.double()), torch.tensor(TEMPLATE).double())
        line = torch.arange(112, dtype=torch.float64)
        y, x = torch.meshgrid(line, line, indexing="ij")
        at = (torch.stack([x, y], dim=-1).reshape(-1, 2) - shift[:, None]) @ torch.linalg.inv(turn).mT
        patches(list(images), marks.double().numpy())
        crops = [one_by_one.cropped(image, where.to(image.device)) for image, where in zip(images, at, strict=True)]
        return torch.stack(crops).reshape(-1, 112, 112, 3)

    def gate() -> str:
        off = (ours().cpu().int() - naive(frames).int()).abs()
        near = float((off <= 1).float().mean())
        require(near >= 0.999, f"{near:.4%} within one level of one frame at a time on the CPU")
        return f"{float((off == 0).float().mean()):.4%} equal to one frame at a time on the CPU, {int(off.max())} apart"

    return Subject("crop", count, ours, naive, None, gate, {}, 0.0)


if __name__ == "__main__":
    sys.exit(main())
