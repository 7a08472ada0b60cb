"""Files from strangers: safetensors, archives of torch.save, and where in them a network is. Free of torch but for what
reads tensors.
"""
