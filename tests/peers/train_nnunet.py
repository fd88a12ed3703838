"""Train small nnU-Nets with nnU-Net's own planner, preprocessing and trainer.

``train_nnunet.py RAW OUT EPOCHS CONFIGURATION:FOLDS ...``: RAW is a folder of `pneumoscope data convert --to nnunet`.
Only sizes are changed (patch, features, iterations), and training is shown what lies in the file, without augmentation.
A ``3d_lowres`` is the plan of ``3d_fullres`` at twice the spacing, as phantoms are too small for nnU-Net to plan one.
The results lie in OUT/nnunet/results, as `nnUNetv2_train` leaves them.
"""

import json
import os
import shutil
import sys
from copy import deepcopy
from pathlib import Path


def main(raw: Path, out: Path, epochs: int, wanted: dict[str, int]) -> None:
    work = out / "nnunet"
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    shutil.copytree(raw, work / "raw" / "Dataset001_phantom")

    import numpy as np
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

    usual = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def unturned(self: nnUNetTrainer) -> tuple:
        rotation, dummy, _, mirror_axes = usual(self)
        return rotation, dummy, self.configuration_manager.patch_size, mirror_axes

    nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = unturned
    nnUNetTrainer.get_training_transforms = staticmethod(nnUNetTrainerNoDA.get_training_transforms)

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    plans_file = work / "preprocessed" / "Dataset001_phantom" / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    configurations = plans["configurations"]
    low = deepcopy(configurations["3d_fullres"])
    low |= {
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [low["spacing"][0], *(2 * s for s in low["spacing"][1:])],
    }
    configurations["3d_lowres"] = low
    for plan in configurations.values():
        axes = len(plan["patch_size"])
        plan["patch_size"] = [8, 32, 32][-axes:]
        plan["batch_size"] = 4
        plan["architecture"]["arch_kwargs"] |= {
            "n_stages": 3, "features_per_stage": [8, 16, 16], "kernel_sizes": [[3] * axes] * 3,
            "strides": [[1] * axes, [2] * axes, [2] * axes], "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
        }  # fmt: skip
    plans_file.write_text(json.dumps(plans))
    preprocess([1], "nnUNetPlans", tuple(wanted), (1,) * len(wanted))
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no worker processes while training
    for configuration, folds in wanted.items():
        for fold in range(folds):
            trainer = get_trainer_from_args("1", configuration, fold, device=torch.device("cpu"))
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 60, 1
            trainer.initial_lr, trainer.oversample_foreground_percent = 0.03, 1.0
            torch.manual_seed(fold)
            np.random.seed(fold)  # nnU-Net's loaders draw patches from it
            trainer.run_training()


if __name__ == "__main__":
    folds = {configuration: int(n) for configuration, n in (word.split(":") for word in sys.argv[4:])}
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), folds)
