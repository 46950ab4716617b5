"""Let a torchvision built for CUDA be imported beside a torch built for the CPU.

Where no CPU build of torchvision can be had, its compiled operators cannot load, and `import torchvision` dies on
the first two it describes: `operator torchvision::nms does not exist`. transformers and vLLM import torchvision for
its image transforms only, so declaring these two operators is enough. They have no implementation: calling one
still ends in torchvision's own error.

`install.py` copies this file into the environment, together with a `.pth` file that imports it, because vLLM starts
fresh interpreters. Nothing is loaded until torchvision is, and a torchvision whose operators do load is left alone.
"""

import sys

DECLARED_BY = "torchvision._meta_registrations"  # the module that needs the operators to exist
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries = []  # torch forgets the operators of a library that is garbage-collected


class OperatorFinder:
    """Finds no module: declares the operators when torchvision is about to need them."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == DECLARED_BY:
            sys.meta_path.remove(cls)
            # torchvision imports its extension first, so by now it knows whether its compiled operators loaded.
            if not sys.modules["torchvision.extension"]._has_ops():
                declare_operators()


def declare_operators():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator + SIGNATURE)
    _libraries.append(library)


def install():
    if OperatorFinder not in sys.meta_path:
        sys.meta_path.insert(0, OperatorFinder)
