import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import one_by_one
from extract.models.dlib_faces import shared_faces
from extract.models.ffhq.geometry import border_px, oriented_square
from extract.registry import STAGES
from extract.stages.crop import (
    GIVEN_BOX_PX,
    TEMPLATE,
    Crop,
    CropConfig,
    GivenCrop,
    fit_similarity,
    five_points,
    patches,
    sample,
)
from extract.stages.detections import Detections, DetectionsConfig
from extract.weights.resolving import resolve
from tests.contract import RowsContract

BILINEAR = Image.Resampling.BILINEAR
TEMPLATE_T = torch.tensor(TEMPLATE, dtype=torch.float64)


def landmarks(five):
    """68 landmarks whose five points are ``five`` [5, 2]; the rest lies at the nose."""
    marks = torch.as_tensor(five)[2].expand(68, 2).clone()
    marks[36:42], marks[42:48], marks[48], marks[54] = five[0], five[1], five[3], five[4]
    # Eyes count by their mean alone.
    marks[36] += 3
    marks[37] -= 3
    return marks


def placed(scale, turn_rad, shift, dtype=torch.float32):
    """Where the template's points are in a frame whose crop is enlarged by ``scale``, turned and shifted."""
    c, s = scale * math.cos(turn_rad), scale * math.sin(turn_rad)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return landmarks((TEMPLATE_T @ turn.mT + torch.tensor(shift, dtype=torch.float64)).to(dtype)), turn


def run(image, marks):
    batch = {
        "frames.image": [torch.from_numpy(image)],
        "faces.landmarks": marks[None].float(),
        "faces.box": torch.tensor([[10.0, 20, 90, 100]]),
    }
    return {name: values[0] for name, values in Crop(CropConfig()).compute(batch).items()}


def picture(seed, height=300, width=400):
    """Smooth colours with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse).astype(int) + rng.integers(-3, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


class TestCrop(RowsContract):
    def stage(self):
        return Crop(CropConfig())

    def row(self, seed):
        marks, _ = placed(0.8 + 0.1 * seed, 0.1 * seed, (90 + 5 * seed, 40))
        height = 240 + 10 * seed  # rows may differ in size
        box = torch.tensor([90.0, 40, 170, 120]) + seed
        return {"frames.image": torch.from_numpy(picture(seed, height)), "faces.landmarks": marks, "faces.box": box}


class TestFacePatch(TestCrop):
    """With ``patch: face``."""

    def stage(self):
        return Crop(CropConfig(patch="face"))


def test_a_face_patch_is_the_crop_and_its_box_that_of_given_crops():
    rows = [TestCrop().row(seed) for seed in (1, 2, 3)]
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    batch |= {name: torch.stack(batch[name]) for name in ("faces.landmarks", "faces.box")}
    found: dict[str, Any] = Crop(CropConfig(patch="face")).compute(batch)
    wide: dict[str, Any] = Crop(CropConfig()).compute(batch)
    for patch, image in zip(found["patch"], wide["image"], strict=True):
        assert torch.equal(patch, image)
    given = GivenCrop(CropConfig()).arrays(list(found["image"]))
    assert torch.equal(found["patch_box"], given["patch_box"])  # type: ignore[arg-type]
    assert found["patch_box"].dtype == wide["patch_box"].dtype
    for name in ("image", "point", "valid"):
        assert torch.equal(found[name], wide[name])


@pytest.mark.parametrize(
    ("scale", "turn_rad", "shift"),
    [(1, 0, (100.25, 50.5)), (1.7, 0.3, (120, 30.3)), (0.6, -0.5, (60, 120)), (2.2, 3, (330, 260))],
)
def test_equals_pillow_inside_the_frame(scale, turn_rad, shift):
    """Oracle: Pillow's affine transform, whose pixel centres lie at halves."""
    image = picture(1)
    marks, turn = placed(scale, turn_rad, shift)
    half = np.array([0.5, 0.5])
    matrix = turn.numpy()
    offset = np.array(shift) - matrix @ half + half
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    # One float channel at a time: with whole numbers Pillow truncates.
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
    warped = [channel.transform((112, 112), Image.Transform.AFFINE, data, BILINEAR) for channel in channels]
    expected = np.dstack([np.asarray(channel) for channel in warped])
    x, y = np.meshgrid(np.arange(112), np.arange(112))
    at = np.stack([x, y], axis=-1) @ matrix.T + shift
    inside = (at >= 0).all(axis=-1) & (at <= [399, 299]).all(axis=-1)
    assert inside.mean() > 0.5
    found = run(image, marks)["image"].numpy()
    assert np.abs(found - expected)[inside].max() <= 0.501


