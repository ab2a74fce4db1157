"""From stored features to action unit probabilities per frame.

``fusion.fit``, ``fusion.evaluate`` and ``fusion.predict`` are the commands of these names.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.evaluation import Evaluation
    from fusion.prediction import Predictions

__all__ = ["evaluate", "fit", "predict"]


def fit(*args: Any, **kwargs: Any) -> "list[Evaluation]":  # noqa: ANN401 - the signature is training.fit's
    """Fit the network; arguments, result and errors as of ``fusion.training.fit``."""
    from fusion import training  # here, because torch takes seconds to import

    return training.fit(*args, **kwargs)


def evaluate(*args: Any, **kwargs: Any) -> "Evaluation":  # noqa: ANN401 - the signature is evaluation.evaluate's
    """Score a run on a split; arguments, result and errors as of ``fusion.evaluation.evaluate``."""
    from fusion import evaluation

    return evaluation.evaluate(*args, **kwargs)


def predict(*args: Any, **kwargs: Any) -> "Predictions":  # noqa: ANN401 - the signature is prediction.predict's
    """Action unit probabilities of movies; arguments, result and errors as of ``fusion.prediction.predict``."""
    from fusion import prediction

    return prediction.predict(*args, **kwargs)
