"""Which members can take a call, and of the others why not."""

from collections.abc import Callable, Collection

from eccos_integrations.errors import ConfigError
from eccos_integrations.pool import Model, ModelPool


def able(
    pool: ModelPool,
    members: Collection[str],
    lack: Callable[[Model], str | None],
    only: Collection[str] | None,
    remedy: str,
) -> list[str]:
    """The members that can take a call.

    Args:
        pool: The models.
        members: Names of those that are there.
        lack: What keeps a member from it, in words; None: nothing.
        only: Those it may go to at all; None: all.
        remedy: What to do where there is none.

    Raises:
        ConfigError: There is none; says of each why.

    Example:
        >>> pool = ModelPool([Model(name="small", tools=False), Model(name="large", tools=True)])
        >>> able(pool, pool.names, lambda model: None if model.tools else "it calls no tools", None, "")
        ['large']
    """
    lacking: dict[str, str] = {}
    for model in pool:
        name = model.name
        if name not in members:
            lacking[name] = "it is no member"
        elif only is not None and name not in only:
            lacking[name] = f"the call is pinned to {', '.join(only)}"
        elif why := lack(model):
            lacking[name] = why
    found = [name for name in pool.names if name not in lacking]
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in lacking.items())
        raise ConfigError(f"members: none can take this call: {reasons}. {remedy}")
    return found
