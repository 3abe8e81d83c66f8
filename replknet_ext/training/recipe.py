"""What a recipe says: typed, validated objects. pydantic checks the values; `read` does files, names and `--set`.

Every default is the published training code's (github.com/DingXiaoH/RepLKNet-pytorch, main.py).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Augment",
    "Checkpoints",
    "Data",
    "Ema",
    "Engine",
    "Logs",
    "Model",
    "Optimizer",
    "Recipe",
    "Schedule",
]

Share = Field(ge=0, le=1)


class Part(BaseModel):
    """Unknown keys are errors, and an assignment is checked as the constructor's arguments are."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class Model(Part):
    """The network.

    Attributes:
        name: of `replknet_ext.get_model`, "replknet" with `arch`, or "timm/NAME" for any model of timm.
        arch: fields of `RepLKNetConfig`, for `name: replknet`.
        num_classes: outputs; None for as many as the data has classes.
        in_chans: channels of the images, 1 or 3.
        drop_path_rate: stochastic depth of the last block.
        weights: what training starts from: a checkpoint in any format or the name of a published one; None for random.
        fine_tunes: words for the weights that the recipe is for; it does not start without `weights` then.
        frozen_stages: see `RepLKNet.freeze_stages`.
        norm_eval: BatchNorms keep their running statistics.
        sync_bn: BatchNorms share their statistics over all processes.
        gradient_checkpointing: recompute blocks in the backward pass.
        replace_depthwise: smallest kernel size that `replknet_ext.replace_depthwise` replaces in a timm model; None
            to leave the model alone.
    """

    name: str = "replknet_31b"
    arch: dict[str, Any] | None = None
    num_classes: int | None = Field(default=None, ge=1)
    in_chans: Literal[1, 3] = 3
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)
    weights: str | None = None
    fine_tunes: str | None = None
    frozen_stages: int = Field(default=-1, ge=-1)
    norm_eval: bool = False
    sync_bn: bool = True
    gradient_checkpointing: bool = False
    replace_depthwise: int | None = Field(default=7, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if (self.name == "replknet") != (self.arch is not None):
            raise ValueError("arch belongs to name: replknet, and that needs it")
        return self


class Data(Part):
    """Images and how they are read.

    Attributes:
        path: folder; None for what the command or `train` is given.
        dataset: "" for a folder of splits, or timm's name of a data set, such as "hfds/NAME" or "torch/NAME".
        train_split, val_split: names of the splits. In a folder, SPLIT is a folder of one folder per class, a file
            SPLIT.tar of those, or WebDataset shards SPLIT-*.tar or SPLIT/*.tar, also by a pattern that ends in .tar.
        num_train: images of the train split, for a dry run without data.
        input_size: side of the square input.
        mean, std: of each channel, for values in [0, 1].
        crop: evaluate on the centre crop (`input_size` / 0.875); False warps the whole picture; None for the
            published rule: warp from 384 pixels on, and up to 32.
        batch_size: most images of one forward pass on one process; accumulation makes up the global batch.
        eval_batch_size: of each process.
        workers: processes that read images, for each training process.
        broken_images: "stop", or "skip": another image takes the place, and the file is named.
    """

    path: str | None = None
    dataset: str = ""
    train_split: str = "train"
    val_split: str | None = "val"
    num_train: int | None = Field(default=None, ge=1)
    input_size: int = Field(default=224, ge=1)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: bool | None = None
    batch_size: int = Field(default=64, ge=1)
    eval_batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=8, ge=0)
    broken_images: Literal["stop", "skip"] = "stop"


