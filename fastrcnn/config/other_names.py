"""Names that other programs use for keys, to suggest the corresponding key of this program."""

from __future__ import annotations

from collections.abc import Collection

# Our key -> its names in other programs, without leading dashes.
OTHER_NAMES = {
    "solver.iterations": "epochs epoch num_epochs n_epochs max_epochs max_iter max_iters iters steps max_steps",
    "solver.images_per_batch": "batch batch_size batchsize bs ims_per_batch",
    "data.short_sides": "imgsz img_size image_size imgsize img size input_size min_size resolution",
    "solver.lr": "lr0 learning_rate base_lr",
    "solver.patience": "early_stopping early_stop",
    "solver.weight_decay": "wd",
    "solver.optimizer": "optim",
    "checkpoint": "weights ckpt model_path model_file",
    "model.weights": "pretrained pretrain",
    "draw_threshold": "conf conf_thres conf_thresh confidence score_thresh thresh",
    "detection.score_threshold": "conf conf_thres conf_thresh confidence score_thresh thresh",
    "detection.nms_iou": "iou iou_thres iou_thresh nms nms_thresh",
    "detection.max_per_image": "max_det",
    "source": "input image images",
    "output": "save_dir output_dir out project",
    "name": "exp exp_name experiment_name project",
    "data.root": "dataset data_dir data_path dataroot",
    "data.classes": "nc num_classes",
    "data.flip": "fliplr hflip",
    "data.flip_vertical": "flipud vflip",
    "start": "load_from finetune",
    "resume": "resume_from",
    "runtime.device": "gpu gpus cuda",
    "runtime.workers": "num_workers",
    "runtime.precision": "amp half fp16 bf16 mixed_precision",
    "runtime.cache": "cache_images",
    "runtime.evaluate_every": "val_interval eval_interval eval_every eval_period",
    "runtime.checkpoint_every": "save_period save_every save_interval",
}
REMARKS = {
    "solver.iterations": "An epoch of N images has N / solver.images_per_batch steps",
    "data.short_sides": "For evaluation and detection, set data.test_short_sides",
}


def our_name(name: str, known: Collection[str]) -> str | None:
    """Return the key in `known` that other programs call `name` (such as `--batch-size`), or None."""
    plain = name.lstrip("-").replace("-", "_").casefold()
    return next((ours for ours, others in OTHER_NAMES.items() if ours in known and plain in others.split()), None)
