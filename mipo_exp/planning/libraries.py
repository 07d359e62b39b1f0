"""Whether the installed libraries are of versions that this package works with; pyproject.toml says which."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from mipo_exp.errors import LibraryError

DISTRIBUTION = "mipo-exp"


def check_libraries() -> None:
    """Raise `LibraryError` for the first library that is missing, too old or too new. Imports none of them.

    pip sees to it when it installs this package, not when another one is installed or upgraded afterwards."""
    try:
        texts = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return  # runs from a folder, without having been installed
    for text in texts:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{needed.name}{needed.specifier}"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            raise LibraryError(f"{needed.name} is not installed; pip install '{wanted}'") from None
        if not needed.specifier.contains(found, prereleases=True):
            raise LibraryError(
                f"{needed.name} {found} is installed, and this program needs {wanted}; pip install '{wanted}'"
            )
