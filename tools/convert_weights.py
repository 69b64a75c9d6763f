"""Convert weights of PyTorch models with the unofficial reading's layout to ours, or (-to torch) back.

    python tools/convert_weights.py theirs.pth ours.pdparams
    python tools/convert_weights.py ours.pdparams theirs.safetensors -to torch

PyTorch is not needed, and nothing that is written in the files is run. docs/reproduction.md describes the layout, and
where the models differ. In PyTorch, safetensors.torch.load_file reads what -to torch writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and tools/ are

from common.errors import UserError  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    from tools.conversion.unofficial_layout import Conversion, Dimensions

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# Where training programs of PyTorch keep the weights.
_WEIGHT_KEYS = ("model", "state_dict", "model_state_dict")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    suffixes = (".safetensors",) if arguments.to == "torch" else (".pdparams", ".safetensors")
    if arguments.target.suffix not in suffixes:
        raise UserError(f"cannot write {arguments.target} for {arguments.to}; name a {' or '.join(suffixes)} file")

    from common.checkpoints.file_format import save_file
    from tools.conversion.unofficial_layout import to_paddle, to_torch

    weights = _read(arguments.source, arguments.to)
    conversion = (to_torch if arguments.to == "torch" else to_paddle)(weights)
    for line in _report(conversion):
        print(line)
    if not conversion.is_complete and not arguments.partial:
        raise UserError(
            f"{arguments.target} was not written: the other model would compute something else; "
            "-partial writes what could be mapped"
        )
    save_file(conversion.weights, arguments.target)
    print(f"wrote {arguments.target}; {_usage(arguments.to, conversion.dimensions, arguments.target)}")


def _read(source: Path, to: str) -> dict[str, np.ndarray]:
    from common.checkpoints.file_format import load_file
    from common.checkpoints.loading import find_weights

    if source.suffix in TORCH_SUFFIXES:
        from tools.conversion.torch_file import load_torch_file

        state = load_torch_file(source)
    else:
        state = load_file(source)
    if to == "torch":
        _refuse_other_attention(state.get("attention"), source)
    inner = next((state[key] for key in _WEIGHT_KEYS if isinstance(state.get(key), dict)), state)
    return find_weights(inner, str(source))


def _refuse_other_attention(attention: Any, source: Path) -> None:
    """Stop for what our checkpoints say of their attention and the other model does not have."""
    if isinstance(attention, dict) and (attention.get("attention") != "pale" or not attention.get("parallel")):
        raise UserError(
            f"{source} learnt with another attention, {attention}; the PyTorch model has parallel pales only"
        )


def _report(conversion: Conversion) -> list[str]:
    lines = [f"{len(conversion.weights)} arrays mapped", *conversion.notes]
    lines += [f"not in the other model: {name}" for name in conversion.unmapped]
    lines += [f"not in the file: {name}" for name in conversion.missing]
    lines += [f"of another shape: {name}" for name in conversion.mismatched]
    if any(name.endswith("norm.weight") for name in conversion.unmapped):
        lines.append("the PyTorch model has no norms of the stages; weights trained with stage_norms=False fit it")
    return lines


def _usage(to: str, dimensions: Dimensions, target: Path) -> str:
    """How to load the result; the weights do not tell the number of heads."""
    if to == "torch":
        return (
            "load it with safetensors.torch.load_file into a model with qkv_bias=True, half of our num_heads, and our "
            "pale size"
        )
    from common.pale_transformer import VARIANTS

    ratio = dimensions.hidden[0] / dimensions.channels[0]
    known = {(row["embed_dim"], tuple(row["depths"]), 4.0): name for name, row in VARIANTS.items()}
    name = known.get((dimensions.channels[0], dimensions.depths, ratio))
    sizes = "" if name else f"embed_dim={dimensions.channels[0]}, depths={dimensions.depths}, mlp_ratio={ratio:g}, "
    return (
        f'load it with create_model("{name or "pale_base"}", {sizes}num_heads=TWICE_THEIRS, stage_norms=False, '
        f'pretrained="{target}"), where TWICE_THEIRS is (8, 16, 32, 64) for (4, 8, 16, 32)'
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        __doc__, "0 done; 2 wrong input or, without -partial, something could not be mapped; 1 anything else"
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="weights: .pth, .pt, .bin, .safetensors or .pdparams")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write: .pdparams or .safetensors")
    parser.add_flag("to", choices=("paddle", "torch"), default="paddle", help="whose layout (default: %(default)s)")
    parser.add_flag("partial", action="store_true", help="write what could be mapped even if something could not")
    return parser


if __name__ == "__main__":
    run(main)
