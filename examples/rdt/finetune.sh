#!/usr/bin/env bash
# finetune.sh of the published guide, on this repository's trainer: the same names of variables and flags, one command.
#
#   DATA=datasets/my_cool_dataset ./examples/rdt/finetune.sh                     # recipe rdt-1b-16gb
#   RECIPE=rdt-1b DATA=... ./examples/rdt/finetune.sh --train_batch_size=32      # 80 GB cards, as published
#   ./examples/rdt/finetune.sh data.mix=configs --pretrained_model_name_or_path=checkpoints/rdt/checkpoint-1000
#
# Flags that the guide uses are translated; key=value words go to `vla-ft train` as they are. What has no meaning here
# (CUTLASS_PATH, NCCL settings, --precomp_lang_embed: embeddings are always precomputed) is not needed.
set -euo pipefail

words=("recipe=${RECIPE:-rdt-1b-16gb}" "output=${OUTPUT_DIR:-checkpoints/rdt-finetune}")
[[ -n "${DATA:-}" ]] && words+=("data.path=$DATA")
[[ -n "${WANDB_PROJECT:-}" ]] && words+=("logging.wandb=online" "logging.project=$WANDB_PROJECT")
[[ -n "${VISION_ENCODER_NAME:-}" ]] && words+=("model.vision.weights=$VISION_ENCODER_NAME")

for word in "$@"; do
    value="${word#*=}"
    case "$word" in
        --pretrained_model_name_or_path=None) words+=("init.path=null") ;;
        --pretrained_model_name_or_path=*) words+=("init.path=$value") ;;
        --output_dir=*) words+=("output=$value") ;;
        --train_batch_size=*) words+=("batch.per_device=$value") ;;
        --gradient_accumulation_steps=*) words+=("batch.accumulation=$value") ;;
        --max_train_steps=*) words+=("steps=$value") ;;
        --checkpointing_period=*) words+=("checkpoint.every=$value") ;;
        --checkpoints_total_limit=*) words+=("checkpoint.keep_last=$value") ;;
        --sample_period=*) words+=("validation.every=$value") ;;
        --learning_rate=*) words+=("optimizer.lr=$value") ;;
        --lr_scheduler=*) words+=("schedule.name=$value") ;;
        --lr_warmup_steps=*) words+=("schedule.warmup_steps=$value") ;;
        --mixed_precision=bf16) words+=("precision=bf16") ;;
        --use_8bit_adam) words+=("optimizer.name=adamw8bit") ;;
        --gradient_checkpointing) words+=("activation_checkpointing=true") ;;
        --dataloader_num_workers=*) words+=("data.workers=$value") ;;
        --state_noise_snr=*) words+=("model.conditions.state_noise_snr=$value") ;;
        --cond_mask_prob=*) words+=("model.conditions.drop=$value") ;;
        --cam_ext_mask_prob=*) words+=("model.conditions.drop_external=$value") ;;
        --resume_from_checkpoint=latest) ;; # what running the same command again does
        --resume_from_checkpoint=*) words+=("resume=$value") ;;
        --report_to=wandb) words+=("logging.wandb=online") ;;
        --deepspeed=*) words+=("engine=zero2") ;;
        --image_aug) words+=("data.augmentation=rdt") ;;
        --seed=*) words+=("seed=$value") ;;
        --precomp_lang_embed | --load_from_hdf5 | --dataset_type=finetune | --report_to=tensorboard) ;;
        --*)
            echo "finetune.sh: '$word' is not known here; see 'vla-ft recipes ${RECIPE:-rdt-1b-16gb}' for what can be set" >&2
            exit 2
            ;;
        *) words+=("$word") ;;
    esac
done

exec "${VLA_FT:-vla-ft}" train "${words[@]}"
