"""Aligned face pictures of 112 x 112 pixels."""

from typing import TYPE_CHECKING

import numpy as np

from extract.inputs.crops import SIZE_PX
from extract.models.dlib_faces import NUM_LANDMARKS
from extract.models.ffhq.geometry import border_px, bounds, oriented_square, side_px
from extract.stage import VALID, Output, RowsBatch, RowsStage, SourceStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

TEMPLATE = (
    (38.2946, 51.6963),  # eye at the image's left
    (73.5318, 51.5014),
    (56.0252, 71.7366),  # tip of the nose
    (41.5493, 92.3655),  # corner of the mouth at the image's left
    (70.7299, 92.2041),
)
"""Where the five points come to lie, x and y in pixels of the crop, an integer being a pixel's centre. The template
of ArcFace (Deng et al. 2019) as insightface's ``face_align.py`` has it."""

PATCH_STEP_PX = 8
"""Sides of patches are multiples of it, so that frames of one face have equal patches and go through nets together."""
GIVEN_BOX_PX = (14.0, 31.0, 98.0, 115.0)
"""Where dlib's detector sees the face of a crop on this template: left, top, right, bottom. About the median over
4,667 frames of 41 clips (5 recorded, 36 drawn), the middle four fifths of which had the centre's x at 54 to 60, y at
68 to 78, half the side at 38 to 44."""

MIN_SPREAD_PX2 = 1.0
"""Least summed squared distance of the five points from their mean: below it they are one point, with no direction."""
MIN_SCALE = 1e-3
"""Least enlargement of the fit: a face a hundred thousand pixels wide is none."""


PICTURES = (
    Output("image", FRAMES, ("y", "x", "rgb"), (SIZE_PX, SIZE_PX, 3), "uint8", kept=False),
    Output("patch", FRAMES, ("y", "x", "rgb"), (None, None, 3), "uint8", kept=False),
    Output("patch_box", FRAMES, ("edge",), (4,), "float32", kept=False),
)


VERSION = 1
"""Of cut and given crops alike: they are one recipe."""


class CropConfig(StageConfig):
    """Nothing to choose: the template fixes size and place."""


class GivenCrop(SourceStage[CropConfig]):
    """What stands for ``Crop`` in a clip that brings its crops: read from files, without landmarks.

    Its recipe is that of ``Crop``; its source names the part ``crops``. The patch is the crop itself.
    """

    name = "crop"
    version = VERSION
    config_type = CropConfig
    reads = "crops"
    parts = ("crops",)
    empty_reason = "no_face"

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (*PICTURES, VALID)

    def arrays(self, images: "list[Tensor]") -> "dict[str, Tensor | list[Tensor]]":
        """The pictures, and where the face usually is in them."""
        import torch

        return {"image": images, "patch": images, "patch_box": torch.tensor([GIVEN_BOX_PX] * len(images))}


class Crop(RowsStage[CropConfig]):
    """What is cut out of a frame for its face: ``image`` for recognition, ``patch`` for super-resolution.

    ``image``: least-squares similarity (Umeyama 1991, without reflection) of five points to the template, bilinear,
    black outside the frame. ``patch``: the frame's own pixels in an upright square that holds the FFHQ square and its
    border. Near the frame's edge it is moved inwards, and cut only where the frame is smaller; it is empty where the
    landmarks give no square of ``geometry.MIN_SIDE_PX``. ``patch_box`` is the detector's box in its pixels.
    """

    name = "crop"
    version = VERSION
    config_type = CropConfig
    inputs = ("frames.image", "faces.landmarks", "faces.box")
    row_by_row = True
    provided_by = "crops"
    stand_in = GivenCrop

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            *PICTURES,
            # The landmarks in crop coordinates / 112.
            Output("point", FRAMES, ("point", "xy"), (NUM_LANDMARKS, 2), "float32"),
            VALID,
        )

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``frames.image``: B tensors, uint8 RGB [H, W, 3]; ``faces.landmarks`` [B, 68, 2], ``faces.box`` [B, 4] in
        pixels of the frame.

        Rows whose five points coincide fix no similarity: they come back not valid.
        """
        import torch

        marks = batch["faces.landmarks"].double()  # [B, 68, 2]
        turn, shift, valid = fit_similarity(five_points(marks), marks.new_tensor(TEMPLATE))
        # Pixel centres of the crop, x then y: [112 * 112, 2]
        y, x = torch.meshgrid(*(torch.arange(SIZE_PX, dtype=torch.float64, device=marks.device),) * 2, indexing="ij")
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
        at = (pixels - shift[:, None]) @ torch.linalg.inv(turn).mT  # [B, 112 * 112, 2] in pixels of the frame
        crops = torch.stack([sample(image, where) for image, where in zip(batch["frames.image"], at, strict=True)])
        point = (marks @ turn.mT + shift[:, None]) / SIZE_PX
        cut = [patch(image, face.numpy()) for image, face in zip(batch["frames.image"], marks, strict=True)]
        corner = torch.tensor([[left, top, left, top] for _, left, top in cut], dtype=torch.float32)  # [B, 4]
        return {
            "image": crops.reshape(-1, SIZE_PX, SIZE_PX, 3) * valid[:, None, None, None],
            "patch": [pixels for pixels, _, _ in cut],
            "patch_box": batch["faces.box"] - corner,
            "point": point.float() * valid[:, None, None],
            "valid": valid,
        }


def patch(image: "Tensor", landmarks: "NDArray[np.float64]") -> "tuple[Tensor, int, int]":
    """The pixels of ``image`` (uint8 [H, W, 3]) around the FFHQ square of [68, 2] landmarks; their left and top."""
    square = oriented_square(landmarks)
    if square is None:
        return image[:0, :0], 0, 0
    box, border = bounds(square), border_px(side_px(square))
    wanted = max(box[2] - box[0], box[3] - box[1]) + 1 + 2 * border
    wanted += -wanted % PATCH_STEP_PX
    corner, size = [], []
    for low, high, whole in ((box[0], box[2], image.shape[1]), (box[1], box[3], image.shape[0])):
        size.append(min(wanted, whole))
        corner.append(min(max((low + high - wanted) // 2, 0), whole - size[-1]))
    (left, top), (width, height) = corner, size
    return image[top : top + height, left : left + width], left, top


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
