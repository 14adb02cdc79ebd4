"""Statistics of what a model's layers see of texts, for methods of quantization that use them."""

from arrowquant_dist.calibration.record import Calibration
from arrowquant_dist.calibration.run import calibrate

__all__ = ["Calibration", "calibrate"]