def test_a_sub_pixel_shift_of_a_ramp_is_exact():
    """Bilinear interpolation of a linear picture is that linear function: red 2 x, green 2 y, between pixels."""
    y, x = np.mgrid[:125, :125]
    image = np.dstack([2 * x, 2 * y, 0 * x]).astype(np.uint8)
    marks, _ = placed(1, 0, (10.375, 6.625))
    found = run(image, marks)["image"].float()
    across, down = (2 * (torch.arange(112) + shift) for shift in (10.375, 6.625))
    assert torch.equal(found[:, :, 0], across.round().expand(112, 112))  # odd numbers, which no pixel has
    assert torch.equal(found[:, :, 1], down.round()[:, None].expand(112, 112))


def test_an_aligned_frame_is_its_own_crop():
    image = picture(2, 112, 112)
    found = run(image, landmarks(TEMPLATE_T.float()))
    assert np.abs(found["image"].numpy().astype(int) - image).max() <= 1
    assert torch.allclose(five_points(found["point"][None])[0] * 112, TEMPLATE_T.float(), atol=1e-4)


def test_points_are_crop_coordinates_over_112():
    marks, turn = placed(1.3, 0.4, (50, 60))
    found = run(picture(3), marks)
    back = found["point"].double() * 112 @ turn.mT + torch.tensor([50.0, 60.0])
    assert (back - marks).abs().max() < 1e-3


def test_outside_the_frame_is_black():
    white = np.full((300, 400, 3), 255, np.uint8)
    marks, _ = placed(1, 0, (-20.25, 200))
    found = run(white, marks)["image"][:, :, 0].float()
    assert (found[:, :20] == 0).all()
    assert (found[:100, 20] == 191).all()  # a quarter of a pixel before the first centre: 0.75 * 255
    assert (found[:100, 21:] == 255).all()
    assert (found[100:] == 0).all()  # row 100 is frame row 300, one below the last


def test_far_outside_is_black_and_no_error():
    """Crops of which pixel (0, 0) lies on the image's last pixel, the next ones 10**12 pixels further; and so far."""
    image = torch.full((4, 5, 3), 255, dtype=torch.uint8)
    back = torch.diag_embed(torch.tensor([[1e12, 1e12], [1.0, 1.0]], dtype=torch.float64))
    shift = torch.tensor([[-4e-12, -3e-12], [1e12, -1e12]], dtype=torch.float64)
    colours = sample([image, image], back, shift)
    assert colours[0, 0, 0].tolist() == [255] * 3
    assert colours.sum() == 3 * 255


