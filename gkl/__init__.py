"""The engine: losses, training and evaluation, usable as a library without any server.

Importing this package does not import torch; its submodules do where they need it.
"""

__version__ = "0.1.0"
