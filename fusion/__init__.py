"""From stored features to action unit probabilities per frame.

``fusion.fit``, ``fusion.evaluate`` and ``fusion.predict`` do what the commands of the same names do. They are imported
when they are first named: that takes seconds, because they need torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.evaluation import evaluate
    from fusion.prediction import predict
    from fusion.training import fit

__all__ = ["evaluate", "fit", "predict"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what type checkers see is above
    match name:
        case "evaluate":
            from fusion.evaluation import evaluate

            return evaluate
        case "fit":
            from fusion.training import fit

            return fit
        case "predict":
            from fusion.prediction import predict

            return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])  # so that help() and completion show them
