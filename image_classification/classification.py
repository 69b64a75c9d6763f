"""Training and evaluation of one configuration: puts data, model, loss and trainer together."""

from __future__ import annotations

import functools
import shlex
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from yacs.config import CfgNode

from common.checkpoint import CheckpointFolder, load_pretrained, read_checkpoint
from common.distributed import gather_rows, is_main_process, world_size
from common.entry_point import select_device
from common.errors import UserError
from common.flops import params
from common.optimizer import build_adamw, warmup_cosine
from common.trainer import StepResult, Trainer, TrainSettings
from common.training_log import TrainingLog
from common.weights import resolve_weights
from image_classification.config import config_from_text, default_config, differences
from image_classification.datasets import Dataset, build_dataset
from image_classification.evaluation import evaluate
from image_classification.loaders import build_eval_loader, build_train_loader, check_batch
from image_classification.mixup import mixup_or_cutmix
from image_classification.pale_backbone import build_model

__all__ = ["Classification"]


class Classification:
    """One run of the launcher.

    Args:
        config: the frozen configuration.
    """

    def __init__(self, config: CfgNode):
        self.config = config
        self.device = select_device(config.DEVICE)
        paddle.seed(config.SEED)

    def train(self) -> dict[str, float]:
        """Train, evaluating on the way; return the figures of the best weights."""
        config = self.config
        train_set, val_set = self._dataset("train"), self._dataset("val")
        num_classes = config.MODEL.NUM_CLASSES or train_set.num_classes
        train_loader, sampler = build_train_loader(config, train_set)
        val_loader = build_eval_loader(config, val_set)
        model = build_model(config, num_classes)
        self._compare_ranks(len(train_set), len(val_set), sampler.num_batches, num_classes)
        output = Path(config.OUTPUT)
        checkpoints = CheckpointFolder(output, config.KEEP_CHECKPOINTS)
        log = TrainingLog(output)
        resumed = self._find_state(checkpoints, log)
        report = None
        if config.MODEL.PRETRAINED and not resumed:
            source = resolve_weights(config.MODEL.NAME, config.MODEL.PRETRAINED)
            report = load_pretrained(model, source, verbose=False)
        self._print_head(log, model)
        log.line(f"data: {len(train_set)} training and {len(val_set)} validation images of {num_classes} classes")
        if report:
            log.line(str(report))
        checkpoints.clean()
        if is_main_process():
            (output / "config.yaml").write_text(config.dump(), encoding="utf-8")

        steps_per_epoch = sampler.num_batches // config.TRAIN.ACCUM_ITER
        learning_rate = self._learning_rate(steps_per_epoch)
        trainer = Trainer(
            model=model,
            loss_function=functools.partial(self._loss, num_classes=num_classes),
            loader=train_loader,
            sampler=sampler,
            optimizer=build_adamw(
                model, config.TRAIN.BASE_LR, config.TRAIN.WEIGHT_DECAY, config.TRAIN.BETAS, config.TRAIN.LAYER_DECAY
            ),
            learning_rate=learning_rate,
            evaluate=functools.partial(
                evaluate, loader=val_loader, amp=config.TRAIN.AMP, skip_broken=config.DATA.SKIP_BROKEN
            ),
            criterion="top1",
            settings=self._settings(),
            log=log,
            checkpoints=checkpoints,
            metadata={"config": config.dump(), "class_names": train_set.class_names},
        )
        if resumed:
            self._resume(trainer, log, *resumed)
        log.rewind(trainer.step if resumed else -1)
        best = trainer.run() if trainer.epoch < config.TRAIN.EPOCHS else trainer.best
        self._print_next_commands(log, trainer.checkpoints, best)
        log.close()
        return best

    def _compare_ranks(self, *figures: int) -> None:
        """Stop where machines were given different data or settings, before they wait for each other for ever."""
        train = self.config.TRAIN
        settings = zlib.crc32("".join(differences(default_config(), self.config)).encode())
        rows = gather_rows([*figures, train.EPOCHS, train.ACCUM_ITER, self.config.SEED, settings])
        for other in range(world_size()):
            if (rows[other] != rows[0]).any():
                raise UserError(
                    f"rank {other} was started unlike rank 0 (training and validation images, batches, classes, "
                    f"epochs, accumulation, seed, other settings): {rows[other].astype(int).tolist()}, not "
                    f"{rows[0].astype(int).tolist()}; start all machines alike"
                )

    def _find_state(self, checkpoints: CheckpointFolder, log: TrainingLog) -> tuple[Path | str, dict[str, Any]] | None:
        """The training state that ``RESUME`` means, with its source."""
        source = self.config.RESUME
        if not source:
            if checkpoints.latest.exists():
                log.line(f"replacing the run in {checkpoints.folder}; -resume auto would have gone on with it")
            return None
        found = checkpoints.find_latest(log.line) if source == "auto" else (source, read_checkpoint(source))
        if not found:
            log.line(f"no training state in {checkpoints.folder}: starting anew")
        steps = gather_rows([found[1].get("step", 0) if found else -1])[:, 0]
        if steps.min() != steps.max():
            raise UserError(
                f"the ranks find different training states (of steps {steps.astype(int).tolist()}, -1 for none); put "
                f"{checkpoints.folder} on a disk that all machines share, or copy {checkpoints.latest.name} to each"
            )
        return found

    def _resume(self, trainer: Trainer, log: TrainingLog, source: Path | str, state: dict[str, Any]) -> None:
        last_epoch = self.config.TRAIN.LAST_EPOCH
        inexact = trainer.resume(state, str(source), last_epoch if last_epoch >= 0 else None)
        if isinstance(state.get("config"), str):
            inexact += differences(config_from_text(state["config"], str(source)), self.config)
        log.line(f"resuming {source} after epoch {trainer.epoch}, step {trainer.step}")
        for reason in inexact:
            log.line(f"  differs from the run that was interrupted: {reason}")
        if trainer.epoch >= self.config.TRAIN.EPOCHS:
            log.line(f"all {trainer.epoch} epochs are done; raise TRAIN.EPOCHS to train on")

    def evaluate(self) -> dict[str, float]:
        """Evaluate ``MODEL.PRETRAINED`` (or ``RESUME``) on the validation set."""
        config = self.config
        source = config.MODEL.PRETRAINED or config.RESUME
        if source in ("", "auto"):
            raise UserError("-eval needs the weights to evaluate; give -pretrained FILE.pdparams")
        val_set = self._dataset("val")
        loader = build_eval_loader(config, val_set)
        model = build_model(config, config.MODEL.NUM_CLASSES or val_set.num_classes)
        load_pretrained(model, resolve_weights(config.MODEL.NAME, source), replace_head=False, verbose=False)
        log = TrainingLog(None)
        self._print_head(log, model)
        figures = evaluate(model, loader, config.TRAIN.AMP, config.DATA.SKIP_BROKEN)
        log.line(f"{source}: " + "  ".join(f"{key} {value:.6g}" for key, value in figures.items()))
        return figures

    def _dataset(self, split: str) -> Dataset:
        data = self.config.DATA
        return build_dataset(data.DATASET, data.DATA_PATH or None, split, self.config.MODEL.NUM_CLASSES or None)

    def _loss(self, model: nn.Layer, batch: dict[str, Any], rng: np.random.Generator, num_classes: int) -> StepResult:
        aug = self.config.AUG
        skipped = check_batch(batch, self.config.DATA.SKIP_BROKEN, training=True)
        images, targets = mixup_or_cutmix(
            batch["images"],
            batch["labels"],
            num_classes,
            rng,
            aug.MIXUP,
            aug.CUTMIX,
            aug.MIX_PROB,
            aug.MIX_SWITCH_PROB,
            aug.LABEL_SMOOTHING,
        )
        logits = model(images).astype("float32")
        loss = F.cross_entropy(logits, targets, soft_label=True)
        return StepResult(loss, len(images), (logits.argmax(-1) == batch["labels"]).sum(), len(skipped))

    def _learning_rate(self, steps_per_epoch: int):
        train = self.config.TRAIN
        global_batch = self.config.DATA.BATCH_SIZE * world_size() * train.ACCUM_ITER
        scale = global_batch / train.LINEAR_SCALED_LR if train.LINEAR_SCALED_LR else 1.0
        return functools.partial(
            warmup_cosine,
            total_steps=steps_per_epoch * train.EPOCHS,
            warmup_steps=round(steps_per_epoch * train.WARMUP_EPOCHS),
            base_lr=train.BASE_LR * scale,
            warmup_lr=train.WARMUP_LR * scale,
            end_lr=train.END_LR * scale,
        )

    def _settings(self) -> TrainSettings:
        config = self.config
        return TrainSettings(
            epochs=config.TRAIN.EPOCHS,
            accum_iter=config.TRAIN.ACCUM_ITER,
            grad_clip=config.TRAIN.GRAD_CLIP,
            amp=config.TRAIN.AMP,
            ema_decay=config.TRAIN.EMA_DECAY,
            seed=config.SEED,
            log_interval=config.LOG_INTERVAL,
            validate_epochs=config.VALIDATE_EPOCHS,
            save_epochs=config.SAVE_EPOCHS,
            save_steps=config.SAVE_STEPS,
            skip_nonfinite=config.TRAIN.SKIP_NONFINITE,
        )

    def _print_head(self, log: TrainingLog, model: nn.Layer) -> None:
        log.line(self.config.dump())
        log.line(
            f"{self.config.MODEL.NAME}: {params(model) / 1e6:.2f}M parameters on {self.device}, "
            f"{world_size()} rank(s), Paddle {paddle.__version__}"
        )
        if self.config.TRAIN.AMP and self.device == "cpu":
            log.line("mixed precision has no effect on CPUs: everything is computed in float32")

    def _print_next_commands(self, log: TrainingLog, checkpoints: CheckpointFolder, best: dict[str, float]) -> None:
        config_file, best_file, latest_file = (
            shlex.quote(str(path))
            for path in (checkpoints.folder / "config.yaml", checkpoints.best, checkpoints.latest)
        )
        launcher = f"python -m paddle.distributed.launch image_classification/main_multi_gpu.py -cfg {config_file}"
        log.line(f"best: top-1 {best['top1']:.2f} % after epoch {best['epoch']} ({best['weights']})")
        log.line(f"evaluate:  {launcher} -eval -pretrained {best_file}")
        log.line(f"predict:   python tools/predict.py IMAGE... -cfg {config_file} -pretrained {best_file}")
        log.line(f"resume:    {launcher} -resume {latest_file} -opts TRAIN.EPOCHS {2 * self.config.TRAIN.EPOCHS}")
