"""FFHQ's alignment against values of the original script, and each mistake of their table, tried."""

import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from extract.models import lanczos
from extract.models.ffhq import geometry, with_pillow, with_torch
from extract.models.ffhq.align import align, plan
from extract.models.ffhq.blur import LEVEL_BITS, SHARE_BITS, blurred, kernels, radius_px
from extract.models.ffhq.geometry import oriented_square, prepare

CASES = ("upright", "rotated25", "near_border", "tiny", "large", "outside")
PADDED = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "ffhq_align.npz")


@pytest.fixture(scope="module")
def images(golden_dir, golden):
    with np.load(golden_dir / "ffhq_align_images.npz") as held:
        found = [held[f"image_{i}"] for i in range(len(CASES))]
    assert [zlib.crc32(image.tobytes()) for image in found] == golden["image_crc32"].tolist()
    return found


def aligned(image, landmarks, output_size, transform_size, method):
    pictures = [torch.from_numpy(image)]
    preparations = plan(torch.from_numpy(landmarks)[None], pictures, output_size)
    assert preparations.valid.all()
    return align(pictures, preparations, output_size, transform_size, method)[0].numpy()


def assert_reference(found, expected, case):
    """Equal; where the picture was padded, at most 20 values by one level (float32 or float64 in the blend)."""
    off = np.abs(found.astype(int) - expected.astype(int))
    assert off.max() <= (1 if case in PADDED else 0)
    assert (off > 0).sum() <= 20


@pytest.mark.parametrize("case", range(6), ids=CASES)
def test_squares_to_the_last_bit(golden, images, case):
    quad = oriented_square(golden["landmarks"][case])
    np.testing.assert_allclose(quad, golden["quad"][case], rtol=0, atol=1e-9)
    height, width = images[case].shape[:2]
    for size in (256, 1024):
        found = prepare(quad, width, height, size)
        np.testing.assert_allclose(found.quad, golden[f"quad_final_{size}"][case], rtol=0, atol=1e-9)
        assert found.source_wh == tuple(golden[f"source_size_{size}"][case])


@pytest.mark.parametrize("case", range(6), ids=CASES)
def test_pillow_is_the_reference(golden, images, case):
    landmarks = golden["landmarks"][case]
    assert_reference(aligned(images[case], landmarks, 256, 1024, "pillow"), golden["out256"][case], case)
    large = aligned(images[case], landmarks, 1024, 4096, "pillow")
    if case not in PADDED:
        assert zlib.crc32(large.tobytes()) == golden["out1024_crc32"][case]
    assert_reference(large[480:544, 480:544], golden["out1024_centre"][case], case)
    mean4 = np.rint(large.reshape(256, 4, 256, 4, 3).astype(float).sum(axis=(1, 3)) / 16).astype(np.uint8)
    assert_reference(mean4, golden["out1024_mean4"][case], case)


@pytest.mark.parametrize("case", range(6), ids=CASES)
def test_torch_is_within_one_level(golden, images, case):
    found = aligned(images[case], golden["landmarks"][case], 256, 1024, "torch")
    off = np.abs(found.astype(int) - golden["out256"][case].astype(int))
    assert off.max() <= 1
    assert (off == 0).all(axis=2).mean() >= 0.985


def test_torch_at_ffhqs_own_size(golden, images):
    image, landmarks = images[3], golden["landmarks"][3]
    off = np.abs(
        aligned(image, landmarks, 1024, 4096, "torch")[480:544, 480:544].astype(int) - golden["out1024_centre"][3]
    )
    assert off.max() <= 1
    assert (off == 0).all(axis=2).mean() >= 0.985


# ---- each mistake of the golden values' table, tried: at least one case must see it ---------------------------------


def patched_pad(mode):
    plain = np.pad
    return lambda array, wide, _mode: plain(array, wide, mode)


def never_padded(quad, width, height, size, plain=geometry.prepare):
    found = plain(quad, width, height, size)
    if found.padding is None:
        return found
    back = quad_before_padding(found)
    return geometry.Preparation(found.shrunk_wh, found.crop, None, back)


def quad_before_padding(found):
    return found.quad - np.array([found.padding.left, found.padding.top])


def always_padded(quad, width, height, size, plain=geometry.prepare):
    """Whenever any side needs a pixel."""
    found = plain(quad, width, height, size)
    if found.padding is not None:
        return found
    side = geometry.side_px(found.quad)
    border = geometry.border_px(side)
    left, top, right, bottom = geometry.bounds(found.quad)
    wide, high = found.source_wh
    need = -left + border, -top + border, right - wide + border, bottom - high + border
    if max(need) <= 0:
        return found
    pads = [max(by, int(np.rint(side * 0.3))) for by in need]
    padding = geometry.Padding(*pads, sigma_px=side * 0.02)  # type: ignore[misc]
    return geometry.Preparation(found.shrunk_wh, found.crop, padding, found.quad + np.array(pads[:2]))


