"""Reads untrusted files: safetensors, archives of torch.save, and where in them a network is.

Only the modules that read tensors import torch.
"""
