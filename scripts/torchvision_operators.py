"""Makes a torchvision that is built for CUDA importable with a torch that is built for the CPU.

Without a CPU build of torchvision, its compiled operators cannot load. Then `import torchvision` fails on the first two
operators that it describes: `operator torchvision::nms does not exist`. transformers and vLLM import torchvision for
its image transforms only, so declaring these two operators is enough. They have no implementation: calling one still
raises torchvision's own error.

`install.py` copies this file into the environment, together with a `.pth` file that imports it, because vLLM starts
new Python processes. Nothing is loaded before torchvision is. If torchvision's operators load, nothing is changed.
"""

import sys

DECLARED_BY = "torchvision._meta_registrations"  # the module that needs the operators to exist
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries = []  # torch forgets the operators of a library that is garbage-collected


class OperatorFinder:
    """Never finds a module. It declares the operators right before torchvision needs them."""

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
    """The ``.pth`` file calls this when Python starts."""
    if OperatorFinder not in sys.meta_path:
        sys.meta_path.insert(0, OperatorFinder)
