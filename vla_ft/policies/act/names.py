"""One network under three sets of tensor names: ours, the original's and LeRobot's, both ways."""

from __future__ import annotations

from vla_ft.errors import UserError

RENAMES: tuple[tuple[str, str, str | None], ...] = (
    # ours                        the original                LeRobot
    ("vision.trunk.", "backbones.0.0.body.", "backbone."),
    ("vision.project.", "input_proj.", "encoder_img_feat_input_proj."),
    ("posterior.encoder.", "encoder.", "vae_encoder."),
    ("posterior.cls_token.", "cls_embed.", "vae_encoder_cls_embed."),
    ("posterior.project_proprio.", "encoder_joint_proj.", "vae_encoder_robot_state_input_proj."),
    ("posterior.project_action.", "encoder_action_proj.", "vae_encoder_action_input_proj."),
    ("posterior.to_latent.", "latent_proj.", "vae_encoder_latent_output_proj."),
    ("posterior.positions", "pos_table", "vae_encoder_pos_enc"),
    ("encoder.", "transformer.encoder.", "encoder."),
    ("decoder.", "transformer.decoder.", "decoder."),
    ("project_proprio.", "input_proj_robot_state.", "encoder_robot_state_input_proj."),
    ("project_env_state.", "input_proj_env_state.", "encoder_env_state_input_proj."),
    ("project_latent.", "latent_out_proj.", "encoder_latent_input_proj."),
    ("token_positions.", "additional_pos_embed.", "encoder_1d_feature_pos_embed."),
    ("queries.", "query_embed.", "decoder_pos_embed."),
    ("action_head.", "action_head.", "action_head."),
    ("pad_head.", "is_pad_head.", None),
)
"""Beginnings of names: one part of the network under its three names."""

COLUMNS = {"original": 1, "lerobot": 2}
"""Layout -> column of ``RENAMES``."""


def our_name(published: str, layout: str) -> str | None:
    """Our name of a published one (without the policy's ``model.``), or None where we have no such part."""
    column = COLUMNS[layout]
    for row in RENAMES:
        beginning = row[column]
        if beginning is not None and published.startswith(beginning):
            return row[0] + published.removeprefix(beginning)
    return None


def published_name(ours: str, layout: str) -> str | None:
    """The published name (without ``model.``) of one of ours; None for what that form knowingly lacks (the pad head).

    Raises UserError for a tensor that no published form has, such as a camera fusion's.
    """
    for row in RENAMES:
        if ours.startswith(row[0]):
            beginning = row[COLUMNS[layout]]
            return None if beginning is None else beginning + ours.removeprefix(row[0])
    raise UserError(
        f"'{ours}' has no counterpart in the {layout} form of ACT, which knows a ResNet, one observation step and no "
        "camera fusion. Keep the vla_ft form."
    )
