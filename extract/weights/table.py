"""Published weights: where each lies, what it was trained on, under which licence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RANDOM = "random"
"""The spec that draws weights by name instead of reading a file; the result is called untrained everywhere."""
HUB = "https://huggingface.co"

TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a weights folder may call its tensors; the first one present counts."""


@dataclass(frozen=True)
class WeightsRow:
    """One entry of the table: published weights under the name that a config calls them by."""

    key: str
    stages: tuple[str, ...]
    """Who can use them."""
    architecture: str | None
    """What the stage's config must say; ``None`` for a stage with one architecture."""
    source: str
    """Page or package they come from."""
    files: tuple[str, ...]
    """Files beside the tensors, which are one of TENSOR_FILES; with ``package``, ``download`` or ``by_hand`` the one
    file itself."""
    licence: str
    trained_on: str
    sha256: str | None
    """Of the file or folder; ``None`` (shown as ``unpinned``) where no file was at hand to compute it from."""
    package: str | None = None
    """Python package that brings the file along; ``None``: the cache folder holds it."""
    download: str | None = None
    """Address of the one file, for what lies on a release page; ``None``: ``source`` is a repository of the hub."""
    by_hand: bool = False
    """The one file is offered on a page that no program may read; the user puts it into the cache folder."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the stage's config must say besides: field -> value."""
    note: str = ""

    @property
    def is_one_file(self) -> bool:
        """Whether it is the file itself that a config names, and no folder."""
        return self.download is not None or self.by_hand


def by_key(rows: Sequence[WeightsRow]) -> dict[str, WeightsRow]:
    """The rows by key. A key given twice is a mistake in this file."""
    table: dict[str, WeightsRow] = {}
    for row in rows:
        if row.key in table or row.key == RANDOM:
            raise ValueError(f"weights key {row.key!r} is taken")
        table[row.key] = row
    return table


def _hubert(key: str, architecture: str, trained_on: str) -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("hubert",),
        architecture=architecture,
        source=f"{HUB}/facebook/{key}",
        files=("config.json", "preprocessor_config.json"),
        licence="Apache-2.0",
        trained_on=trained_on,
        sha256=None,
    )


def _realesrgan(key: str, release: str, file: str, *, sha256: str | None = None, note: str = "") -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("superres",),
        architecture=None,
        source="https://github.com/xinntao/Real-ESRGAN/releases",
        files=(file,),
        licence="BSD-3-Clause",
        trained_on="DIV2K, Flickr2K, OutdoorSceneTraining; degraded by a model of the real world",
        sha256=sha256,
        download=f"https://github.com/xinntao/Real-ESRGAN/releases/download/{release}/{file}",
        note=note,
    )


def _roberta(
    key: str,
    architecture: str,
    vocabulary: tuple[str, ...] = ("vocab.json", "merges.txt"),
    trained_on: str = "160 GB of English text (books, Wikipedia, news, web)",
) -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("roberta",),
        architecture=architecture,
        source=f"{HUB}/FacebookAI/{key}",
        files=("config.json", *vocabulary),
        licence="MIT",
        trained_on=trained_on,
        sha256=None,
        note="lm_head.* and pooler.* are dropped",
    )


WHISPER_HEARD = "680,000 h of speech and its transcripts in 99 languages, gathered from the web"
WHISPER_EN_HEARD = "438,000 h of English speech and its transcripts, gathered from the web"
WHISPER_3_HEARD = "a million hours of speech with transcripts, four million labelled by large-v2"


def _whisper(architecture: str, trained_on: str) -> WeightsRow:
    return WeightsRow(
        key=f"whisper-{architecture}",
        stages=("transcribe",),
        architecture=architecture,
        source=f"{HUB}/openai/whisper-{architecture}",
        files=("config.json", "generation_config.json", "preprocessor_config.json", "vocab.json"),
        licence="MIT by its authors' repository; its hub page is not confirmed here",
        trained_on=trained_on,
        sha256=None,
    )


def _timm(key: str, architecture: str, repository: str, *, licence: str, trained_on: str, note: str = "") -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("timm",),
        architecture=architecture,
        source=f"{HUB}/timm/{repository}",
        files=(),
        licence=licence,
        trained_on=trained_on,
        sha256=None,
        note=note,
    )


