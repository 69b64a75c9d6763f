"""The configuration of a run: defaults, then a yaml file and its base, then flags, then ``-opts``.

What all tasks share is here: the keys in capitals that every task has, the flags for them, and the machinery. A task
describes what it adds in one :class:`TaskConfig`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..checkpoints.released import list_weights
from ..errors import UserError
from ..runtime.command_line import ArgumentParser
from .results import results_file

__all__ = [
    "Flag",
    "TaskConfig",
    "add_weights_flags",
    "check_keys",
    "plain",
    "read_yaml_with_bases",
    "require",
    "shared_config",
]


def shared_config() -> CfgNode:
    """The keys of every task, with the values that hold where a file does not say otherwise."""
    config = CfgNode()
    config.BASE = ""  # another yaml file, relative to this one, whose values this one overrides

    config.DATA = CfgNode()
    config.DATA.NUM_WORKERS = 4  # processes that read images, on each rank; 0 reads in the training process

    config.MODEL = CfgNode()
    config.MODEL.PRETRAINED = ""  # weights to start from, or to evaluate

    config.TRAIN = CfgNode()
    config.TRAIN.LAYER_DECAY = 1.0  # factor between the learning rates of one layer and the next; 1 is off
    config.TRAIN.GRAD_CLIP = 0.0  # limit of the global norm; 0 is off
    config.TRAIN.ACCUM_ITER = 1  # batches that make one optimizer step
    config.TRAIN.AMP = ""  # float16, bfloat16 or empty for float32
    config.TRAIN.EMA_DECAY = 0.0  # 0 is off
    config.TRAIN.SKIP_NONFINITE = 0  # steps in a row whose loss may be NaN or infinite before training stops

    config.SAVE_STEPS = 0  # optimizer steps between two writes of latest.pdparams; 0: only when there is an evaluation
    config.KEEP_CHECKPOINTS = 3
    config.LOG_INTERVAL = 50  # optimizer steps between two lines
    config.PICTURES = 4  # images, of rank 0's, that VisualDL shows: of a training batch, and of the validation data
    config.HISTOGRAMS = False  # give VisualDL those of all weights and gradients before each evaluation
    config.OUTPUT = ""
    config.RESUME = ""  # a training state (latest.pdparams of an earlier run), or auto for OUTPUT's own if there is one
    config.EVAL = False  # only evaluate
    config.RECORD = ""  # CSV file that an evaluation is appended to
    config.SEED = 0
    config.DEVICE = ""  # cpu, gpu, gpu:N, or empty for what there is
    return config


@dataclass(frozen=True)
class Flag:
    """A command-line flag for one or more configuration keys.

    Attributes:
        keys: dotted keys that get the value.
        kind: turns the text into the value; ``bool`` makes a switch.
        text: what ``-h`` says.
        group: the heading under which it does.
        metavar: what stands there for the value.
    """

    keys: tuple[str, ...]
    kind: Callable[[str], Any]
    text: str
    group: str
    metavar: str = "N"


_SHARED_FLAGS = {
    "accum_iter": Flag(("TRAIN.ACCUM_ITER",), int, "batches whose gradients make one optimizer step", "training"),
    "seed": Flag(("SEED",), int, "seed of every random number", "training"),
    "pretrained": Flag(
        ("MODEL.PRETRAINED",),
        str,
        "weights to start from, or to evaluate: a file, https://...#sha256=..., or a released tag",
        "weights and output",
        "WEIGHTS",
    ),
    "resume": Flag(
        ("RESUME",),
        str,
        "training state to continue from, or auto: that of -output if there is one",
        "weights and output",
        "FILE",
    ),
    "output": Flag(("OUTPUT",), str, "folder for checkpoints and logs", "weights and output", "FOLDER"),
    "device": Flag(
        ("DEVICE",), str, "cpu, gpu or gpu:N (default: what Paddle was compiled for and finds)", "training", "DEVICE"
    ),
    "eval": Flag(("EVAL",), bool, "only evaluate -pretrained (or -resume)", "instead of training"),
}

# What one command is to do, not what its run is like.
_INVOCATION_KEYS = {"RESUME", "EVAL", "RECORD"}

# What else may differ between a run and its continuation without changing a single weight; the last line is what the
# trainer compares itself.
_FREE_KEYS = {
    *("BASE", "OUTPUT", "DEVICE", "LOG_INTERVAL", "KEEP_CHECKPOINTS", "SAVE_STEPS", "PICTURES", "HISTOGRAMS"),
    *("DATA.NUM_WORKERS", "MODEL.PRETRAINED"),
    *("TRAIN.ACCUM_ITER", "SEED"),
}


@dataclass(frozen=True)
class TaskConfig:
    """What the configuration of a task adds to what all tasks share.

    Attributes:
        default_file: the yaml file that holds where no ``-cfg`` is given.
        defaults: builds every key there is.
        flags: the task's own flags.
        check: raises ``UserError`` for a value that no run can use.
        free_keys: keys, or whole sections, that may differ between a run and its continuation.
        invocation_keys: keys that say what one command is to do; they are not kept with a run.
        open_sections: keys whose values are another toolkit's business: dicts of any content, merged, not checked.
    """

    default_file: Path
    defaults: Callable[[], CfgNode]
    flags: Mapping[str, Flag] = field(default_factory=dict)
    check: Callable[[CfgNode], None] = lambda config: None
    free_keys: frozenset[str] = frozenset()
    invocation_keys: frozenset[str] = frozenset()
    open_sections: Container[str] = frozenset()

    def add_flags(self, parser: ArgumentParser) -> None:
        """Add PaddleViT's flags, which override the configuration, and ``-cfg``, ``-record``, ``-opts``.

        Behind each, ``-h`` says which key it sets, and the key's value in the default file.
        """
        defaults = self.load(argparse.Namespace(cfg=str(self.default_file), opts=[]))
        groups = {
            heading: parser.add_argument_group(heading)
            for heading in ("configuration", "data", "training", "weights and output", "instead of training")
        }
        parser.add_flag(
            "cfg",
            groups["configuration"],
            default=str(self.default_file),
            metavar="YAML",
            help=f"file of values (default: {'/'.join(self.default_file.parts[-3:])})",
        )
        parser.add_flag(
            "opts",
            groups["configuration"],
            nargs=argparse.REMAINDER,
            default=[],
            help="KEY VALUE ...: any key that has no flag; comes last",
        )
        for name, flag in self._all_flags().items():
            how = {"action": "store_true"} if flag.kind is bool else {"type": flag.kind, "metavar": flag.metavar}
            value = _find(defaults, flag.keys[0])
            is_lasting = flag.kind is not bool and flag.keys[0] not in self.invocation_keys
            shown = f" = {value}".replace("%", "%%") if is_lasting and value not in (None, "") else ""
            parser.add_flag(name, groups[flag.group], help=f"{flag.text} [{', '.join(flag.keys)}{shown}]", **how)
        parser.add_flag(
            "amp",
            groups["training"],
            nargs="?",
            const="float16",
            choices=("float16", "bfloat16"),
            help="mixed precision, float16 unless bfloat16 is said [TRAIN.AMP]",
        )
        parser.add_flag(
            "record",
            groups["instead of training"],
            nargs="?",
            const=str(results_file(self.default_file.parents[1].name)),
            metavar="FILE",
            help="with -eval: append the figures to FILE, %(const)s unless another is said [RECORD]",
        )

    def load(self, arguments: argparse.Namespace) -> CfgNode:
        """Merge defaults, files, flags and ``-opts``, check the values, and freeze the result.

        Raises:
            UserError: a file is missing or no yaml, a key is unknown, a value has a wrong type or is impossible.
        """
        config = self.defaults()
        for values, source in read_yaml_with_bases(Path(arguments.cfg).expanduser()):
            self._merge_mapping(config, values, source, "")
        return self._finish(config, arguments)

    def of_weights(self, text: str | None, source: str, arguments: argparse.Namespace) -> CfgNode:
        """The configuration of ``-cfg`` or, without it, the one that weights carry, with flags and ``-opts`` over it.

        Args:
            text: the configuration that the weights carry, as yaml.
            source: where it comes from, for messages.
            arguments: those of :func:`add_weights_flags`, and any of the task's flags.

        Raises:
            UserError: there is none, or as for :meth:`load`.
        """
        if arguments.cfg:
            return self.load(arguments)
        if text is None:
            raise UserError(f"{source} does not say how it was trained; give its -cfg")
        return self.from_text(text, source, arguments)

    def from_text(self, text: str, source: str, arguments: argparse.Namespace | None = None) -> CfgNode:
        """Read back the configuration that a checkpoint carries.

        Args:
            arguments: flags and ``-opts`` that override it.

        Raises:
            UserError: it is not one of this version's, or a flag or option is wrong.
        """
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, AttributeError) as error:
            raise UserError(f"{source} carries a damaged configuration: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{source} carries a {type(values).__name__} in place of a configuration")
        config = self.defaults()
        self._merge_mapping(config, values, source, "")
        return self._finish(config, arguments)

    def dump(self, config: CfgNode) -> str:
        """The configuration of a run as yaml, for its folder and its checkpoints."""
        kept = config.clone()
        kept.defrost()
        for key in _INVOCATION_KEYS | self.invocation_keys:
            section, _, name = key.rpartition(".")
            del (_find(kept, section) if section else kept)[name]
        return kept.dump()

    def differences(self, then: CfgNode, now: CfgNode) -> list[str]:
        """``KEY: value then, value now`` for each key that differs and has a part in the weights."""
        free = _FREE_KEYS | self.free_keys | _INVOCATION_KEYS | self.invocation_keys
        return [
            f"{key}: {_find(then, key)} then, {_find(now, key)} now"
            for key in sorted({*_keys(now), *_keys(then)})
            if not {key, key.partition(".")[0]} & free and _find(then, key) != _find(now, key)
        ]

    def _all_flags(self) -> dict[str, Flag]:
        return {**self.flags, **_SHARED_FLAGS}

    def _finish(self, config: CfgNode, arguments: argparse.Namespace | None) -> CfgNode:
        """Set what flags and ``-opts`` say, check the values, and freeze the result."""
        if arguments is not None:
            self._set_flags(config, arguments)
            self._set_options(config, arguments.opts)
        _check_shared(config)
        self.check(config)
        config.freeze()
        return config

    def _set_flags(self, config: CfgNode, arguments: argparse.Namespace) -> None:
        for name, flag in self._all_flags().items():
            value = getattr(arguments, name, None)
            if value is not None and value is not False:
                for key in flag.keys:
                    self._set(config, key, value, f"-{name}")
        if getattr(arguments, "amp", None):
            config.TRAIN.AMP = arguments.amp
        if getattr(arguments, "record", None) is not None:
            config.RECORD = arguments.record

    def _set_options(self, config: CfgNode, options: Sequence[str]) -> None:
        # What comes behind -opts belongs to it, a second -opts included: messages tell users to add one.
        options = [option for option in options if option not in ("-debug", "--debug", "-opts", "--opts")]
        for option in options[::2]:
            if re.match("--?[a-z]", option):
                raise UserError(f"{option} stands behind -opts, which comes last: put {option} before -opts")
        if len(options) % 2:
            raise UserError(f"-opts takes pairs of KEY VALUE; {options[-1]!r} stands alone")
        for key, text in zip(options[::2], options[1::2], strict=True):
            self._set(config, key, _parse(text), "-opts")

    def _merge_mapping(self, config: CfgNode, values: Mapping[str, Any], source: str, prefix: str) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in self.open_sections:
                if not isinstance(value, dict):
                    raise UserError(f"{source}: {name} is {value!r}; it must hold keys and values")
                config[name] = _merge_open(config.get(name, CfgNode()), value)
            elif isinstance(config_node := _find(config, name), CfgNode) and isinstance(value, dict):
                self._merge_mapping(config, value, source, f"{name}.")
            elif config_node is None:
                raise UserError(f"{source}: unknown key {name}{_similar(config, name)}")
            else:
                self._set(config, name, value, source)

    def _set(self, config: CfgNode, key: str, value: Any, source: str) -> None:
        """Set a dotted key to a value of the type of its default."""
        section, _, rest = key.partition(".")
        if section in self.open_sections:
            if not rest and not isinstance(value, dict):
                raise UserError(f"{source}: {key} is {value!r}; it must hold keys and values")
            _set_open(config, key, value, source)
            return
        default = _find(self.defaults(), key)
        if default is None:
            raise UserError(f"{source}: unknown key {key}{_similar(config, key)}")
        node = _find(config, key.rpartition(".")[0]) if "." in key else config
        node[key.rpartition(".")[2]] = _coerce(value, default, key, source)


def add_weights_flags(parser: ArgumentParser, required: bool = True) -> argparse._ArgumentGroup:
    """Add the flags of a program that uses trained weights: ``-pretrained``, ``-cfg``, ``-device`` and ``-opts``.

    :meth:`TaskConfig.of_weights` makes a configuration of them.

    Returns:
        Their group.
    """
    tags = ", ".join(row.tag for row in list_weights())
    sources = f"weights: a file, https://...#sha256=..., or a released tag ({tags})"
    group = parser.add_argument_group("model")
    parser.add_flag("pretrained", group, required=required, metavar="WEIGHTS", help=sources)
    parser.add_flag("cfg", group, metavar="YAML", help="their configuration (default: the one inside the weights)")
    parser.add_flag("device", group, help=_SHARED_FLAGS["device"].text)
    parser.add_flag(
        "opts",
        group,
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="override keys of the configuration",
    )
    return group


def read_yaml_with_bases(path: Path, including: tuple[Path, ...] = ()) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the values of a yaml file with its name, those of its bases first.

    Bases are named by ``BASE`` or, as the toolkits have it, ``_base_`` or ``_BASE_``; a later one overrides an earlier.

    Raises:
        UserError: a file is missing, no yaml, or its own base.
    """
    path = path.resolve()
    if path in including:
        raise UserError(f"{path} is its own BASE, by way of {including[-1]}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing -cfg") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no yaml file: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not keys and values")
    bases = [values.pop(key, None) for key in ("BASE", "_base_", "_BASE_")]
    bases = next(filter(None, bases), [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from read_yaml_with_bases(path.parent / str(base), (*including, path))
    yield values, str(path)


def plain(node: Any) -> Any:
    """A section as plain dicts and lists, as the toolkits want it."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(item) for item in node] if isinstance(node, (list, tuple)) else node


def check_keys(section: Mapping[str, Any], known: Iterable[str], name: str) -> None:
    """Check that an open section has no key that nobody reads.

    Args:
        name: what the section is called.

    Raises:
        UserError: it has.
    """
    known = list(dict.fromkeys(known))
    for key in section:
        if key not in known:
            raise UserError(f"{name} has an unknown key, {key}; known are {', '.join(known)}")


def require(config: CfgNode, keys: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Check a condition for each of the keys.

    Args:
        keys: dotted, separated by blanks.
        rule: what the value must be, for the message.

    Raises:
        UserError: it does not hold.
    """
    for key in keys.split():
        value = _find(config, key)
        if not holds(value):
            raise UserError(f"{key} is {value!r}; it {rule}")


def _check_shared(config: CfgNode) -> None:
    require(config, "TRAIN.ACCUM_ITER TRAIN.LAYER_DECAY LOG_INTERVAL", lambda n: n > 0, "must be greater than 0")
    not_negative = "DATA.NUM_WORKERS TRAIN.GRAD_CLIP KEEP_CHECKPOINTS SAVE_STEPS TRAIN.SKIP_NONFINITE SEED PICTURES"
    require(config, not_negative, lambda n: n >= 0, "must not be negative")
    require(config, "TRAIN.EMA_DECAY", lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
    require(config, "TRAIN.AMP", lambda value: value in ("", "float16", "bfloat16"), "must be float16, bfloat16 or ''")
    require(config, "OUTPUT", bool, "must name a folder; give -output")
    if config.RECORD and not config.EVAL:
        raise UserError("-record writes the figures of an evaluation down; it needs -eval")


def _merge_open(old: Mapping[str, Any], new: Mapping[str, Any]) -> CfgNode:
    """``new`` over ``old``, dict by dict; PaddleSeg's ``_inherited_: False`` drops the old one."""
    inherited = new.get("_inherited_", True)
    merged = CfgNode(dict(old)) if inherited else CfgNode()
    for key, value in new.items():
        if isinstance(value, dict):
            below = merged.get(key) if isinstance(merged.get(key), CfgNode) else CfgNode()
            merged[key] = _merge_open(below, value)
        elif key != "_inherited_":
            merged[key] = _number(value)
    return merged


def _set_open(config: CfgNode, key: str, value: Any, source: str) -> None:
    """Set a dotted key of an open section; a number in it counts the items of a list, from 0. Dicts are merged."""
    *above, last = key.split(".")
    node: Any = config
    for depth, part in enumerate(above):
        node = _below(node, _index(node, part, key, depth, source))
    place: Any = _index(node, last, key, len(above), source)
    if not isinstance(node, (dict, list)):
        raise UserError(f"{source}: {key} cannot be set to {value!r}{_similar(config, key)}")
    if isinstance(value, dict):
        old = _below(node, place)
        value = _merge_open(old if isinstance(old, dict) else {}, value)
    node[place] = _number(value) if isinstance(node, CfgNode) else plain(_number(value))


def _index(node: Any, part: str, key: str, depth: int, source: str) -> str | int:
    """A part of a dotted key as what the node takes."""
    if not isinstance(node, list):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        name = ".".join(key.split(".")[:depth])
        raise UserError(f"{source}: {key}: {name} is a list of {len(node)}, counted from 0; it has no {part}")
    return int(part)


def _below(node: Any, place: Any) -> Any:
    """What a dict or a list has there, or None."""
    if isinstance(node, dict):
        return node.get(place)
    return node[place] if isinstance(node, list) else None


def _number(value: Any) -> Any:
    """Turn what yaml takes for text into the number it is: 6e-5, without a point."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if type(value) is dict:
        return {key: _number(item) for key, item in value.items()}
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+e[-+]?[0-9]+", value, re.IGNORECASE)
    return float(value) if is_number else value


def _find(config: CfgNode, key: str) -> Any:
    """The value of a dotted key, or None."""
    node = config
    for part in str(key).split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return node


def _coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Return ``value`` as the type of ``default``: yaml reads 1e-3 as a string and 5 as an integer.

    An empty list takes integers, as many as there are.
    """
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(default, list) and default and isinstance(value, (list, tuple)) and len(value) == len(default):
        return [_coerce(item, like, key, source) for item, like in zip(value, default, strict=True)]
    elif default == [] and isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        return list(value)
    elif isinstance(default, str) and value is None:
        return ""
    elif type(value) is type(default) and not isinstance(default, list):
        return value
    wanted = f"of type {type(default).__name__}"
    if isinstance(default, list):
        wanted = f"a list of {len(default) or 'whole'} numbers"
    raise UserError(f"{source}: {key} is {value!r}; it must be {wanted}")


def _parse(text: str) -> Any:
    """Read a command-line value as yaml would, so that lists, numbers and booleans work."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _keys(node: CfgNode, prefix: str = "") -> Iterable[str]:
    """All dotted keys."""
    return [
        full
        for name, value in node.items()
        for full in (_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"])
    ]


def _similar(config: CfgNode, key: str) -> str:
    """A hint for a mistyped key."""
    known = {name.upper(): name for name in _keys(config)}
    close = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""
