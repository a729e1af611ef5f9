"""What a package needs beside itself: requirements as in PEP 508, and the name of the environment that fulfils them."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement

from agent.errors import Invalid
from agent.packages.protocol import Installed


class BadDependency(Invalid):
    """A requirement cannot be fulfilled as it is written; trying again is useless until the package changes."""

    code = "PKG_DEPENDENCY"


def check_requirements(requirements: Iterable[str]) -> None:
    """Each is a name with versions, extras and markers. BadDependency names the first that is not, or that names a place."""
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BadDependency(f"'{text}' is no requirement: {str(error).splitlines()[0]}") from error
        if requirement.url:  # would be fetched from anywhere, past the hosts that packages may come from
            raise BadDependency(f"'{text}' names a place", hint="name a version, and put the wheel into dependencies/")


def names_of(requirements: Iterable[str]) -> dict[str, str]:
    """The distribution's name of each requirement, in lower case with dashes."""
    return {text: Requirement(text).name.lower().replace("_", "-").replace(".", "-") for text in requirements}


def environment_of(packages: Iterable[Installed]) -> str:
    """The name of the environment in which these packages run together; empty when none has dependencies."""
    return "+".join(sorted({item.package.digest for item in packages if item.dependencies}))
