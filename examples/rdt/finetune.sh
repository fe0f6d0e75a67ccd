#!/usr/bin/env bash
# finetune.sh of the published guide, on this repository's trainer: the same names of variables and flags, one command.
#
#   DATA=datasets/my_cool_dataset ./examples/rdt/finetune.sh                     # recipe rdt-1b-16gb
#   RECIPE=rdt-1b DATA=... ./examples/rdt/finetune.sh --train_batch_size=32      # 80 GB cards, as published
#   ./examples/rdt/finetune.sh data.mix=configs --pretrained_model_name_or_path=checkpoints/rdt/checkpoint-1000
#   DATA=... source examples/rdt/finetune.sh                                     # the shell lives on
#
# Every flag of the published script is known, as --flag=value or --flag value; key=value words go to `vla-ft train` as
# they are. --deepspeed without RECIPE means the recipe of the published settings, rdt-1b. A batch size given without
# --gradient_accumulation_steps is not accumulated, as there. Without meaning here: CUTLASS_PATH, NCCL settings, the
# text encoder (embeddings are always precomputed: `vla-ft embed-language`), --load_from_hdf5, --dataset_type.

_rdt_translate() { # prints the words of `vla-ft train`, one a line
    local recipe="${RECIPE:-rdt-1b-16gb}" batch="" accumulation="" samples="" batches=2 flag value word
    local words=("output=${OUTPUT_DIR:-checkpoints/rdt-finetune}")
    [[ -n "${DATA:-}" ]] && words+=("data.path=$DATA")
    [[ -n "${WANDB_PROJECT:-}" ]] && words+=("logging.wandb=online" "logging.project=$WANDB_PROJECT")
    [[ -n "${VISION_ENCODER_NAME:-}" ]] && words+=("model.vision.weights=$VISION_ENCODER_NAME")
    while (($#)); do
        word="$1" && shift
        case "$word" in
            --use_8bit_adam) words+=("optimizer.name=adamw8bit") && continue ;;
            --gradient_checkpointing) words+=("activation_checkpointing=true") && continue ;;
            --image_aug) words+=("data.augmentation=rdt") && continue ;;
            --precomp_lang_embed | --load_from_hdf5) continue ;;
            --*=*) flag="${word%%=*}" value="${word#*=}" ;;
            --*)
                flag="$word" value="${1-}"
                if (($#)); then shift; fi
                ;;
            *) words+=("$word") && continue ;;
        esac
        case "$flag=$value" in
            --pretrained_model_name_or_path=None) words+=("init.path=null") ;;
            --pretrained_model_name_or_path=?*) words+=("init.path=$value") ;;
            --pretrained_vision_encoder_name_or_path=?*) words+=("model.vision.weights=$value") ;;
            --pretrained_text_encoder_name_or_path=?*) ;;
            --output_dir=?*) words+=("output=$value") ;;
            --train_batch_size=?*) batch="$value" ;;
            --gradient_accumulation_steps=?*) accumulation="$value" ;;
            --sample_batch_size=?*) samples="$value" ;;
            --num_sample_batches=?*) batches="$value" samples="${samples:-8}" ;;
            --max_train_steps=?*) words+=("steps=$value") ;;
            --checkpointing_period=?*) words+=("checkpoint.every=$value") ;;
            --checkpoints_total_limit=?*) words+=("checkpoint.keep_last=$value") ;;
            --sample_period=?*) words+=("validation.every=$value") ;;
            --learning_rate=?*) words+=("optimizer.lr=$value") ;;
            --lr_scheduler=?*) words+=("schedule.name=$value") ;;
            --lr_warmup_steps=?*) words+=("schedule.warmup_steps=$value") ;;
            --mixed_precision=bf16) words+=("precision=bf16") ;;
            --dataloader_num_workers=?*) words+=("data.workers=$value") ;;
            --state_noise_snr=?*) words+=("model.conditions.state_noise_snr=$value") ;;
            --cond_mask_prob=?*) words+=("model.conditions.drop=$value") ;;
            --cam_ext_mask_prob=-*) words+=("model.conditions.drop_external=null") ;;
            --cam_ext_mask_prob=?*) words+=("model.conditions.drop_external=$value") ;;
            --resume_from_checkpoint=latest) ;; # what running the same command again does
            --resume_from_checkpoint=?*) words+=("resume=$value") ;;
            --report_to=wandb) words+=("logging.wandb=online") ;;
            --report_to=tensorboard | --dataset_type=finetune) ;;
            --deepspeed=?*) words+=("engine=zero2") && recipe="${RECIPE:-rdt-1b}" ;;
            --seed=?*) words+=("seed=$value") ;;
            *)
                echo "finetune.sh: '$word' is not known here; see 'vla-ft recipes $recipe' for what can be set" >&2
                return 2
                ;;
        esac
    done
    [[ -n "$batch" ]] && words+=("batch.per_device=$batch")
    [[ -n "$batch$accumulation" ]] && words+=("batch.accumulation=${accumulation:-1}")
    [[ -n "$samples" ]] && words+=("validation.samples=$((samples * batches))" "validation.training_samples=$((samples * batches))")
    printf '%s\n' "recipe=$recipe" "${words[@]}"
}

_rdt_finetune() {
    local found word
    local words=()
    found="$(_rdt_translate "$@")" || return
    while IFS= read -r word; do words+=("$word"); done <<<"$found"
    if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then exec "${VLA_FT:-vla-ft}" train "${words[@]}"; fi
    "${VLA_FT:-vla-ft}" train "${words[@]}"
}

_rdt_finetune "$@"