class Augment(Part):
    """Changes to training images and labels, by timm.

    Attributes:
        rand_augment: timm's string; None for none.
        color_jitter: only without rand_augment, as in timm.
        scale, ratio: area and aspect ratio of the random crop.
        hflip, vflip: probabilities.
        erasing, erasing_mode, erasing_count: random erasing.
        mixup, cutmix: their alpha; 0 for none.
        mix_prob, mix_switch: probability of either, and of cutmix where both are on.
        label_smoothing: in training.
    """

    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = Field(default=0.4, ge=0)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = Field(default=0.5, ge=0, le=1)
    vflip: float = Field(default=0.0, ge=0, le=1)
    erasing: float = Field(default=0.25, ge=0, le=1)
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    erasing_count: int = Field(default=1, ge=1)
    mixup: float = Field(default=0.8, ge=0)
    cutmix: float = Field(default=1.0, ge=0)
    mix_prob: float = Field(default=1.0, ge=0, le=1)
    mix_switch: float = Field(default=0.5, ge=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class Optimizer(Part):
    """The optimizer, by timm.

    Attributes:
        name: of timm's `create_optimizer_v2`.
        lr: at `global_batch` images per step.
        scale_lr: when `global_batch` is set to another number than the recipe's own, multiply lr by their ratio.
        global_batch: images of one step over all processes and accumulated passes.
        weight_decay: 0 for one-dimensional parameters and biases in any case.
        eps, betas: of Adam and its kin; None leaves timm's default.
        momentum: of SGD.
        layer_decay: learning rate of a group relative to the next deeper one; None for one rate.
        clip_grad: largest norm of the gradient; None for no clipping.
    """

    name: str = "adamw"
    lr: float = Field(default=4e-3, gt=0)
    scale_lr: bool = False
    global_batch: int = Field(default=2048, ge=1)
    weight_decay: float = Field(default=0.05, ge=0)
    eps: float | None = Field(default=1e-8, gt=0)
    betas: tuple[float, float] | None = None
    momentum: float = Field(default=0.9, ge=0, lt=1)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    clip_grad: float | None = Field(default=None, gt=0)


class Schedule(Part):
    """Linear warm-up, then a cosine, step by step."""

    epochs: int = Field(default=300, ge=1)
    warmup_epochs: float = Field(default=10, ge=0)
    warmup_lr: float = Field(default=0.0, ge=0)
    min_lr: float = Field(default=1e-6, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs, {self.epochs}; got {self.warmup_epochs:g}")
        return self


class Ema(Part):
    """Averaged weights, by timm. `warmup`: a shorter average at first, for runs of few steps."""

    enabled: bool = True
    decay: float = Field(default=0.9999, ge=0, lt=1)
    warmup: bool = False


class Engine(Part):
    """How it is computed.

    Attributes:
        device: "auto" or "cpu".
        amp: autocast to bf16 or fp16 (with a gradient scaler); "no" for float32.
        strategy: "ddp", or "fsdp" to split parameters, gradients and optimizer states over the processes.
        channels_last: memory format of images and network.
        compile: backend of torch.compile, such as "inductor"; None for none.
        deterministic: the same bits on every run on the same machine and number of processes.
        seed: of weights, order of images, augmentation and drop path.
    """

    device: Literal["auto", "cpu"] = "auto"
    amp: Literal["no", "bf16", "fp16"] = "no"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    channels_last: bool = False
    compile: str | None = None
    deterministic: bool = False
    seed: int = Field(default=0, ge=0)


class Checkpoints(Part):
    """`last` comes after each epoch and `every_steps`, numbered ones every `every` epochs; `keep` of them stay."""

    every: int = Field(default=10, ge=0)
    every_steps: int = Field(default=0, ge=0)
    keep: int = Field(default=3, ge=1)


class Logs(Part):
    """`trackers`: of accelerate, such as tensorboard and wandb. `every`: steps between two lines of log.jsonl."""

    trackers: tuple[str, ...] = ("tensorboard",)
    project: str = "replknet_ext"
    every: int = Field(default=50, ge=1)


class Recipe(Part):
    """A training run, completely.

    Attributes:
        name: by which the command line knows it.
        about: one line for `replknet-ext recipes`.
        evaluate: after each epoch, on the split `data.val_split`.
    """

    name: str
    about: str = ""
    evaluate: bool = True
    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    engine: Engine = Engine()
    checkpoints: Checkpoints = Checkpoints()
    logs: Logs = Logs()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for key in ("mean", "std"):
            if len(getattr(self.data, key)) != self.model.in_chans:
                raise ValueError(f"data.{key} needs one value for each of model.in_chans={self.model.in_chans}")
        if self.augment.mixes and self.optimizer.global_batch % 2:
            raise ValueError("mixup and cutmix mix pairs: optimizer.global_batch must be even")
        if self.augment.mixes and self.data.batch_size < 2:
            raise ValueError("mixup and cutmix mix pairs: data.batch_size must be at least 2")
        return self