def _speech(
    key: str, owner: str, family: str, width: int, *, licence: str, trained_on: str, note: str = ""
) -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("speech",),
        architecture=None,
        source=f"{HUB}/{owner}/{key}",
        files=("config.json", "preprocessor_config.json"),
        licence=licence,
        trained_on=trained_on,
        sha256=None,
        settings={"family": family, "width": width},
        note=note,
    )


LVD = "LVD-142M, pictures gathered from the web, without labels"
WAVLM = {
    "licence": "CC-BY-SA-3.0 as its hub page has it; its authors' code repository says MIT",
    "trained_on": "Libri-Light, GigaSpeech, VoxPopuli: 94,000 h",
}

X4PLUS_SHA256 = "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"

TABLE = by_key((
    WeightsRow(
        key="swin-tiny",
        stages=("swin",),
        architecture="tiny",
        source=f"{HUB}/timm/swin_tiny_patch4_window7_224.ms_in1k",
        files=(),
        licence="MIT",
        trained_on="ImageNet-1k classification",
        sha256=None,
        note="the classifier head.* is dropped",
    ),
    _timm(
        "dinov2-small",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_dinov2.lvd142m",
        licence="Apache-2.0",
        trained_on=LVD,
    ),
    _timm(
        "dinov2-base",
        "vit_base_patch14_dinov2",
        "vit_base_patch14_dinov2.lvd142m",
        licence="Apache-2.0",
        trained_on=LVD,
    ),
    _timm(
        "clip-vit-b16",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_clip_224.openai",
        licence="MIT (its repository; its model card calls any deployed use out of scope)",
        trained_on="400 million pairs of a picture and its text, gathered from the web",
        note="the projection to the space of texts, head.*, is dropped; trained with QuickGELU, hence the architecture",
    ),
    _hubert("hubert-xlarge-ll60k", "xlarge", "Libri-Light, 60,000 h"),
    _hubert("hubert-large-ll60k", "large", "Libri-Light, 60,000 h"),
    _hubert("hubert-base-ls960", "base", "LibriSpeech, 960 h"),
    _speech("wavlm-base-plus", "microsoft", "wavlm", 768, **WAVLM),
    _speech("wavlm-large", "microsoft", "wavlm", 1024, **WAVLM),
    _speech(
        "wav2vec2-large-lv60",
        "facebook",
        "wav2vec2",
        1024,
        licence="Apache-2.0",
        trained_on="Libri-Light, 60,000 h",
        note="the quantizer and projections of pre-training are dropped",
    ),
    _roberta("roberta-large", "large"),
    _roberta("roberta-base", "base"),
    _roberta(
        "xlm-roberta-large",
        "xlmr-large",
        ("tokenizer.json",),
        trained_on="2.5 TB of text in 100 languages, from Common Crawl",
    ),
    *(_whisper(size, WHISPER_HEARD) for size in ("tiny", "base", "small", "medium")),
    *(_whisper(f"{size}.en", WHISPER_EN_HEARD) for size in ("tiny", "base", "small", "medium")),
    *(_whisper(size, WHISPER_3_HEARD) for size in ("large-v3", "large-v3-turbo")),
    _realesrgan("realesrgan-x4plus", "v0.1.0", "RealESRGAN_x4plus.pth", sha256=X4PLUS_SHA256),
    _realesrgan(
        "realesr-general-x4v3",
        "v0.2.5.0",
        "realesr-general-x4v3.pth",
        note="denoises fully; the authors' command line mixes it half and half with realesr-general-wdn-x4v3",
    ),
    WeightsRow(
        key="ghfeat-ffhq-256",
        stages=("ghfeat",),
        architecture="resnet50-256",
        source="https://github.com/genforce/ghfeat",
        files=("ghfeat-encoder-ffhq-256.pkl",),
        licence="none given by its authors: ask them before any use beyond your own research",
        trained_on="FFHQ faces, through a StyleGAN generator",
        sha256=None,
        by_hand=True,
        note="a Python pickle: read without executing anything; `extract weights convert` makes safetensors of it",
    ),
    WeightsRow(
        key="dlib-68-landmarks",
        stages=("detections", "landmarks"),
        architecture=None,
        source="Python package face-recognition-models",
        files=("models/shape_predictor_68_face_landmarks.dat",),
        licence="trained on iBUG 300-W: research only, no commercial use",
        trained_on="iBUG 300-W",
        sha256="fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        package="face_recognition_models",
        note="the package calls it CC0; the licence of the pictures it learned from says otherwise",
    ),
))
