"""The names of a network's tensors: ours and those of the published ProxylessNAS and TinyTL.

All are compared by canonical names: timm's, without the wrappers that lite residuals put around a block.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from tinytl.networks.proxylessnas import ARCHITECTURES

COUNTER = "num_batches_tracked"
STATISTICS = ("running_mean", "running_var", COUNTER)  # the last parts of BatchNorm's buffers
# parts of names from the wrappers of lite residuals: (in the network, in the canonical name)
WRAPPERS = (
    (".main_branch.", "."),
    (".downsample.shortcut.", ".downsample."),
    (".downsample.lite_residual.", ".lite_residual."),
)
PUBLISHED = "first_conv"  # names begin so in the published naming only


def canonical(key: str) -> str:
    """Name of a network's tensor without the wrappers of lite residuals."""
    for wrapped, plain in WRAPPERS:
        key = key.replace(wrapped, plain)
    return key


def canonical_module(name: str) -> str:
    """Name of a network's module, likewise. The wrapper of a block itself gets the block's name."""
    return canonical(f"{name}.").removesuffix(".")


def strip_prefix(state: Mapping[str, Tensor], children: Iterable[str]) -> dict[str, Tensor]:
    """Remove one or several prefixes that trainers put before every name, such as `module.` or `model.`.

    `children` are the first parts of the model's own names. Names stay as they are where removing prefixes
    does not lead to one of them.
    """
    known = {*children, PUBLISHED}
    names = {key: key for key in state}
    while names and not any(name.split(".")[0] in known for name in names.values()):
        prefixes = {name.partition(".")[0] for name in names.values()}
        names = {key: name.partition(".")[2] for key, name in names.items()}
        if len(prefixes) > 1 or not all(names.values()):
            return dict(state)
    return {name: state[key] for key, name in names.items()}


def published_modules(model: str) -> dict[str, str]:
    """Map published to canonical names, for every layer of a ProxylessNAS and its lite residuals.

    Raises KeyError for any other model.
    """
    names = {
        "first_conv.conv": "conv_stem",
        "first_conv.bn": "bn1",
        "feature_mix_layer.conv": "conv_head",
        "feature_mix_layer.bn": "bn2",
        "classifier.linear": "classifier",
    }
    for number, name in ARCHITECTURES[model].block_names():
        layers = [("depth_conv", "dw", 1), ("point_linear", "pw", 2)]  # the first block does not expand
        if number > 0:
            layers = [("inverted_bottleneck", "pw", 1), ("depth_conv", "dw", 2), ("point_linear", "pwl", 3)]
        for published, conv, position in layers:
            names[f"blocks.{number}.conv.{published}.conv"] = f"{name}.conv_{conv}"
            names[f"blocks.{number}.conv.{published}.bn"] = f"{name}.bn{position}"
        for layer in ("conv1", "bn1", "conv2", "final_bn"):
            names[f"blocks.{number}.conv.lite_residual.{layer}"] = f"{name}.lite_residual.{layer}"
    return names


def from_published(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename a state dict by `names`, which maps published modules to canonical ones.

    Unknown names stay as they are.
    """
    renamed = {}
    for key, tensor in state.items():
        plain = key.replace(".mobile_inverted_conv.", ".conv.").replace(".main_branch.", ".")
        module, _, name = plain.rpartition(".")
        renamed[f"{names[module]}.{name}" if module in names else key] = tensor
    return renamed
