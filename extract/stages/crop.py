"""Aligned face pictures of 112 x 112 pixels."""

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from extract.inputs.crops import SIZE_PX
from extract.models.dlib_faces import NUM_LANDMARKS
from extract.models.ffhq.geometry import border_px, bounds, oriented_squares, side_px
from extract.stage import VALID, Output, RowsBatch, RowsStage, SourceStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

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

CPU_ROWS = 4
"""Crops sampled at once on a CPU: their numbers stay in its cache, which is half as fast again."""

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


WIDE: Final = "wide"
FACE: Final = "face"
"""What ``CropConfig.patch`` may be."""


class CropConfig(StageConfig):
    """The template fixes size and place of the crop; only the source of super-resolution can be chosen."""

    added = frozenset({"patch"})

    patch: Literal["wide", "face"] = WIDE
    """What super-resolution gets. ``wide``: the frame's own pixels around the face. ``face``: the crop of 112 pixels
    itself, as from a clip that brings its crops; then frames of a movie go the way of given crops."""


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
        return {"image": images, "patch": images, "patch_box": given_boxes(len(images))}


class Crop(RowsStage[CropConfig]):
    """What is cut out of a frame for its face: ``image`` for recognition, ``patch`` for super-resolution.

    With ``patch: face`` the patch is the image, and its box is the one of given crops. Otherwise:

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
    follows_device = True
    host_inputs = frozenset({"faces.landmarks", "faces.box"})
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
        """``frames.image``: B pictures, uint8 RGB [H, W, 3], of any sizes, on any device. ``faces.landmarks``
        [B, 68, 2], ``faces.box`` [B, 4] in pixels of the frame, best on the CPU: the geometry is computed there.

        Rows whose five points coincide fix no similarity: they come back not valid. ``image`` and ``patch`` lie where
        the frames do, the rest on the CPU.
        """
        import torch

        from extract.models.uploads import uploaded

        frames = list(batch["frames.image"])
        marks = batch["faces.landmarks"].cpu().double()  # [B, 68, 2]
        turn, shift, valid = fit_similarity(five_points(marks), marks.new_tensor(TEMPLATE))
        images = sample(frames, torch.linalg.inv(turn), shift)
        point = (marks @ turn.mT + shift[:, None]) / SIZE_PX
        images = images * uploaded(valid.numpy(), images.device)[:, None, None, None]
        if self.config.patch == FACE:
            cut, box = list(images), given_boxes(len(images))
        else:
            cut, corner = patches(frames, marks.numpy())
            box = batch["faces.box"].cpu() - torch.from_numpy(np.tile(corner, 2)).float()
        return {
            "image": images,
            "patch": cut,
            "patch_box": box,
            "point": point.float() * valid[:, None, None],
            "valid": valid,
        }


def given_boxes(count: int) -> "Tensor":
    """float32 [count, 4]: where the face usually is in a crop, in its pixels."""
    import torch

    return torch.tensor([GIVEN_BOX_PX] * count)


def patches(images: "Sequence[Tensor]", landmarks: "NDArray[np.float64]") -> "tuple[list[Tensor], NDArray[np.int64]]":
    """The pixels of each image (uint8 [H, W, 3]) around the FFHQ square of its landmarks ([B, 68, 2]), as a view; their
    left and top [B, 2]."""
    squares = oriented_squares(landmarks)
    whole = np.array([[image.shape[1], image.shape[0]] for image in images])  # [B, 2], as all that follow
    box = bounds(squares)
    low, high = box[:, :2], box[:, 2:]
    wanted = (high - low).max(axis=1) + 1 + 2 * border_px(side_px(squares))
    wanted += -wanted % PATCH_STEP_PX
    none = np.isnan(squares[:, 0, :1])  # [B, 1]
    size = np.where(none, 0, np.minimum(wanted[:, None], whole))
    corner = np.where(none, 0, np.clip((low + high - wanted[:, None]) // 2, 0, whole - size))
    edges = np.concatenate([corner, corner + size], axis=1).tolist()
    cut = [image[top:bottom, left:right] for image, (left, top, right, bottom) in zip(images, edges, strict=True)]
    return cut, corner


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


def sample(images: "Sequence[Tensor]", back: "Tensor", shift: "Tensor") -> "Tensor":
    """Bilinear colours of B images (uint8 [H, W, 3]) at the pixels of their crops: uint8 [B, 112, 112, 3], rounded.

    ``back`` [B, 2, 2] and ``shift`` [B, 2], float64 on the CPU: a point of the crop lies at ``back @ (point - shift)``
    in the image, integers being pixel centres. Outside lies black: a point half a pixel beyond the last centre is half
    as bright.
    """
    import torch

    at_once = len(images) if images[0].device.type == "cuda" else CPU_ROWS
    runs = [slice(start, start + at_once) for start in range(0, len(images), at_once)]
    return torch.cat([_sampled(images[run], back[run], shift[run]) for run in runs])


def _sampled(images: "Sequence[Tensor]", back: "Tensor", shift: "Tensor") -> "Tensor":
    import torch

    from extract.models.uploads import uploaded

    device = images[0].device
    boxes = boxes_read(images, back, shift)
    parts = [image[y0:y1, x0:x1].reshape(-1, 3) for image, (x0, y0, x1, y1) in zip(images, boxes.tolist(), strict=True)]
    colours = torch.cat(parts)  # one box after the other
    first = np.cumsum([0, *(len(part) for part in parts[:-1])])
    sizes = np.array([[image.shape[1], image.shape[0]] for image in images])
    whole = uploaded(np.column_stack([sizes, boxes, first]), device)
    width, height, box_left, box_top, box_right, box_bottom, first_here = whole.T[..., None]  # [B, 1] each
    exact = uploaded(np.column_stack([back.reshape(-1, 4).numpy(), shift.numpy()]), device)
    x_of_x, x_of_y, y_of_x, y_of_y, shift_x, shift_y = exact.T[..., None]  # [B, 1] each

    line = torch.arange(SIZE_PX, dtype=torch.float64, device=device)
    across, down = line - shift_x, line - shift_y  # [B, 112]
    # Products and sums one by one: no device and no batch rounds them otherwise. [B, 2, 112, 112], x and y
    at = torch.stack([x_of_x * across, y_of_x * across], dim=1)[:, :, None, :]
    at = (at + torch.stack([x_of_y * down, y_of_y * down], dim=1)[..., None]).flatten(2)  # [B, 2, 112 * 112]
    corner = at.floor()
    right, down = (at - corner).float().unbind(dim=1)
    x, y = corner.clamp_(-2, sizes.max() + 1).long().unbind(dim=1)
    columns = [(x + i, share * ((x >= -i) & (x < width - i))) for i, share in enumerate((1 - right, right))]
    rows = [(y + i, share * ((y >= -i) & (y < height - i))) for i, share in enumerate((1 - down, down))]
    total, part = (torch.zeros((3, len(images) * SIZE_PX * SIZE_PX), device=device) for _ in range(2))
    for y, of_row in rows:
        start = first_here + (y.clamp(box_top, box_bottom - 1) - box_top) * (box_right - box_left) - box_left
        for x, of_column in columns:
            index = (start + x.clamp(box_left, box_right - 1)).flatten()
            total += torch.mul(colours.index_select(0, index).T, (of_column * of_row).flatten(), out=part)
    return total.round_().to(torch.uint8).T.reshape(-1, SIZE_PX, SIZE_PX, 3)


def boxes_read(images: "Sequence[Tensor]", back: "Tensor", shift: "Tensor") -> "NDArray[np.int64]":
    """Left, top, right, bottom [B, 4] of what a crop reads of its image and a little more; at least one pixel."""
    crop = np.array([[0, 0], [SIZE_PX, 0], [0, SIZE_PX], [SIZE_PX, SIZE_PX]], np.float64) - 0.5
    corners = (crop - shift.numpy()[:, None]) @ back.mT.numpy()  # [B, 4, 2]
    sizes = np.array([[image.shape[1], image.shape[0]] for image in images])
    low = np.clip(np.nan_to_num(np.floor(corners.min(axis=1)) - 1), 0, sizes - 1)
    high = np.clip(np.nan_to_num(np.ceil(corners.max(axis=1)) + 2), low + 1, sizes)
    return np.concatenate([low, high], axis=1).astype(np.int64)
