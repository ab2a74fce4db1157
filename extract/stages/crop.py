"""Aligned face pictures of 112 x 112 pixels."""

from typing import TYPE_CHECKING

from extract.stage import VALID, Output, RowsBatch, RowsStage, SourceStage, StageConfig
from extract.stages.detections import NUM_LANDMARKS
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor

SIZE_PX = 112
TEMPLATE = (
    (38.2946, 51.6963),  # eye at the image's left
    (73.5318, 51.5014),
    (56.0252, 71.7366),  # tip of the nose
    (41.5493, 92.3655),  # corner of the mouth at the image's left
    (70.7299, 92.2041),
)
"""Where the five points come to lie, x and y in pixels of the crop, an integer being a pixel's centre. The template
of ArcFace (Deng et al. 2019) as insightface's ``face_align.py`` has it."""

MIN_SPREAD_PX2 = 1.0
"""Least summed squared distance of the five points from their mean: below it they are one point, with no direction."""
MIN_SCALE = 1e-3
"""Least enlargement of the fit: a face a hundred thousand pixels wide is none."""


class CropConfig(StageConfig):
    """Nothing to choose: the template fixes size and place."""


class Crop(RowsStage[CropConfig]):
    """Least-squares similarity (Umeyama 1991, without reflection) of five points, bilinear, black outside the frame."""

    name = "crop"
    version = 1
    config_type = CropConfig
    inputs = ("frames.image", "faces.landmarks")

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("image", FRAMES, ("y", "x", "rgb"), (SIZE_PX, SIZE_PX, 3), "uint8", kept=False),
            # The landmarks in crop coordinates / 112.
            Output("point", FRAMES, ("point", "xy"), (NUM_LANDMARKS, 2), "float32"),
            VALID,
        )

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``frames.image``: B tensors, uint8 RGB [H, W, 3]; ``faces.landmarks`` [B, 68, 2] in pixels of the frame.

        Rows whose five points coincide fix no similarity: they come back not valid.
        """
        import torch

        marks = batch["faces.landmarks"]
        if isinstance(marks, list):
            marks = torch.stack(marks)
        marks = marks.double()  # [B, 68, 2]
        turn, shift, valid = fit_similarity(five_points(marks), marks.new_tensor(TEMPLATE))
        # Pixel centres of the crop, x then y: [112 * 112, 2]
        y, x = torch.meshgrid(*(torch.arange(SIZE_PX, dtype=torch.float64, device=marks.device),) * 2, indexing="ij")
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
        at = (pixels - shift[:, None]) @ torch.linalg.inv(turn).mT  # [B, 112 * 112, 2] in pixels of the frame
        crops = torch.stack([sample(image, where) for image, where in zip(batch["frames.image"], at, strict=True)])
        point = (marks @ turn.mT + shift[:, None]) / SIZE_PX
        return {
            "image": crops.reshape(-1, SIZE_PX, SIZE_PX, 3) * valid[:, None, None, None],
            "point": point.float() * valid[:, None, None],
            "valid": valid,
        }


class GivenCrop(SourceStage[CropConfig]):
    """What stands for ``Crop`` in a clip that brings its crops: read from files, without landmarks.

    Its recipe is that of ``Crop``; its source names the part ``crops``.
    """

    name = "crop"
    version = Crop.version
    config_type = CropConfig
    parts = ("crops",)
    empty_reason = "no_face"

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output("image", FRAMES, ("y", "x", "rgb"), (SIZE_PX, SIZE_PX, 3), "uint8", kept=False), VALID)


def five_points(landmarks: "Tensor") -> "Tensor":
    """Eyes, nose and mouth corners out of iBUG's 68 landmarks: [B, 68, 2] -> [B, 5, 2]."""
    import torch

    eyes = [landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)]
    return torch.stack([*eyes, landmarks[:, 30], landmarks[:, 48], landmarks[:, 54]], dim=1)


def fit_similarity(source: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Rotation times scale [B, 2, 2] and shift [B, 2] that bring ``source`` [B, P, 2] nearest to ``target`` [P, 2].

    In the plane the least-squares similarity without reflection is a regression on one complex number a + ib
    (target = (a + ib) source + shift), which has a closed form. The third value, bool [B], says whether the points
    fix it; where they do not, the identity is given.
    """
    import torch

    p = source - source.mean(dim=1, keepdim=True)
    q = target - target.mean(dim=0)
    spread = (p * p).sum(dim=(1, 2))  # [B]
    safe = spread.clamp(min=MIN_SPREAD_PX2)
    a = (p * q).sum(dim=(1, 2)) / safe
    b = (p[..., 0] * q[:, 1] - p[..., 1] * q[:, 0]).sum(dim=1) / safe
    valid = (spread >= MIN_SPREAD_PX2) & (torch.hypot(a, b) >= MIN_SCALE)
    a, b = torch.where(valid, a, 1.0), torch.where(valid, b, 0.0)
    turn = torch.stack([torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)], dim=-2)
    shift = target.mean(dim=0) - (turn @ source.mean(dim=1)[..., None])[..., 0]
    return turn, shift, valid


def sample(image: "Tensor", at: "Tensor") -> "Tensor":
    """Bilinear colours of ``image`` (uint8 [H, W, 3]) at points [N, 2], x then y, integers being pixel centres.

    Outside lies black: a point half a pixel beyond the last centre is half as bright. uint8 [N, 3], rounded.
    """
    import torch

    height, width = image.shape[:2]
    corner = at.floor()
    right, down = (at - corner).float().unbind(dim=-1)
    x0, y0 = corner.clamp(-2, max(height, width) + 1).long().unbind(dim=-1)
    colours = image.reshape(-1, 3)
    total = torch.zeros((len(at), 3), device=image.device)
    for dx, dy, share in (
        (0, 0, (1 - right) * (1 - down)),
        (1, 0, right * (1 - down)),
        (0, 1, (1 - right) * down),
        (1, 1, right * down),
    ):
        x, y = x0 + dx, y0 + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = (y * width + x).where(inside, 0)
        total += colours[index] * (share * inside)[:, None]
    return total.round().to(torch.uint8)