def not_shrunk(quad, width, height, _size, plain=geometry.prepare):
    return plain(quad, width, height, 1 << 20)


def eyes_only(landmarks):
    marks = landmarks.copy()
    eyes = marks[36:48].mean(axis=0)
    across = marks[42:48].mean(axis=0) - marks[36:42].mean(axis=0)
    down = np.array([-across[1], across[0]]) / np.hypot(*across)
    length = np.hypot(*((marks[48] + marks[54]) / 2 - eyes))
    shift = eyes + down * length - (marks[48] + marks[54]) / 2
    marks[[48, 54]] += shift
    return marks


MISTAKES = {
    "no padding": ("prepare", never_padded),
    "padded whenever needed at all": ("prepare", always_padded),
    "no shrink": ("prepare", not_shrunk),
    "edge instead of reflect": ("np.pad", patched_pad("edge")),
    "the edge pixel repeated": ("np.pad", patched_pad("symmetric")),
    "no blur": ("gaussian_filter", lambda image, _sigma: image.copy()),
    "no median": ("np.median", lambda image, **_: image),
}


def differences(golden, images, case, transform_size=1024):
    quad = with_pillow_prepare(golden["landmarks"][case], images[case], 256)
    found = with_pillow.align(images[case], quad, 256, transform_size)
    return np.abs(found.astype(int) - golden["out256"][case].astype(int))


def with_pillow_prepare(landmarks, image, size):
    return geometry.prepare(oriented_square(landmarks), image.shape[1], image.shape[0], size)


def is_seen(off, case):
    return off.max() > 1 or (off > 0).sum() > (20 if case in PADDED else 0)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(golden, images, monkeypatch, mistake):
    name, wrong = MISTAKES[mistake]
    if name == "prepare":
        monkeypatch.setattr(geometry, "prepare", wrong)
    elif name.startswith("np."):
        monkeypatch.setattr(with_pillow.np, name[3:], wrong)
    else:
        monkeypatch.setattr(with_pillow, name, wrong)
    assert any(is_seen(differences(golden, images, case), case) for case in range(6))


def test_mistakes_of_the_transform_are_seen(golden, images, monkeypatch):
    for case in range(6):
        assert not is_seen(differences(golden, images, case), case)
        assert is_seen(differences(golden, images, case, transform_size=256), case)
        eyes = prepare(oriented_square(eyes_only(golden["landmarks"][case])), *images[case].shape[1::-1], 256)
        found = with_pillow.align(images[case], eyes, 256, 1024)
        assert is_seen(np.abs(found.astype(int) - golden["out256"][case]), case)
    transform = Image.Image.transform

    def shifted(self, size, kind, corners, resample):
        return transform(self, size, kind, [corner - 0.5 for corner in corners], resample)

    def bicubic(self, size, kind, corners, _resample):
        return transform(self, size, kind, corners, Image.Resampling.BICUBIC)

    for wrong in (shifted, bicubic):
        monkeypatch.setattr(Image.Image, "transform", wrong)
        assert all(is_seen(differences(golden, images, case), case) for case in range(6))


# ---- what cannot be aligned ----------------------------------------------------------------------------------------


def face(scale=50.0, shift=(100.0, 100.0)):
    """Landmarks of an upright face; only eyes and mouth corners count."""
    marks = np.zeros((68, 2))
    marks[36:42], marks[42:48], marks[48], marks[54] = (-0.5, 0), (0.5, 0), (-0.4, 1), (0.4, 1)
    return marks * scale + shift


UPSIDE_DOWN = face() * [1, -1]
"""The mouth as far above the eyes as these are apart: both directions cancel out."""


@pytest.mark.parametrize(
    "landmarks",
    [np.full((68, 2), 30.0), face(scale=1.5), UPSIDE_DOWN, np.full((68, 2), np.nan), np.full((68, 2), np.inf)],
    ids=["coincident", "smaller than 8 pixels", "no direction", "nan", "infinite"],
)
def test_landmarks_without_a_square(landmarks):
    assert oriented_square(landmarks) is None
    assert plan(torch.from_numpy(landmarks)[None], [torch.zeros(200, 200, 3)], 256).valid.tolist() == [False]
    assert oriented_square(face(scale=2.3)) is not None  # a side of 8.3 pixels


def test_a_square_beyond_the_picture():
    far = oriented_square(face(shift=(5000.0, 100.0)))
    assert far is not None
    assert prepare(far, 200, 200, 256) is None
    assert prepare(oriented_square(face(scale=1e5)), 30, 30, 256) is None  # the picture shrinks to nothing


