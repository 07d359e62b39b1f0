"""All methods of this package, one in each file: its keys, its checks, what it trains on and its trainer.

Each module registers its method when it is imported, which imports no torch.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
