"""Train a small nnU-Net with nnU-Net's own planner, preprocessing and trainer.

``train_nnunet.py RAW OUT CONFIGURATION [FOLDS]``: RAW is a folder of `pneumoscope data convert --to nnunet`. Only sizes
are changed: patch, features, iterations. The result lies in OUT/nnunet/results, as `nnUNetv2_train` leaves it.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def main(raw: Path, out: Path, configuration: str, folds: int = 1) -> Path:
    work = out / "nnunet"
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    shutil.copytree(raw, work / "raw" / "Dataset001_phantom")

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    plans_file = work / "preprocessed" / "Dataset001_phantom" / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plan = plans["configurations"][configuration]
    axes = len(plan["patch_size"])
    plan["patch_size"] = [32, 32] if axes == 2 else [8, 32, 32]
    plan["batch_size"] = 4
    kernels, strides = [[3] * axes] * 3, [[1] * axes, [2] * axes, [2] * axes]
    plan["architecture"]["arch_kwargs"] |= {
        "n_stages": 3, "features_per_stage": [8, 16, 16], "kernel_sizes": kernels, "strides": strides,
        "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1],
    }  # fmt: skip
    plans_file.write_text(json.dumps(plans))
    preprocess([1], "nnUNetPlans", (configuration,), (1,))
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no worker processes while training
    for fold in range(folds):
        trainer = get_trainer_from_args("1", configuration, fold, device=torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 30, 1
        trainer.initial_lr = 0.03
        torch.manual_seed(fold)
        trainer.run_training()
    return Path(trainer.output_folder_base)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 1)
