"""The errors of this library: one parent, few children, each also the built-in it resembles."""


class EccosError(Exception):
    """Parent of every error this library raises on purpose."""


class DataError(EccosError, ValueError):
    """An outcome table, or a file of one, breaks a rule. Nothing was read or written."""


class ConfigError(EccosError, ValueError):
    """A pool, a policy, the members or an argument cannot be used as given."""


class InfeasibleError(EccosError):
    """No assignment meets every row of the problem, and the policy asked to be told (`on_infeasible="raise"`)."""


class NoCapacityError(EccosError):
    """A query was not placed: every model it may go to is full."""


class ArtifactError(EccosError, ValueError):
    """A saved router is damaged, incomplete, or from a newer version."""


class MissingExtraError(EccosError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'eccos-integrations[{extra}]'")
