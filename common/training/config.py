"""The configuration of a run: defaults, then a yaml file and its bases, then flags, then ``-opts``.

All tasks share the keys of :func:`shared_config` and their flags. Each task describes its own in a
:class:`TaskConfig`.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..checkpoints.released import list_tags
from ..errors import UserError, printable
from ..runtime.command_line import ArgumentParser
from ..runtime.folders import expand_home
from ..runtime.yaml_text import parse, read_yaml
from ..tasks import TASKS
from .allowed import Kind, NotAllowedError
from .config_values import (
    coerce,
    find,
    keys_of,
    merge_open,
    plain,
    read_yaml_with_bases,
    set_open,
    similar,
)
from .results import results_file

__all__ = [
    "MAX_SIDE",
    "WEIGHTS",
    "Flag",
    "TaskConfig",
    "add_weights_flags",
    "check_keys",
    "check_sizes",
    "plain",
    "read_yaml_with_bases",
    "require",
    "shared_config",
]

_DEMO_DATA = ("mnist5k", "Nuclei", "HENuclei", "NucleiDataSet")  # data sets with a folder of their own
MAX_SIDE = 8192  # pixels of an image that a model takes
WEIGHTS = {"": None, "model": False, "model_ema": True}  # choices of MODEL.WEIGHTS, as ``ema`` of read_checkpoint


def shared_config() -> CfgNode:
    """The keys of every task, with their default values."""
    config = CfgNode()
    config.BASE = ""  # another yaml file, relative to this one, whose values this one overrides

    config.DATA = CfgNode()
    config.DATA.NUM_WORKERS = 4  # processes per rank that read images; 0 reads in the training process

    config.MODEL = CfgNode()
    config.MODEL.PRETRAINED = ""  # weights to start from, or to evaluate
    config.MODEL.WEIGHTS = ""  # model, model_ema (their average), or empty for the average if there is one

    config.TRAIN = CfgNode()
    config.TRAIN.LAYER_DECAY = 1.0  # factor between the learning rates of one layer and the next; 1 is off
    config.TRAIN.GRAD_CLIP = 0.0  # limit of the global norm; 0 is off
    config.TRAIN.ACCUM_ITER = 1  # batches per optimizer step
    config.TRAIN.AMP = ""  # float16, bfloat16 or empty for float32
    config.TRAIN.EMA_DECAY = 0.0  # 0 is off
    config.TRAIN.SYNC_BN = False  # BatchNorm normalizes by the batches of all ranks
    config.TRAIN.FREEZE = ()  # stem, stages.0, backbone, norm_eval, or other names: see common/layers/freezing.py
    config.TRAIN.SKIP_NONFINITE = 0  # consecutive steps with a NaN or infinite loss to skip before training stops
    config.TRAIN.EARLY_STOP = 0  # validations in a row without a better result after which training ends; 0 is off
    config.TRAIN.COOLDOWN = 0  # epochs or steps, as the length of the run, at a constant low rate after the schedule

    config.VALIDATE_EVERY = 1  # epochs or steps, as the length of the run, between two validations
    config.CHECKPOINT_EVERY = 1  # epochs or steps between two numbered checkpoints
    config.LATEST_EVERY = 0  # optimizer steps between two writes of latest.pdparams; 0: every epoch and validation
    config.KEEP_CHECKPOINTS = 3  # numbered checkpoints to keep
    config.LOG_INTERVAL = 50  # optimizer steps between two lines
    config.PICTURES = 4  # images of rank 0 that VisualDL shows, of a training batch and of the validation data
    config.HISTOGRAMS = False  # of all weights and gradients before each validation, for VisualDL
    config.OUTPUT = ""  # folder of the run; empty: output/ and the names of the file and of other data than the file's
    config.OVERWRITE = False  # replace another run in OUTPUT
    config.RESUME = ""  # a training state (latest.pdparams), or auto for that in OUTPUT if there is one
    config.EVAL = False  # only evaluate
    config.RECORD = ""  # CSV file to append the metrics of an evaluation to
    config.REPORT = ""  # folder for tables and pictures of what an evaluation gets wrong
    config.SEED = 0
    config.DEVICE = ""  # cpu, gpu, gpu:N, or empty for a GPU if there is one
    return config


# Keys of 0.1.0 with another name now, which files, -opts and the configurations of checkpoints may still have; and one
# of PaddleDetection's files.
_RENAMED = {
    "pretrain_weights": "MODEL.PRETRAINED",
    "VALIDATE_EPOCHS": "VALIDATE_EVERY",
    "VALIDATE_STEPS": "VALIDATE_EVERY",
    "SAVE_EPOCHS": "CHECKPOINT_EVERY",
    "KEEP_STEPS": "CHECKPOINT_EVERY",
    "SAVE_STEPS": "LATEST_EVERY",
}


@dataclass(frozen=True)
class Flag:
    """A command-line flag for one or more configuration keys.

    Attributes:
        keys: dotted keys that get the value.
        type: converts the text to the value; ``bool`` makes a switch.
        help: one line.
        group: heading of the help to list it under.
        metavar: stands for the value in the help.
        options: further arguments of argparse.
    """

    keys: tuple[str, ...]
    type: Callable[[str], Any]
    help: str
    group: str
    metavar: str | None = "N"
    options: Mapping[str, Any] = field(default_factory=dict)


_GROUPS = ("configuration", "data", "training", "weights and output", "instead of training")

_SHARED_FLAGS = {
    "accum_iter": Flag(("TRAIN.ACCUM_ITER",), int, "batches per optimizer step", "training"),
    "seed": Flag(("SEED",), int, "random seed", "training"),
    "pretrained": Flag(
        ("MODEL.PRETRAINED",),
        str,
        "weights to start from, or to evaluate: a file, https://...#sha256=..., or the tag of released weights",
        "weights and output",
        "WEIGHTS",
    ),
    "weights": Flag(
        ("MODEL.WEIGHTS",),
        str,
        "of a file with both: the trained weights or their average (default: model_ema)",
        "weights and output",
        None,
        {"choices": ("model", "model_ema")},
    ),
    "resume": Flag(
        ("RESUME",),
        str,
        "training state to resume from, or auto: the newest one in -output, if any",
        "weights and output",
        "FILE",
    ),
    "output": Flag(
        ("OUTPUT",),
        str,
        "folder of the run; by default output/NAME of -cfg, and -DATA if other data than that of -cfg is given",
        "weights and output",
        "FOLDER",
    ),
    "overwrite": Flag(("OVERWRITE",), bool, "replace another run in -output", "weights and output"),
    "device": Flag(("DEVICE",), str, "cpu, gpu or gpu:N (default: a GPU if there is one)", "training", "DEVICE"),
    "eval": Flag(("EVAL",), bool, "only evaluate -pretrained (or -resume)", "instead of training"),
    "report": Flag(
        ("REPORT",),
        str,
        "with -eval: write metrics of each class, confusions or precision-recall curves as CSV and pictures to FOLDER",
        "instead of training",
        "FOLDER",
    ),
    "amp": Flag(
        ("TRAIN.AMP",),
        str,
        "mixed precision, float16 by default; bfloat16 is better where the GPU has it",
        "training",
        None,
        {"nargs": "?", "const": "float16", "choices": ("float16", "bfloat16")},
    ),
}

# Files and devices of the run that trained weights; inside weights they are ignored.
_MACHINE_KEYS = {"MODEL.PRETRAINED", "MODEL.WEIGHTS", "OUTPUT", "RESUME", "RECORD", "REPORT", "DEVICE"}

# Keys that say what one command does; they are not part of a run.
_INVOCATION_KEYS = {"RESUME", "OVERWRITE", "EVAL", "RECORD", "REPORT"}

# Keys that a resumed run may change and still reach identical weights and scores; the trainer compares the last line's.
_FREE_KEYS = {
    *("BASE", "OUTPUT", "DEVICE", "LOG_INTERVAL", "PICTURES", "HISTOGRAMS", "DATA.NUM_WORKERS"),
    *("MODEL.PRETRAINED", "MODEL.WEIGHTS"),
    *("VALIDATE_EVERY", "CHECKPOINT_EVERY", "LATEST_EVERY", "KEEP_CHECKPOINTS", "TRAIN.EARLY_STOP"),
    *("TRAIN.ACCUM_ITER", "TRAIN.COOLDOWN", "SEED"),
}

# Last parts of the keys that may differ between machines: paths and their resources.
_LOCAL_NAMES = {
    *("BASE", "OUTPUT", "DEVICE", "NUM_WORKERS", "RECORD", "REPORT"),
    *("PRETRAINED", "pretrained", "DATA_PATH", "LABELS_JSON", "MAPS", "dataset_root", "dataset_dir"),
}


@dataclass(frozen=True)
class TaskConfig:
    """The configuration of a task.

    Attributes:
        default_file: the yaml file to use without ``-cfg``.
        defaults: builds the configuration with every key of the task.
        flags: the task's own flags.
        check: raises ``UserError`` for a value that no run can use.
        free_keys: keys, or whole sections, that may differ between a run and its continuation.
        invocation_keys: keys that say what one command does; they are not saved with a run.
        open_sections: sections of a toolkit: any keys and values, which are merged dict by dict.
        allowed: what the configuration inside weights may say, by dotted key or open section. Open sections that are
            not in it are refused; a key of the task that is not in it must be harmless with any value of its type.
        machine_keys: keys that name files; inside weights they are ignored.
        ignored_keys: keys of a toolkit's program, or of earlier versions, that have no effect, which a warning says.
        input_keys: keys that change what trained weights compute from an image, but do not show in their shapes.
        kind_keys: keys of the kinds of data.
        own_data: name of the configuration for own data, beside the default file.
    """

    default_file: Path
    defaults: Callable[[], CfgNode]
    flags: Mapping[str, Flag] = field(default_factory=dict)
    check: Callable[[CfgNode], None] = lambda config: None
    free_keys: frozenset[str] = frozenset()
    invocation_keys: frozenset[str] = frozenset()
    open_sections: Container[str] = frozenset()
    allowed: Mapping[str, Kind] = field(default_factory=dict)
    machine_keys: frozenset[str] = frozenset()
    ignored_keys: frozenset[str] = frozenset()
    input_keys: tuple[str, ...] = ()
    kind_keys: tuple[str, ...] = ()
    own_data: str = ""

    # ---- flags

    def add_flags(self, parser: ArgumentParser) -> None:
        """Add ``-cfg``, the flags that override the configuration, and ``-opts``.

        ``-h`` names the key that each flag sets, and its value in the default file.
        """
        defaults = self.load(argparse.Namespace(cfg=str(self.default_file), opts=[]))
        groups = {heading: parser.add_argument_group(heading) for heading in _GROUPS}
        parser.add_flag(
            "cfg",
            groups["configuration"],
            default=str(self.default_file),
            metavar="YAML",
            help=f"configuration file (default: {'/'.join(self.default_file.parts[-3:])})",
        )
        parser.add_opts(groups["configuration"])
        parser.add_verbosity(groups["weights and output"])
        for name, flag in self._all_flags().items():
            is_switch = flag.type is bool
            options = {"action": "store_true"} if is_switch else {"type": flag.type, "metavar": flag.metavar}
            value = find(defaults, flag.keys[0])
            has_default = not is_switch and flag.keys[0] not in self.invocation_keys and value not in (None, "")
            shown = f" = {value}".replace("%", "%%") if has_default else ""
            help_text = f"{flag.help} [{', '.join(flag.keys)}{shown}]"
            parser.add_flag(name, groups[flag.group], help=help_text, **options, **flag.options)

    def _all_flags(self) -> dict[str, Flag]:
        record = Flag(
            ("RECORD",),
            str,
            "with -eval: append the metrics to FILE, %(const)s by default",
            "instead of training",
            "FILE",
            {"nargs": "?", "const": str(results_file(self.default_file.parents[1].name))},
        )
        return {**self.flags, **_SHARED_FLAGS, "record": record}

    # ---- reading

    def load(self, arguments: argparse.Namespace) -> CfgNode:
        """Merge defaults, files, flags and ``-opts``, check the values, and freeze the result.

        Raises:
            UserError: a file is missing or is not yaml, a key is unknown, or a value is of a wrong type or impossible.
        """
        files = list(read_yaml_with_bases(Path(arguments.cfg)))
        config = self._merged(files)
        data = self._data(config)
        self._override(config, arguments)
        if not config.OUTPUT:
            path = expand_home(Path(arguments.cfg)).resolve().with_suffix("")
            configs = self.default_file.parent.resolve()
            path = path.relative_to(configs) if path.is_relative_to(configs) else Path(path.name)
            other = [name for name in self._data(config) if name not in data]
            config.OUTPUT = "-".join([f"output/{path.as_posix()}", *other])
        config = self._finish(config)
        kind = next((kind for key in self.kind_keys if (kind := find(config, key)) in _DEMO_DATA), None)
        if kind and getattr(arguments, "data_path", None):  # own data, the configuration of which was forgotten
            raise UserError(
                f"the data set {kind} is demo data and takes no -data_path; for your own data in {arguments.data_path} "
                f"give -cfg {'/'.join(self.default_file.with_name(self.own_data).parts[-3:])}"
            )
        if not (getattr(arguments, "output", None) or "OUTPUT" in arguments.opts):
            _refuse_copied_run(config, files)
        return config

    def changes(self, config: CfgNode, file: str) -> list[str]:
        """``KEY VALUE (was VALUE)`` for each value of a configuration that is not that of its file."""
        own = expand_home(self._merged(read_yaml_with_bases(Path(file))))
        values = {key: (find(own, key), find(config, key)) for key in sorted({*keys_of(own), *keys_of(config)})}
        return [
            f"{key} {_shown(new)} (was {_shown(old)})"
            for key, (old, new) in values.items()
            if old != new and key not in _INVOCATION_KEYS | {"OUTPUT"}
        ]

    def _merged(self, files: Iterable[tuple[dict[str, Any], str]]) -> CfgNode:
        """The defaults, and over them the values of a file and its bases."""
        config = self.defaults()
        for values, source in files:
            self._merge(config, values, source)
        return config

    def _data(self, config: CfgNode) -> list[str]:
        """The names of the data: its kind and its folder, so far as the configuration has them."""
        flags = [self.flags[name] for name in ("dataset", "data_path") if name in self.flags]
        values = [find(config, flag.keys[0]) for flag in flags]
        return [Path(os.path.realpath(expand_home(str(value)))).name for value in values if value]

    def of_weights(self, text: str | None, source: str, arguments: argparse.Namespace) -> CfgNode:
        """The configuration of ``-cfg`` or else the one saved with the weights; flags and ``-opts`` override it.

        The one saved with the weights may be anybody's, and is refused if it says more than :attr:`allowed`. Warnings
        name the values that :meth:`input_warnings` finds.

        Args:
            text: the configuration saved with the weights, as yaml.
            source: where it comes from, for messages.
            arguments: those of :func:`add_weights_flags`, and any of the task's flags.

        Raises:
            UserError: there is no configuration, or as for :meth:`load`.
        """
        if arguments.cfg:
            config = self.load(arguments)
        elif text is None:
            raise UserError(f"{source} contains no configuration; give it with -cfg")
        else:
            config = self._parse(text, source)
            self._check_allowed(config, source)
            self._override(config, arguments)
            config = self._finish(config)
        for line in self.input_warnings(text, source, config):
            print(printable(f"warning: {line}"), file=sys.stderr)
        return config

    def input_warnings(self, text: str | None, source: str, now: CfgNode) -> list[str]:
        """Name the :attr:`input_keys` whose values were others when the weights were trained.

        Args:
            text: the configuration saved with the weights, as yaml; None if there is none.
            source: where it comes from.
            now: the configuration that the weights are used with.
        """
        if text is None:
            return []
        try:
            then = self.from_text(text, source)
        except UserError:  # of another version, or another task
            return []
        return [
            f"{source} was trained with {key} {_shown(find(then, key)):.200}, not {_shown(find(now, key)):.200}; give "
            "the -cfg and -opts of the training, unless this is intended"
            for key in self.input_keys
            if (find(then, key) or None) != (find(now, key) or None)  # a toolkit's key that is off may be left out
        ]

    def from_text(self, text: str, source: str) -> CfgNode:
        """The configuration saved in a training state, to be compared: nothing may be built from it.

        Raises:
            UserError: as for :meth:`load`.
        """
        return self._finish(self._parse(text, source))

    def _parse(self, text: str, source: str) -> CfgNode:
        config = self.defaults()
        self._merge(config, read_yaml(text, f"the configuration of {source}"), source)
        return config

    def _check_allowed(self, config: CfgNode, source: str) -> None:
        """Refuse what a configuration inside weights may not say, and ignore its files."""
        defaults = self.defaults()
        try:
            for key in [*self.allowed, *(name for name in config if name in self.open_sections)]:
                if key not in self.allowed:
                    raise NotAllowedError(f"{key!r:.80} is not on the list of what weights may configure")
                if (value := find(config, key)) is not None:
                    self.allowed[key](value, key)
        except NotAllowedError as error:
            raise UserError(
                f"the configuration of {source} is refused: {error}. If you trust it, give the configuration with -cfg"
            ) from error
        for key in _MACHINE_KEYS | self.machine_keys:
            above, _, name = key.rpartition(".")
            (find(config, above) if above else config)[name] = find(defaults, key)

    def _override(self, config: CfgNode, arguments: argparse.Namespace) -> None:
        """Apply flags and ``-opts``."""
        for name, flag in self._all_flags().items():
            value = getattr(arguments, name, None)
            if value is not None and value is not False:
                for key in flag.keys:
                    self._set(config, key, value, f"-{name}")
        self._set_options(config, arguments.opts)

    def _finish(self, config: CfgNode) -> CfgNode:
        """Check the values, and freeze the result."""
        expand_home(config)
        _check_shared(config)
        self.check(config)
        config.freeze()
        return config

    def _set_options(self, config: CfgNode, options: Sequence[str]) -> None:
        if len(options) % 2:
            raise UserError(f"-opts takes pairs of KEY VALUE; {options[-1]!r} has no value")
        for key, text in zip(options[::2], options[1::2], strict=True):
            self._set(config, key, parse(text), "-opts")

    def _merge(self, config: CfgNode, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        """Merge a nested mapping."""
        if not prefix:
            _refuse_twice(values, source)
        for name, task in TASKS.items() if not prefix else ():
            if task.own_key in values and task.own_key not in config:
                raise UserError(f"{source} has a configuration of {name}; give one of this task")
        if ignored := [name for name in values if not prefix and name in self.ignored_keys]:
            from ..runtime.distributed import is_main_process  # imports Paddle

            if is_main_process():
                _warn_once(f"{source}: ignored, since this project has other keys for it: {', '.join(ignored)}")
        for name, value in values.items():
            if name in ignored:
                continue
            key = f"{prefix}{name}"
            if isinstance(value, dict) and isinstance(find(config, key), CfgNode) and key not in self.open_sections:
                self._merge(config, value, source, f"{key}.")
            else:
                self._set(config, key, value, source)

    def _set(self, config: CfgNode, key: str, value: Any, source: str) -> None:
        """Set a dotted key to a value of the type of its default."""
        section, _, rest = key.partition(".")
        if section in self.open_sections:
            if rest:
                set_open(config, key, value, source)
            elif isinstance(value, dict):
                config[section] = merge_open(config.get(section, {}), value)
            else:
                raise UserError(f"{source}: {key} is {value!r}; it must be a section with keys and values")
            return
        key = _RENAMED.get(key, key)
        default = find(self.defaults(), key)
        if default is None:
            raise UserError(f"{source}: unknown key {key}{similar(config, key)}")
        above, _, name = key.rpartition(".")
        node = find(config, above) if above else config
        node[name] = coerce(value, default, key, source)

    # ---- the configuration of a run

    def dump(self, config: CfgNode) -> str:
        """The configuration of a run as yaml, for its folder and its checkpoints."""
        saved = config.clone()
        saved.defrost()
        for key in _INVOCATION_KEYS | self.invocation_keys:
            above, _, name = key.rpartition(".")
            del (find(saved, above) if above else saved)[name]
        return saved.dump()

    def values_of_all_ranks(self, config: CfgNode) -> dict[str, str]:
        """The values that must be equal on all ranks, by dotted key: all but paths, devices and reader processes."""
        return {key: repr(find(config, key)) for key in keys_of(config) if key.rpartition(".")[2] not in _LOCAL_NAMES}

    def differences(self, then: CfgNode, now: CfgNode) -> list[str]:
        """``KEY was VALUE, is VALUE`` for each differing key that influences the weights, or how they are evaluated."""
        free = _FREE_KEYS | self.free_keys | _INVOCATION_KEYS | self.invocation_keys
        return [
            f"{key} was {find(then, key)}, is {find(now, key)}"
            for key in sorted({*keys_of(now), *keys_of(then)})
            if not {key, key.partition(".")[0]} & free and find(then, key) != find(now, key)
        ]


def _refuse_twice(values: Mapping[str, Any], source: str) -> None:
    """Refuse a file that sets a key in two ways: nested and with dots, or by its old and its new name."""
    seen: dict[str, str] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            written = f"{prefix}{name}"
            if isinstance(value, dict):
                visit(value, f"{written}.")
                continue
            key = _RENAMED.get(written, written)
            if key in seen:
                what = f"{key} twice" if seen[key] == written else f"both {seen[key]} and {written}, which are one"
                raise UserError(f"{source} sets {what}; remove one")
            seen[key] = written

    visit(values, "")


def _refuse_copied_run(config: CfgNode, files: Iterable[tuple[dict[str, Any], str]]) -> None:
    """Refuse to replace or to continue the run that the configuration of its copy names."""
    named = [Path(source) for values, source in files if values.get("OUTPUT")]  # the last one counts
    would_replace = config.OVERWRITE and not config.EVAL and Path(config.OUTPUT).exists()
    if named and (would_replace or config.RESUME == "auto"):
        run = named[-1].parent
        if (run / "log.jsonl").exists() and os.path.realpath(run) != os.path.realpath(config.OUTPUT):
            raise UserError(
                f"{'-overwrite' if config.OVERWRITE else '-resume auto'} would take {config.OUTPUT}, which "
                f"{named[-1]} names, and not the run beside this file, which was copied or moved; give -output"
            )


def add_weights_flags(parser: ArgumentParser, required: bool = True) -> argparse._ArgumentGroup:
    """Add the flags of a program that uses trained weights: ``-pretrained``, ``-weights``, ``-class_names``, ``-cfg``,
    ``-device`` and ``-opts``.

    :meth:`TaskConfig.of_weights` turns them into a configuration.

    Returns:
        Their group.
    """
    tags = ", ".join(list_tags()).replace("%", "%%")  # argparse formats the help
    sources = f"weights: a file, https://...#sha256=..., or the tag of released weights ({tags})"
    group = parser.add_argument_group("model")
    parser.add_flag("pretrained", group, required=required, metavar="WEIGHTS", help=sources)
    weights = _SHARED_FLAGS["weights"]
    parser.add_flag("weights", group, default="", help=weights.help, **weights.options)
    names = "names of the classes, one per line, for weights that have none, such as those of the toolkits"
    parser.add_flag("class_names", group, type=Path, metavar="FILE", help=names)
    parser.add_flag("cfg", group, metavar="YAML", help="configuration of the weights (default: the one saved in them)")
    parser.add_flag("device", group, help=_SHARED_FLAGS["device"].help)
    parser.add_opts(group)
    parser.add_verbosity(group)
    return group


@functools.cache
def _warn_once(line: str) -> None:
    """Print a warning about a -cfg file once: it is read again to tell what differs from it."""
    print(printable(f"warning: {line}"), file=sys.stderr)


def _shown(value: Any) -> str:
    return "nothing" if value in ("", None) else str(plain(value))


# ---- checks


def require(config: CfgNode, keys: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Raise ``UserError`` if a condition does not hold for one of the keys (dotted, separated by blanks).

    Args:
        rule: what the value must be, for the message.
    """
    for key in keys.split():
        value = find(config, key)
        if not holds(value):
            raise UserError(f"{key} is {value!r}; it {rule}")


