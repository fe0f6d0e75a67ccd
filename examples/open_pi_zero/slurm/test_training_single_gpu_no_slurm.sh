#!/usr/bin/env bash
# Tests training on one GPU, as the script of this name in open-pi-zero does: batches of 8, 16 samples an update, a checkpoint
# every 16 updates. A thin wrapper: it translates the documented YAML and starts `vla-ft train`, which goes on after its
# checkpoints (the original ends at the first one). Further words change keys of the YAML:
#
#   bash examples/open_pi_zero/slurm/test_training_single_gpu_no_slurm.sh train_vlm=True
#
# Every start is a run of its own, in a dated folder below $VLA_LOG_DIR/test. Say log_dir=... for another, and the same log_dir=...
# again to continue one that was interrupted. CONFIG names another file than config/train/finetune.yaml, VLA_LOG_DIR the folder of
# logs, VLA_DATA_DIR that of resize_224/.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
export VLA_LOG_DIR="${VLA_LOG_DIR:-runs/open_pi_zero}" VLA_DATA_DIR="${VLA_DATA_DIR:-datasets}"
mkdir -p "$VLA_LOG_DIR"
recipe="$VLA_LOG_DIR/test_training_single_gpu.yaml"
vla_ft() { "${PYTHON:-python}" -m vla_ft "$@"; }

vla_ft recipe from-open-pi-zero "${CONFIG:-$here/config/train/finetune.yaml}" output="$recipe" overwrite=true \
  log_dir="$VLA_LOG_DIR/test/$(date +%Y-%m-%d_%H-%M-%S)" global_batch_size=16 per_device_batch_size=8 n_updates=64 flow_sampling=beta \
  data.train.shuffle_buffer_size=10000 eval_freq=32 eval_size=64 save_model_freq=16 save_model_start=0 log_freq=2 \
  action_lr_scheduler.warmup_steps=0 vlm_lr_scheduler.warmup_steps=0 use_ema=True ema_start=0 wandb=null debug=True "$@"
vla_ft train recipe="$recipe"
