"""How near a fast way must come to the plain one, so that its speed counts for anything.

In 16 bits no way comes nearer to float32 than their rounding allows, the plain one neither. A fast way is therefore
measured by the error that the plain way has in the same number type: it may be half as large again.

That needs weights which do not make more of rounding than trained ones do. Of the published x4plus file it is known
that float16 moves a value of [0, 1] by 1.3e-3, a third of a grey level (the card of mlx-community/Real-ESRGAN-x4plus).
``random_weights`` give pictures that deviate by 5 where a photograph deviates by 0.2: nine values in ten are cut off at
black or white, and of the rest some are 8 levels off. With the last convolution damped by 0.04 they deviate by 0.2, and
plain float16 is 1.3e-3 from float32 at most (tests/test_gates.py).
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from extract.weights.files import Weights

LAST_GAIN = 0.04
"""By which the last convolution of the random x4plus is damped; here alone: recipes hold the sha256 of the drawn."""
MOST_TIMES_PLAIN = 1.5
FLOAT32_RELATIVE = 1e-5
WITHIN_ONE_LEVEL = 0.999


class GateError(Exception):
    """The fast way does not give what the plain way gives."""


def require(holds: bool, found: str) -> None:
    """Raises GateError saying what was found instead."""
    if not holds:
        raise GateError(found)


def realistic(weights: Weights) -> Weights:
    """The random x4plus, its pictures as bright and as contrasty as photographs."""
    if weights.drawn is None:
        raise ValueError(f"weights {weights.spec!r} are not random ones")
    last = weights.drawn["conv_last.weight"]
    return replace(weights, drawn={**weights.drawn, "conv_last.weight": (last * LAST_GAIN).astype(np.float32)})


def pictures_are_near(found: Tensor, plain: Tensor, reference: Tensor) -> str:
    """Levels 0 to 255, rounded. ``plain``: in the precision of ``found``; ``reference``: plain, in float32.

    Raises:
        GateError: fewer than 99.9 % within one level of float32, or too many levels other than float32's.
    """
    off, own = ((levels.float() - reference.float()).abs() for levels in (found, plain))
    near, other, others = (
        float((off <= 1).float().mean()),
        float((off > 0).float().mean()),
        float((own > 0).float().mean()),
    )
    most = MOST_TIMES_PLAIN * others + 1e-3
    require(near >= WITHIN_ONE_LEVEL, f"{near:.4%} within one level of float32, at least {WITHIN_ONE_LEVEL:.1%}")
    require(other <= most, f"{other:.3%} of the levels are not float32's, at most {most:.3%}")
    return f"{near:.4%} of the levels within 1 of float32, {other:.3%} other ones (the plain way {others:.3%})"


def features_are_near(found: Tensor, plain: Tensor, reference: Tensor) -> str:
    """Any features; the same three.

    Raises:
        GateError: further from float32 than 1e-5 (float32), or than half as far again as the plain way is.
    """
    apart, own = (float((values.float() - reference).norm() / reference.norm()) for values in (found, plain))
    most = max(FLOAT32_RELATIVE, MOST_TIMES_PLAIN * own)
    require(apart <= most, f"{apart:.1e} relative from float32, at most {most:.1e}")
    return f"{apart:.1e} relative from plain float32 (at most {most:.1e}; the plain way {own:.1e})"
