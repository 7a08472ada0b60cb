"""The engine at a prompt or in a notebook: any classifier, any images, one call.

Defines `gkl.evaluate` and the other names of `gkl` itself. The service uses the packages beside this one directly.
"""
