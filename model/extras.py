"""Lazy import of optional packages, with the exact install command when one is missing."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from model.errors import UserError


def require(module: str, *, extra: str) -> ModuleType:
    """Imports `module`.

    Raises: UserError ("missing-package") with the install command if the module, or what it needs, is missing.
    """
    try:
        return import_module(module)
    except ImportError as why:
        raise UserError(
            f"{module} cannot be imported ({why}): pip install 'ppx-train[{extra}]'", code="missing-package"
        ) from why


def package_dir(module: str, *, extra: str) -> Path:
    """Folder of an installed package, found without importing it (for data that ships in a wheel).

    Raises: UserError ("missing-package") with the install command if the package is missing.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"{module} is not installed: pip install 'ppx-train[{extra}]'", code="missing-package")
    return Path(spec.origin).parent
