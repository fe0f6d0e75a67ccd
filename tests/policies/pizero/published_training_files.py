"""All keys and values of open-pi-zero's training files (allenzren/open-pi-zero at 5e04eca), as words; not its files."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

_ADAPTERS = "lora.r=${lora_r} lora.dropout=${lora_dropout}"
_RUN = """
_target_=src.agent.train.TrainAgent defaults=[_self_] hydra.run.dir=${log_dir} device=cuda n_nodes=1 seed=42
debug=False log_dir=${oc.env:VLA_LOG_DIR}/train/${name}/${now:%Y-%m-%d}_${now:%H-%M}_${seed}
name=${data.train.dataset_mix}_${data.train.split}_tp${horizon_steps}_${flow_sampling}
pretrained_model_path=${oc.env:TRANSFORMERS_CACHE}/paligemma-3b-pt-224 load_pretrained_weights=True
resume_checkpoint_path=null train_vlm=True action_expert_adaptive_mode=null use_torch_compile=True use_bf16=True
use_amp=True quantize=False lora=False lora_r=32 lora_dropout=0.0 use_ema=False ema_decay=0.99
ema_start=${save_model_start} ema_freq=1 ema_device=cuda use_swa=False swa_device=cpu
wandb.entity=${oc.env:VLA_WANDB_ENTITY} wandb.project=open-pi-zero wandb.run=${now:%H-%M-%S}_${name} log_freq=16
eval_freq=2000 eval_size=1024 eval_thresholds=[0.05,0.1,0.2,0.3,0.5] global_batch_size=1024 per_device_batch_size=16
action_lr=5e-5 vlm_lr=5e-5 action_weight_decay=0 vlm_weight_decay=0 max_grad_norm=1.0 flow_sampling=beta
action_lr_scheduler.first_cycle_steps=10000000 action_lr_scheduler.min_lr=1e-8 action_lr_scheduler.warmup_steps=200
vlm_lr_scheduler.first_cycle_steps=10000000 vlm_lr_scheduler.min_lr=1e-8 vlm_lr_scheduler.warmup_steps=200
num_inference_steps=10 final_action_clip_value=1.0 cond_steps=1 horizon_steps=4 action_dim=7 max_seq_len=276
tokenizer_padding=max_length max_image_text_tokens=${max_seq_len} data.val.shuffle_buffer_size=10000
data.train.data_path=${oc.env:VLA_DATA_DIR}/resize_224 data.train.window_size=${cond_steps}
data.train.action_horizon=${horizon_steps} data.train.skip_unlabeled=True data.train.load_proprio=True
data.train.shuffle_buffer_size=200000 data.train.num_parallel_calls=100 data.train.traj_transform_threads=10
data.train.traj_read_threads=10
"""
_EXPERT = "hidden_size=1024 intermediate_size=4096 use_final_norm=True use_quantize=False use_lora=False"
_MODEL = """
mixture.vlm.hidden_size=2048 mixture.vlm.intermediate_size=16384 mixture.vlm.use_final_norm=False
mixture.vlm.cache=True mixture.vlm.use_quantize=${quantize} mixture.vlm.use_lora=${lora}
mixture.vlm.adaptive_mode=null mixture.proprio.cache=True mixture.proprio.adaptive_mode=${action_expert_adaptive_mode}
mixture.action.cache=False mixture.action.adaptive_mode=${action_expert_adaptive_mode} time_hidden_size=256
image_token_index=257152 vocab_size=257216 pad_token_id=0 vision._target_=src.model.paligemma.siglip.SiglipVisionModel
vision.config.hidden_size=1152 vision.config.intermediate_size=4304 vision.config.num_hidden_layers=27
vision.config.num_attention_heads=16 vision.config.num_channels=3 vision.config.image_size=224
vision.config.patch_size=14 vision.config.layer_norm_eps=1e-6 vision.config.attention_dropout=0.0
vision.config.num_image_tokens=256 vision.use_quantize=${quantize} vision.use_lora=${lora}
vision_projector._target_=src.model.paligemma.siglip.PaliGemmaMultiModalProjector
vision_projector.config.vision_config.hidden_size=1152 vision_projector.config.vision_config.projection_dim=2048
vision_projector.use_quantize=${quantize} vision_projector.use_lora=${lora}
joint._target_=src.model.vla.joint_model.JointModel
joint.config.action_expert_adaptive_mode=${action_expert_adaptive_mode}
joint.config.time_hidden_size=${time_hidden_size} joint.config.mixture=${mixture} joint.config.num_hidden_layers=18
joint.config.num_attention_heads=8 joint.config.num_key_value_heads=1 joint.config.head_dim=256
joint.config.max_position_embeddings=8192 joint.config.rms_norm_eps=1e-6 joint.config.rope_theta=10000.0
joint.config.attention_bias=False joint.config.attention_dropout=0.0 joint.config.pad_token_id=${pad_token_id}
"""
_OWN = {
    "bridge": (
        1_550_000,
        15,
        5,
        "data.train.dataset_mix=bridge data.train.split=train data.val.split=null proprio_dim=7",
    ),
    "fractal": (
        3_786_400,
        10,
        3,
        "data.train.dataset_mix=fractal data.train.split=train[:95%] data.val.split=train[95%:] proprio_dim=8",
    ),
}


def write_published(name: str, folder: Path) -> Path:
    """``bridge`` or ``fractal`` with every key that the published file has."""
    samples, epochs, first_saved, own = _OWN[name]
    epoch = f"{samples} // ${{global_batch_size}}"
    words = [*_RUN.split(), *_MODEL.split(), *own.split(), f"n_epochs={epochs}"]
    words += [f"mixture.{part}.{word}" for part in ("proprio", "action") for word in _EXPERT.split()]
    words += [f"{part}.config.{word}" for part in ("vision", "vision_projector", "joint") for word in _ADAPTERS.split()]
    counted = {
        "n_updates": f"{epoch} * ${{n_epochs}}",
        "save_model_freq": f"{epoch} * 1",
        "save_model_start": f"{epoch} * {first_saved}",
        "swa_start": f"{epoch} * 5",
        "swa_freq": f"{epoch} // 4",
    }
    words += [f"{key}=${{eval:'{value}'}}" for key, value in counted.items()]
    path = folder / f"{name}.yaml"
    OmegaConf.save(OmegaConf.from_dotlist(words), path)
    return path
