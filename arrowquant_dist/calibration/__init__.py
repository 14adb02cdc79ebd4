"""What a model's layers see of texts, as statistics that quantizing makes use of."""

from arrowquant_dist.calibration.record import Calibration
from arrowquant_dist.calibration.run import calibrate

__all__ = ["Calibration", "calibrate"]
