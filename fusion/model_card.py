"""The model card of an exported run: what it was fitted on, how well it does, what it is not for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from extract.weights.table import RANDOM, TABLE
from fusion.crop_kinds import WORDS
from fusion.runs import FittedModel

LICENCE_UNKNOWN = "unknown (a local file)"


def card(facts: Mapping[str, Any], fitted: FittedModel, postprocess: Mapping[str, Any] | None) -> str:
    """Markdown.

    Args:
        facts: the content of ``fusion.json``: ``run``, ``scores``, ``versions``.
        fitted: the run's network; only its description is read.
        postprocess: the content of ``postprocess.json``, if the run ships one.
    """
    sections = [
        ("Facial action units per video frame", _opening(facts["run"], fitted)),
        ("Use", _use(facts["run"], fitted)),
        ("Scores", [*_scores(facts["scores"]), *_post(postprocess)]),
        ("Data", _data(fitted)),
        ("Encoders and their licences", _encoders(facts["run"])),
        ("Intended use and limits", _limits(fitted)),
        ("Made with", [", ".join(f"{name} {version}" for name, version in facts["versions"].items())]),
    ]
    title, opening = sections[0]
    lines = [f"# {title}", "", *opening]
    for heading, body in sections[1:]:
        lines += ["", f"## {heading}", "", *body]
    return "\n".join(lines) + "\n"


def _opening(run: Mapping[str, Any], fitted: FittedModel) -> list[str]:
    modalities = ", ".join(f"{name} ({used.instance}/{used.array})" for name, used in fitted.config.used.items())
    lines = [
        f"A network of the program au-fusion, trained for {_counted(run['epoch'], 'epoch')} on stored features: "
        f"{modalities}."
    ]
    if fitted.untrained:
        lines += [
            "",
            f"**Untrained encoders (random weights): {', '.join(fitted.untrained)}.** These numbers say nothing about "
            "the method.",
        ]
    if fitted.drawn:
        seen = sum(len(clips) for clips in fitted.clips.values())
        lines += [
            "",
            f"**Synthetic data: {fitted.drawn} of {seen} clips were drawn by a program.** The network says nothing "
            "about people.",
        ]
    return lines


def _use(run: Mapping[str, Any], fitted: FittedModel) -> list[str]:
    lines = ["    fusion predict VIDEO --run THIS_FOLDER", ""]
    files = _local_files(run)
    if files:
        lines += [
            "The encoders need files that are not part of this folder. Name yours, which must have this sha256:",
            "",
            *(f"* `--set {instance}.weights=PATH` ({name}, sha256 `{sha256}`)" for instance, name, sha256 in files),
            "",
        ]
    lines.append("The features are extracted exactly as for training; weights of other content are refused.")
    kinds = set(fitted.crops.values())
    if kinds:
        lines.append(f"Face crops of the fit: {'; '.join(WORDS.get(kind, kind) for kind in sorted(kinds))}.")
    return lines


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """A table of mean F1 per split. The run's own metrics.json may hold more splits, and other values beside them."""
    rows = [
        "| split | clips | frames | mean F1 | 95 % interval | best trivial predictor |",
        "|---|---|---|---|---|---|",
    ]
    for split, found in scores.items():
        if not isinstance(found, Mapping) or _mean(found) is None or len(found["f1"]) < 2:  # "mean" alone: no AU
            continue
        trivial = {name: _mean(values) for name, values in found.get("baselines", {}).items()}
        best = max(trivial, key=lambda name: trivial[name] or 0.0, default=None)
        cells = [split, found.get("clips", "?"), found.get("frames", "?"), _percent(_mean(found))]
        cells += [
            _interval(found.get("f1_interval_95")),
            "-" if best is None else f"{best} {_percent(trivial[best])}",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    names = [au for found in scores.values() if isinstance(found, Mapping) for au in found.get("f1", {})]
    per_au = [f"| AU | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for au in dict.fromkeys(names):
        cells = [_percent(found["f1"].get(au)) if "f1" in found else "-" for found in scores.values()]
        per_au.append(f"| {au} | {' | '.join(cells)} |")
    return [
        *rows,
        "",
        "F1 in percent. `val` chose the epoch, and the thresholds if there are any, so it flatters; `train` was "
        "learned. Only clips that neither saw tell how good the network is.",
        "",
        *per_au,
    ]


def _post(postprocess: Mapping[str, Any] | None) -> list[str]:
    if postprocess is None:
        return ["", "Without post-processing: a unit counts as active where its probability is at least 0.5."]
    return ["", "`postprocess.json` is applied by `fusion predict`; `--raw` gives the network's own probabilities."]


def _data(fitted: FittedModel) -> list[str]:
    lines = [
        f"* {split}: {_counted(len(clips), 'clip')}, listed in `fusion.json`" for split, clips in fitted.clips.items()
    ]
    return [*lines, "", "Clips of one person or recording should lie in one split; the names do not tell."]


def _encoders(run: Mapping[str, Any]) -> list[str]:
    rows = ["| weights | used by | licence | trained on | from |", "|---|---|---|---|---|"]
    for sha256, users in sorted(_users(run["recipes"]).items(), key=lambda item: item[1]):
        name = _name(run, sha256)
        used_by = ", ".join(users)
        row = TABLE.get(name)
        if row is not None:
            rows.append(f"| {name} | {used_by} | {row.licence} | {row.trained_on} | {row.source} |")
        elif name == RANDOM:
            rows.append(f"| random | {used_by} | none | nothing: untrained | drawn by name |")
        else:
            rows.append(f"| {name} (`{sha256[:16]}`) | {used_by} | {LICENCE_UNKNOWN} | unknown | |")
    return [*rows, "", "These licences are not this network's. Weights are not part of this folder."]


def _limits(fitted: FittedModel) -> list[str]:
    return [
        "For research on facial movement in recordings like those it was fitted on. An action unit is a movement of "
        "the face, not an emotion, an intention or a trait; decisions about people must not rest on it.",
        "",
        "* Recordings of other kinds (light, pose, age, skin, language, cameras) were not tested.",
        "* Frames without a face get numbers only on request, from sound and words alone.",
        f"* Frames that lack a modality are handled as in training (`missing: {fitted.config.model.missing}`).",
        "* Labels are people's judgements; their errors are in the network and in its scores.",
    ]


def _users(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """sha256 of weights -> the instances (inputs: slots) that use them."""
    found: dict[str, list[str]] = {}
    for name, sha256 in weights_in(recipes):
        users = found.setdefault(sha256, [])
        if name not in users:
            users.append(name)
    return found


def weights_in(recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(instance, sha256) of all weights in recipes, those of inputs by the name of their slot; some come repeatedly."""
    for name, recipe in recipes.items():
        if "weights" in recipe:
            yield name, recipe["weights"]
        yield from weights_in(recipe.get("inputs", {}))


def _local_files(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for sha256, users in _users(run["recipes"]).items():
        name = _name(run, sha256)
        if name not in TABLE and name != RANDOM:
            found.append((users[0], name, sha256))
    return found


def _name(run: Mapping[str, Any], sha256: str) -> str:
    known = (row.key for row in TABLE.values() if row.sha256 == sha256)
    return str(run["weights"].get(sha256) or next(known, "unnamed"))


def _counted(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"


def _mean(found: Mapping[str, Any]) -> float | None:
    values = found.get("f1")
    return values.get("mean") if isinstance(values, Mapping) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "none: too few recordings" if not ends else f"{_percent(ends[0])} to {_percent(ends[1])}"
