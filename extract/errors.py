"""Every error of the project in one tree, with its exit code, and every reason code a record may hold."""

import shlex
from pathlib import PurePath

EMPTY_REASONS = {
    "no_video": "the clip has no video stream",
    "no_audio": "the clip has no audio stream",
    "no_face": "no face was found in any frame",
    "no_face_chosen": "the manifest says `face: none`",
    "no_transcript": "the clip brings no transcript",
    "no_words": "the transcript has no words, or none that a frame's window meets",
    "no_speech": "nothing loud enough to be speech, or the recogniser heard no word",
    "no_labels": "the manifest names no label file (`va` and `intensity` count where `labels.also` names them)",
    "no_rows": "no row was fit for this stage",
    "too_short": "the recording is shorter than one step of the model, or than a word",
}
"""Why an instance is ``empty``: a result, not an error."""

FAILED_REASONS = {
    "missing_file": "a file that the manifest names is not there",
    "unreadable": "the file is no media file, or its header is damaged",
    "no_frames": "the video stream holds no frame that decodes",
    "bad_times": "presentation times are absent or do not increase",
    "audio_undecodable": "an audio stream is present but no sample decodes",
    "bad_labels": "the label file is malformed",
    "bad_transcript": "the transcript is malformed",
    "bad_crops": "a given face crop is of another size, or numbered twice",
    "labels_mismatch": "the label file has another number of rows than the clip has frames",
    "out_of_memory": "the clip does not fit the memory of the device",
    "overflow": "a value does not fit the stored number type",
    "not_finite": "a stage gave NaN or infinity",
    "broken_promise": "a stage gave other rows, shapes or types than it declares",
    "unsupported": "the clip brings something that this version does not read",
    "source_changed": "a file changed while it was being read",
    "service_refused": "a remote service does not take what the clip gives it",
    "service_failed": "a remote service failed at the clip until its deadline",
    "stalled": "reading the file made no progress for run.stall_s seconds",
    "crashed": "the clip crashed its process twice (a decoder or a model died)",
    "unexpected": "an exception that nobody foresaw; the record holds its traceback",
}
"""Why an instance ``failed``: the next run tries again, but for ``crashed`` (``--retry``)."""


class AuFusionError(Exception):
    """Base class of the project's errors. ``exit_code`` is what a command ends with."""

    exit_code = 1


class UsageError(AuFusionError):
    """The command cannot be carried out as given; nothing was computed or changed."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is malformed or names something unknown."""


class ManifestError(UsageError):
    """The manifest is malformed: the message holds file and line."""


class StaleError(UsageError):
    """The store holds values of another recipe or source; nothing was computed or removed."""


class WeightsError(AuFusionError):
    """Weights or a dependency are missing or not what they should be."""

    exit_code = 3


class ServiceError(WeightsError):
    """A paid or remote service cannot be used: no credentials, no quota, no network. The run stops; no clip fails."""


class StoreError(UsageError):
    """The folder is not a store, or has another schema; or what was read does not exist."""


class UnfinishedError(StoreError):
    """An array was read whose record is not ``done`` or ``empty``."""


class CorruptError(AuFusionError):
    """Stored bytes fail their checksum."""

    exit_code = 4

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class ForeignError(CorruptError, UsageError):
    """Something else is in the place of a file or folder of the store: a symbolic link, a file instead of a folder."""


class MachineError(AuFusionError):
    """The machine gave up (disk, store, GPU): the run stops at once and marks no clip as failed."""

    exit_code = 5


class ClipError(AuFusionError):
    """One clip cannot be worked on; the others continue. ``reason`` is a key of FAILED_REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in FAILED_REASONS:
            raise ValueError(f"reason {reason!r} is not in errors.FAILED_REASONS")
        super().__init__(message)
        self.reason = reason


def run_command(store: str | PurePath, *flags: str) -> str:
    """``extract run`` on a store, as messages name it; a store of the default name needs no flag."""
    named = [] if str(store) == "store.zarr" else [f"--store {shlex.quote(str(store))}"]
    return " ".join(["extract run", *named, *flags])
