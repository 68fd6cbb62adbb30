"""Which parameter is updated like which others."""

from torch import nn


def parameter_groups(model: nn.Module) -> dict[str, list[str]]:
    """Names of the model's parameters by group. Raises if a parameter has no group, or two."""
    groups: dict[str, list[str]] = {"matrices": [], "embedding": [], "head": [], "gains": []}
    for name, parameter in model.named_parameters():
        module = name.split(".")[0]
        if parameter.ndim == 1:
            groups["gains"].append(name)
        elif module in ("embedding", "head"):
            groups[module].append(name)
        elif parameter.ndim == 2 and module == "layers":
            groups["matrices"].append(name)
        else:
            raise ValueError(f"no group of the optimizer owns {name}")
    return groups