def umeyama(source, target):
    """Umeyama 1991, equations 39 to 43, by singular value decomposition; his S makes it a rotation."""
    p, q = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(q.T @ p / len(p))
    sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / p.var(axis=0).sum()
    return scale * rotation, target.mean(0) - scale * rotation @ source.mean(0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_fit_is_umeyamas(mirrored):
    rng = np.random.default_rng(5)
    source = 60 * rng.standard_normal((20, 5, 2)) + np.array(TEMPLATE) * ([-2, 2] if mirrored else [2, 2])
    turn, shift, valid = fit_similarity(torch.from_numpy(source), TEMPLATE_T)
    assert valid.all()
    for i in range(20):
        expected_turn, expected_shift = umeyama(source[i], np.array(TEMPLATE))
        np.testing.assert_allclose(turn[i], expected_turn, atol=1e-12)
        np.testing.assert_allclose(shift[i], expected_shift, atol=1e-9)
        assert np.linalg.det(turn[i]) > 0


def test_points_that_coincide_are_not_valid():
    good, _ = placed(1, 0, (100, 60))
    image = torch.from_numpy(picture(4))
    one_point = torch.full((68, 2), 77.0)
    batch: dict[str, Any] = {
        "frames.image": [image] * 3,
        "faces.landmarks": torch.stack([one_point, good, torch.zeros(68, 2)]),
        "faces.box": torch.zeros(3, 4),
    }
    found: dict[str, Any] = Crop(CropConfig()).compute(batch)
    assert found["valid"].tolist() == [False, True, False]
    assert not found["image"][[0, 2]].any()
    assert not found["point"][[0, 2]].any()
    assert found["image"][1].any()


def test_points_within_half_a_pixel_are_not_valid():
    """Summed squared distance from their mean: 0.27 pixels; enlarged twice, 1.07."""
    assert not run(picture(4), placed(0.01, 0, (50, 50))[0])["valid"]
    assert run(picture(4), placed(0.02, 0, (50, 50))[0])["valid"]


def test_a_face_of_astronomical_size_is_not_valid():
    marks, _ = placed(2000, 0, (0, 0), torch.float64)
    assert not run(picture(5), marks)["valid"]


def test_five_points_of_the_68():
    marks = torch.arange(136.0).reshape(1, 68, 2)  # point i is (2 i, 2 i + 1)
    assert five_points(marks)[0, :, 0].tolist() == [77, 89, 60, 96, 108]


# ---- many frames at once ---------------------------------------------------------------------------------------------


def wild_rows(seed, count):
    """Frames of any sizes; faces of any size and direction, in them, at their edges and beyond, one being a point."""
    rng = np.random.default_rng(seed)
    frames, marks = [], []
    for i in range(count):
        width, height = rng.integers(1, 400, 2).tolist()
        frames.append(torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        scale, turn_rad = 10 ** rng.uniform(-1.5, 1.5), rng.uniform(-3, 3)
        c, s = scale * np.cos(turn_rad), scale * np.sin(turn_rad)
        around = (np.array(TEMPLATE) - 56 + rng.normal(0, 3, (5, 2))) @ np.array([[c, s], [-s, c]])
        five = around + rng.uniform(-0.3, 1.3, 2) * np.array([width, height])
        marks.append(torch.full((68, 2), 30.0) if i == 3 else landmarks(torch.from_numpy(five).float()))
    return {
        "frames.image": frames,
        "faces.landmarks": torch.stack(marks),
        "faces.box": torch.from_numpy(rng.random((count, 4), dtype=np.float32)),
    }


def test_equals_one_at_a_time():
    """To the byte, over frames that differ in size."""
    given = wild_rows(0, 40)
    found: dict[str, Any] = Crop(CropConfig()).compute(given)
    marks = given["faces.landmarks"].double()
    turn, shift, valid = fit_similarity(five_points(marks), TEMPLATE_T)
    y, x = torch.meshgrid(torch.arange(112.0).double(), torch.arange(112.0).double(), indexing="ij")
    at = (torch.stack([x, y], dim=-1).reshape(-1, 2) - shift[:, None]) @ torch.linalg.inv(turn).mT
    expected = [one_by_one.cropped(image, where) for image, where in zip(given["frames.image"], at, strict=True)]
    assert torch.equal(found["image"], torch.stack(expected).reshape(-1, 112, 112, 3) * valid[:, None, None, None])
    assert valid.sum() == 39
    assert (found["image"].flatten(1) > 0).any(dim=1).sum() > 20
    assert {tuple(patch.shape) for patch in found["patch"]} > {(0, 0, 3)}


def test_frames_of_a_clip_as_one_tensor():
    """As they lie on a GPU; the patches are views of it."""
    rows = [placed(1 + 0.1 * i, 0.1 * i, (100 + i, 60))[0] for i in range(5)]
    frames = torch.stack([torch.from_numpy(picture(i)) for i in range(5)])
    given = {"frames.image": frames, "faces.landmarks": torch.stack(rows), "faces.box": torch.zeros(5, 4)}
    found: dict[str, Any] = Crop(CropConfig()).compute(given)
    listed: dict[str, Any] = Crop(CropConfig()).compute(given | {"frames.image": list(frames)})
    for name, values in found.items():
        for one, other in zip(values, listed[name], strict=True):
            assert torch.equal(one, other), name
    assert {patch.untyped_storage().data_ptr() for patch in found["patch"]} == {frames.untyped_storage().data_ptr()}


def test_it_follows_the_frames():
    """Its recipe names no precision, so a GPU's crops are those of the same recipe."""
    assert (Crop.device, Crop.follows_device) == ("cpu", True)
    assert [stage.name for stage in STAGES.values() if stage.follows_device] == ["crop"]


# ---- the patch for super-resolution --------------------------------------------------------------------------------


def upright(side, centre):
    """Landmarks whose FFHQ square is upright, of this side, around this point."""
    apart = side / 4  # between the eyes, if the mouth is near enough
    marks = torch.zeros(68, 2, dtype=torch.float64)
    marks[36:42], marks[42:48] = torch.tensor([-apart / 2, 0.0]), torch.tensor([apart / 2, 0.0])
    marks[48], marks[54] = torch.tensor([-apart / 3, apart]), torch.tensor([apart / 3, apart])
    return marks + torch.tensor(centre) - torch.tensor([0, 0.1 * apart])


def patch(image, marks):
    """Of one picture: its pixels, their left and top."""
    (pixels,), ((left, top),) = patches([image], marks[None].numpy())
    return pixels, left, top


@pytest.mark.parametrize(("side", "centre"), [(100.0, (200.0, 150.0)), (60.5, (180.3, 140.7)), (33.0, (60, 60))])
def test_the_patch_holds_the_square_and_its_border(side, centre):
    image = torch.from_numpy(picture(0))
    pixels, left, top = patch(image, upright(side, centre))
    square = oriented_square(upright(side, centre).numpy())
    assert square is not None
    assert np.allclose([square.min(), square.max()], [min(centre) - side / 2, max(centre) + side / 2])
    assert torch.equal(pixels, image[top : top + pixels.shape[0], left : left + pixels.shape[1]])
    height, width = pixels.shape[:2]
    assert height == width
    assert height % 8 == 0
    border = border_px(side)
    assert height <= side + 2 * border + 2 + 8
    for axis, (low, size) in enumerate(((left, width), (top, height))):
        assert low <= np.floor(square[:, axis].min()) - border + 1
        assert low + size - 1 >= np.ceil(square[:, axis].max()) + border - 1


def test_near_the_edge_the_patch_moves_inwards():
    image = torch.from_numpy(picture(0))  # 300 x 400
    pixels, left, top = patch(image, upright(100.0, (20, 290)))
    assert (left, top + pixels.shape[0]) == (0, 300)
    assert pixels.shape[0] == pixels.shape[1]
    pixels, left, top = patch(image, upright(300.0, (200, 150)))  # larger than the frame is high
    assert (pixels.shape[0], top) == (300, 0)
    assert pixels.shape[1] > 360


def test_no_square_gives_an_empty_patch():
    for marks in (upright(7.0, (100, 100)), torch.full((68, 2), 30.0)):
        assert patch(torch.from_numpy(picture(0)), marks.double())[0].shape == (0, 0, 3)


def test_the_box_moves_along():
    marks = upright(100.0, (200.0, 150.0))
    found = run(picture(0), marks)
    _, left, top = patch(torch.from_numpy(picture(0)), marks.float().double())
    assert found["patch_box"].tolist() == [10 - left, 20 - top, 90 - left, 100 - top]


def test_a_given_crop_is_its_own_patch():
    stage = GivenCrop(CropConfig())
    pictures = [torch.from_numpy(picture(seed, 112, 112)) for seed in (1, 2)]
    arrays = stage.arrays(pictures)
    assert arrays.keys() | {"valid"} == {output.name for output in stage.outputs}
    assert arrays["patch"] is arrays["image"] is pictures
    assert arrays["patch_box"].shape == (2, 4)  # type: ignore[union-attr]


def test_the_usual_box_is_where_dlib_finds_faces(media_dir):
    """Oracle: the detector's boxes on real clips, brought into the crop as the pixels are."""
    image = np.array(Image.open(media_dir / "one_face.jpg").convert("RGB"))
    weights = resolve("dlib-68-landmarks", Detections(DetectionsConfig()), offline=True)
    faces = shared_faces(weights)
    (box, *_), _ = faces.detect(image, 0, 0.2)
    marks = torch.from_numpy(faces.landmarks([image], box[None])).double()
    turn, shift, _ = fit_similarity(five_points(marks), TEMPLATE_T)
    corners = torch.tensor(box).reshape(2, 2)
    left, top, right, bottom = ((turn[0] @ corners.mT).mT + shift[0]).flatten().tolist()
    centre, half = ((left + right) / 2, (top + bottom) / 2), (right - left) / 2
    usual = GIVEN_BOX_PX
    assert abs(centre[0] - (usual[0] + usual[2]) / 2) < 8
    assert abs(centre[1] - (usual[1] + usual[3]) / 2) < 8
    assert abs(half - (usual[2] - usual[0]) / 2) < 8