@pytest.mark.parametrize("picture", [torch.zeros(9, 9), torch.zeros(9, 9, 4), torch.zeros(9, 9, 3)])
def test_another_kind_of_picture_is_refused(picture):
    image = picture.to(torch.uint8) if picture.shape != (9, 9, 3) else picture
    preparations = plan(torch.from_numpy(face())[None], [image], 256)
    with pytest.raises(ValueError, match=r"the picture is torch.* \(9, 9.*, expected uint8 RGB \[H, W, 3\]"):
        align([image], preparations, 256, 1024, "torch")


# ---- parts of the torch way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "into"),
    [((1024, 1024), (256, 256)), ((112, 112), (448, 448)), ((113, 250), (112, 96)), ((5, 500), (5, 31))],
)
def test_lanczos_is_pillows(size, into):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(into[::-1], Image.Resampling.LANCZOS))
    found = lanczos.resize(torch.from_numpy(image).permute(2, 0, 1), *into).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


def test_lanczos_wants_levels():
    with pytest.raises(TypeError, match=r"pictures are torch.float32, expected uint8"):
        lanczos.resize(torch.zeros(3, 8, 8), 4, 4)


@pytest.mark.parametrize(
    ("height", "width", "sigmas"), [(100, 80, (9.0, 2.5)), (20, 33, (7.5, 7.5)), (1, 7, (2.0, 0.4))]
)
def test_the_blur_is_scipys(height, width, sigmas):
    """Two pictures with blurs of their own; beyond the edge they are mirrored, the edge pixel repeated."""
    sigma_px = np.array(sigmas)
    radius = int(radius_px(sigma_px).max())
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, height, width)).astype(np.float64)
    wide = np.pad(levels, ((0, 0), (0, 0), (radius, radius), (radius, radius)), "symmetric")
    found = blurred(torch.from_numpy(wide).float(), torch.from_numpy(kernels(sigma_px, radius))).numpy()
    for picture, sigma, blur in zip(levels, sigmas, found, strict=True):
        np.testing.assert_allclose(blur, gaussian_filter(picture, (0, sigma, sigma)), rtol=0, atol=5e-5)


def test_the_blur_is_exact_in_any_order():
    """Sums of whole numbers below 2**53: float64 in any order, and Python's integers, give the same."""
    rng, sigma_px = np.random.default_rng(1), np.array([3.3])
    radius = int(radius_px(sigma_px)[0])
    shares = kernels(sigma_px, radius)
    assert shares.sum() == 1 << SHARE_BITS
    assert 255 << (LEVEL_BITS + SHARE_BITS) < 1 << 53  # the largest sum, and so every part of one
    levels = rng.integers(0, 256, (2 * radius + 1, 2 * radius + 1))
    across = [sum(int(level) * int(share) for level, share in zip(line, shares[0], strict=True)) for line in levels]
    half_even = [round(Fraction(value, 1 << (SHARE_BITS - LEVEL_BITS))) for value in across]
    exact = sum(value * int(share) for value, share in zip(half_even, shares[0], strict=True))
    found = blurred(torch.from_numpy(levels).expand(1, 3, -1, -1).float(), torch.from_numpy(shares))
    assert found.unique().tolist() == [np.float32(exact / (1 << (SHARE_BITS + LEVEL_BITS)))]


@pytest.mark.parametrize(("size", "before", "after"), [(10, 3, 4), (5, 17, 29), (2, 3, 3), (1, 4, 2)])
def test_the_mirror_is_numpys(size, before, after):
    line, at = np.arange(size), np.arange(-before, size + after)
    sizes = np.array([[size], [size + 3]])  # of two lines
    for repeat_edge, mode in ((False, "reflect"), (True, "symmetric")):
        found = with_torch.mirror(at, sizes, repeat_edge=repeat_edge)
        assert np.array_equal(found[0], np.pad(line, (before, after), mode))
        assert np.array_equal(found[1], np.pad(np.arange(size + 3), (before, after), mode)[: len(at)])


def test_medians_are_numpys():
    """Of rows with numbers of their own, ties among them, the rest being empty."""
    rng = np.random.default_rng(0)
    counts = [1, 2, 7, 10, 9, 10]
    values = np.full((6, 3, 10), np.nan, np.float32)
    for row, count in zip(values, counts, strict=True):
        row[:, :count] = rng.random((3, count))
    values[4:, :, :9] = rng.integers(0, 3, (2, 3, 9))
    found = with_torch.medians(torch.from_numpy(values), torch.tensor(counts)[:, None])
    np.testing.assert_allclose(found, np.nanmedian(values, axis=2), rtol=1e-6)


def test_a_flat_picture_stays_flat():
    """A level lost to float32's rounding would show on every flat wall."""
    for level in (1, 77, 128, 254, 255):
        flat = torch.full((220, 200, 3), level, dtype=torch.uint8)
        for scale in (40.3, 90.0):  # inside, and beyond the edge
            preparations = plan(torch.from_numpy(face(scale=scale))[None], [flat], 256)
            assert align([flat], preparations, 256, 1024, "torch").unique().tolist() == [level]
