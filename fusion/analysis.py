"""Analyses of fitted runs: they run networks, or fit further ones, and hand the scores to ``ablation`` and the like."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from extract.errors import StaleError, UsageError
from fusion import ablation
from fusion import ensemble as ensembles
from fusion.assessment import Decide, network_alone
from fusion.config import FusionConfig
from fusion.ensemble import Candidate, Ensemble, Metric
from fusion.evaluation import SplitScorer, split_scorer
from fusion.leaks import SelectedOn, check_disjoint
from fusion.postprocess import check_no_leak
from fusion.runs import Run
from fusion.scores import FrameScores
from fusion.selection import first_difference
from fusion.training import fit


def ablate(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    ways: Sequence[ablation.Way] = ("zero_input", "missing"),
    without: Sequence[str] = (),
    post: bool = False,
    device: str = "auto",
    skip_failed: bool = False,
    allow_leak: bool = False,
    allow_other_crops: bool = False,
    published: bool = False,
) -> ablation.Ablation:
    """Score a run without its modalities.

    Args:
        features: the store.
        run: folder of the run; None is the newest in ``runs/``.
        split: the clips that are scored.
        ways: ``zero_input`` (as in the paper), ``missing``, ``retrained``. A retrained network is a run of its own in
            ``RUN/ablate/without_NAME``, which is not fitted again.
        without: what to remove, modalities joined by ``+``; empty is each alone and those of one instance together.
        post: score what the run's post-processing makes of the scores; else the network alone, as in the paper.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        allow_leak: score post-processing on clips that it was selected on.
        allow_other_crops: accept crops of another kind than in the fit.
        published: print the paper's Table 5 beside; for Aff-Wild2.

    Raises:
        UsageError: an unknown modality or way, only one modality, or what ``evaluate`` and ``fit`` refuse.
        StaleError: a retrained network was fitted with other settings, or as ``evaluate``.
    """
    unknown = [way for way in ways if way not in ablation.WAYS]
    if unknown:
        raise UsageError(f"way {unknown[0]}: no such way to leave a modality out; known: {', '.join(ablation.WAYS)}")
    scorer_of = partial(
        split_scorer,
        features,
        split=split,
        device=device,
        skip_failed=skip_failed,
        allow_leak=allow_leak,
        allow_other_crops=allow_other_crops,
    )
    scorer = scorer_of(run)
    config = scorer.fitted.config
    require_action_units(config, f"run {scorer.run.path}")
    whole = scorer.scores()
    decide, leak = _decide(scorer, whole, post=post, allow_leak=allow_leak)

    def score_without(modalities: tuple[str, ...], how: Literal["zero_input", "missing"]) -> FrameScores:
        return scorer.scores(dict.fromkeys(modalities, how))

    def retrain_without(modalities: tuple[str, ...]) -> FrameScores:
        folder = scorer.run.path / "ablate" / f"without_{'_'.join(modalities)}"
        fit_once(
            features,
            folder,
            _without(config, modalities),
            device=device,
            skip_failed=skip_failed,
            allow_leak=allow_leak,
        )
        return scorer_of(folder).scores()

    return ablation.ablate(
        whole,
        config.used,
        score_without,
        retrain_without,
        ways=ways,
        groups=[tuple(names.split("+")) for names in without] or None,
        decide=decide,
        leak=leak,
        published_beside=published,
    )


def ensemble(
    features: str | Path,
    candidates: Sequence[str | Path],
    *,
    choose_on: str = "val",
    report_on: str | None = "test",
    metric: Metric = "f1_our",
    num_folds: int = 5,
    device: str = "auto",
    skip_failed: bool = False,
    allow_leak: bool = False,
    allow_other_crops: bool = False,
) -> Ensemble:
    """Choose the best of several runs for each action unit on one split, and score the choice on another.

    Args:
        features: the store.
        candidates: folders of runs or of kept epochs (``runs/NAME/epochs/07``), or files of scores (``.npz``) on the
            split ``choose_on``. Runs that read the same features share their tables.
        choose_on: the split that the choice is made on.
        report_on: the split that it is scored on as well; None, or if there are files of scores: none.
        metric: what the choice maximises.
        num_folds: of source videos, for the nested score.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        allow_leak: report on clips or recordings that the choice was made on.
        allow_other_crops: accept crops of another kind than in the fit.

    Raises:
        UsageError: the two splits share clips or recordings, the candidates were scored on different frames, or what
            ``evaluate`` refuses.
        StaleError, CorruptError, UnfinishedError: as ``evaluate``.
    """
    paths = [Path(path) for path in candidates]

    def all_scored(split: str) -> list[Candidate]:
        found = []
        scorer = None
        for path in paths:
            if path.suffix == ".npz":
                found.append(Candidate(str(path), FrameScores.read(path)))
                continue
            scorer = split_scorer(
                features,
                path,
                split=split,
                device=device,
                skip_failed=skip_failed,
                allow_leak=allow_leak,
                allow_other_crops=allow_other_crops,
                like=scorer,
            )
            found.append(Candidate(f"{path} epoch {scorer.fitted.epoch}", scorer.scores()))
        return found

    here = all_scored(choose_on)
    there: list[Candidate] = []
    leak = None
    if here and report_on is not None and not any(path.suffix == ".npz" for path in paths):
        there = all_scored(report_on)
        leak = check_disjoint(SelectedOn.of(here[0].scores), there[0].scores, allow_leak, "the checkpoints")
    return ensembles.ensemble(here, there, metric=metric, num_folds=num_folds, leak=leak)


def require_action_units(config: FusionConfig, whose: str) -> None:
    """Raise UsageError for a config without the task ``au``, which this analysis is about."""
    if "au" not in config.tasks:
        raise UsageError(f"{whose} predicts {', '.join(config.tasks)} and no action units, which this is about")


def _decide(scorer: SplitScorer, scores: FrameScores, *, post: bool, allow_leak: bool) -> tuple[Decide, str | None]:
    """The post-processing that is scored, and the sentence of an allowed leak."""
    shipped = scorer.run.postprocess(scorer.fitted.aus) if post else None
    if shipped is None:
        return network_alone, None
    return shipped.steps, check_no_leak(shipped, scores, allow_leak)


def _without(config: FusionConfig, modalities: Sequence[str]) -> FusionConfig:
    left = {name: None if name in modalities else modality for name, modality in config.modalities.items()}
    return FusionConfig.model_validate({**config.model_dump(), "modalities": left})


def fit_once(
    features: str | Path,
    folder: Path,
    config: FusionConfig,
    *,
    device: str,
    skip_failed: bool,
    allow_leak: bool,
    splits: Mapping[str, str] | None = None,
) -> None:
    """Fit a run in ``folder``, or continue to; a finished one of the same settings stays as it is.

    Args:
        splits: clip -> split, in place of the store's.

    Raises:
        StaleError: the run there has other settings.
    """
    run = Run(folder)
    if not run.finished:
        fit(features, folder, config, device=device, skip_failed=skip_failed, allow_leak=allow_leak, splits=splits)
        return
    difference = first_difference(run.config().model_dump(), config.model_dump())
    if difference is not None:
        raise StaleError(f"run {folder} was fitted with other settings ({difference}); remove it to fit it again")
