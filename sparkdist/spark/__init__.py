"""The room that knows Spark."""

import copyreg
import pkgutil
import sys
from typing import Any

import numpy as np


def _by_module_and_name(function: Any) -> Any:
    """Pickle a NumPy function, ``scipy.special.expit`` for instance, as one of its library.

    NumPy leaves it to pickle to look for a module that has the name; that may be the user's
    program, under the alias that multiprocessing gives it, which there is not on executors.
    """
    name = function.__name__
    for module, loaded in list(sys.modules.items()):
        own = module in ("__main__", "__mp_main__")
        if not own and getattr(loaded, "__dict__", {}).get(name) is function:
            return pkgutil.resolve_name, (f"{module}:{name}",)
    return name  # as NumPy has it


copyreg.pickle(np.ufunc, _by_module_and_name)
