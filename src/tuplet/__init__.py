"""Deep metric learning with the HIST loss: labelled images in, an embedding model and its scores out.

The public names are listed with their types in `__init__.pyi`. Each is imported when it is first used, so
that the command line prints its help without waiting for torch.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("tuplet")
