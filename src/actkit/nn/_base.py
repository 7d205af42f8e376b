"""The interface of `nn`: layers to build networks from."""

from torch import nn


class Layer(nn.Module):
    """A layer that stands in a network as any of torch's own does.

    It keeps dtype and device, gives gradients to its inputs and parameters, and its state dict
    makes an equal one.
    """
