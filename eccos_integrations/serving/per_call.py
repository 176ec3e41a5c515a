"""Settings of a single call, as every wrapper takes them: `eccos_model`, `eccos_min_quality`, `eccos_max_cost_usd`."""

from collections.abc import Mapping
from typing import Any

from eccos_integrations.errors import ConfigError
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.window import Options

SETTINGS = {
    "eccos_model": "The model to use, whatever the router would choose.",
    "eccos_min_quality": "A floor in place of the policy's, read as the policy reads its own.",
    "eccos_max_cost_usd": "A budget in place of the policy's: most USD per call, on average over all such calls.",
}


def per_call(router: Router, policy: Policy | None, settings: Mapping[str, Any]) -> Options:
    """What a dispatcher has to know of one call's settings.

    Args:
        router: Its models.
        policy: What holds otherwise; None: the router's own.
        settings: By name; those of other libraries are left alone, None is as if it were not there.

    Raises:
        ConfigError: The model is unknown, or the policy cannot hold together with what is asked.

    Example:
        >>> from eccos_integrations import load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> per_call(router, None, {"eccos_model": router.best})["candidates"] == [router.best]
        True
    """
    options = Options(policy=router.policy if policy is None else policy)
    model = settings.get("eccos_model")
    if model is not None:
        if model not in router.models:
            raise ConfigError(f"eccos_model: {model!r} is not a model of the router; give one of {router.models}")
        options["candidates"] = [model]
    given = {
        "min_quality": settings.get("eccos_min_quality"),
        "max_mean_cost_usd": settings.get("eccos_max_cost_usd"),
    }
    if asked := {name: value for name, value in given.items() if value is not None}:
        options["policy"] = Policy(**{**(policy or router.policy).model_dump(), **asked})
    return options
