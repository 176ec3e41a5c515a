"""A price of quality certified on held-out outcomes, and a watch that tells when outcomes leave the forecasts."""

from eccos_integrations.guarantee.certify import Guarantee, certify
from eccos_integrations.guarantee.drift import DriftTest
from eccos_integrations.guarantee.evidence import Evidence

__all__ = ["DriftTest", "Evidence", "Guarantee", "certify"]
