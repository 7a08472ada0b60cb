"""The engine for somebody at a prompt or in a notebook: any classifier, any images, one call.

`gkl.evaluate` and the other names of `gkl` itself are defined here. Services use the packages beside this one.
"""
