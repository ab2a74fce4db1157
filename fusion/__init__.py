"""From stored features to action unit probabilities per frame.

The functions do what the commands of the same names do. They are imported when they are first named: that takes
seconds, because they need torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.analysis import ablate
    from fusion.evaluation import evaluate
    from fusion.prediction import predict
    from fusion.saved_scores import correlate, tune
    from fusion.sharing import export
    from fusion.submission import submit
    from fusion.training import fit

__all__ = ["ablate", "correlate", "evaluate", "export", "fit", "predict", "submit", "tune"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what type checkers see is above
    match name:
        case "ablate":
            from fusion.analysis import ablate

            return ablate
        case "correlate":
            from fusion.saved_scores import correlate

            return correlate
        case "evaluate":
            from fusion.evaluation import evaluate

            return evaluate
        case "export":
            from fusion.sharing import export

            return export
        case "fit":
            from fusion.training import fit

            return fit
        case "predict":
            from fusion.prediction import predict

            return predict
        case "submit":
            from fusion.submission import submit

            return submit
        case "tune":
            from fusion.saved_scores import tune

            return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])  # so that help() and completion show them