def check_sizes(section: Any, name: str) -> None:
    """Refuse transforms to more than ``MAX_SIDE`` pixels: a slip of the keyboard would fill the memory.

    Args:
        section: values at any depth, of which those under keys that end in ``size`` are sizes, but ``max_size`` is not.
        name: of the section.

    Raises:
        UserError: a size is too large.
    """
    for key, value in section.items() if isinstance(section, Mapping) else enumerate(section):
        where = f"{name}.{key}"
        if isinstance(value, Mapping | list | tuple):
            check_sizes(value, where)
        elif isinstance(value, int) and value > MAX_SIDE and re.search(r"(?<!max_)size(\.\d+)*$", where):
            raise UserError(f"{where} is {value}; it must be at most {MAX_SIDE} pixels")


def check_keys(section: Mapping[str, Any], known: Iterable[str], name: str) -> None:
    """Raise ``UserError`` if an open section, called ``name``, has an unknown key."""
    known = list(dict.fromkeys(known))
    for key in section:
        if key not in known:
            raise UserError(f"{name} has the unknown key {key}; choose from {', '.join(known)}")


def _check_shared(config: CfgNode) -> None:
    positive = "TRAIN.ACCUM_ITER TRAIN.LAYER_DECAY LOG_INTERVAL VALIDATE_EVERY CHECKPOINT_EVERY"
    require(config, positive, lambda value: value > 0, "must be greater than 0")
    require(config, "TRAIN.LAYER_DECAY", lambda value: value <= 1, "must not be greater than 1")
    not_negative = (
        "DATA.NUM_WORKERS TRAIN.GRAD_CLIP KEEP_CHECKPOINTS LATEST_EVERY TRAIN.SKIP_NONFINITE TRAIN.EARLY_STOP "
        "TRAIN.COOLDOWN SEED PICTURES"
    )
    require(config, not_negative, lambda value: value >= 0, "must not be negative")
    require(config, "DATA.NUM_WORKERS", lambda value: value <= 1024, "must be at most 1024")
    require(config, "TRAIN.EMA_DECAY", lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
    require(config, "TRAIN.AMP", lambda value: value in ("", "float16", "bfloat16"), "must be float16, bfloat16 or ''")
    require(config, "MODEL.WEIGHTS", lambda value: value in WEIGHTS, "must be model, model_ema or ''")
    if config.MODEL.WEIGHTS and not (config.MODEL.PRETRAINED or (config.EVAL and config.RESUME)):
        raise UserError(
            f"-weights {config.MODEL.WEIGHTS} chooses among the weights of a file; it needs -pretrained FILE"
        )
    require(config, "SEED", lambda value: value < 2**32, "must be less than 2**32, which libraries take")
    if config.RECORD and not config.EVAL:
        raise UserError("-record writes the metrics of an evaluation; it needs -eval")
    if config.REPORT and not config.EVAL:
        raise UserError("-report writes the errors of an evaluation; it needs -eval")
