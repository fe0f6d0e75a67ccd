"""Control rates of published RLDS datasets: the files do not say them."""

from __future__ import annotations

# Steps per second, as RDT's pre-training lists them (thu-ml/RoboticsDiffusionTransformer,
# configs/dataset_control_freq.json). Names without the suffix of the converted sets.
_RATES: dict[str, float] = {
    "asu_table_top": 12.5,
    "austin_buds": 20,
    "austin_sailor": 20,
    "austin_sirius": 20,
    "bc_z": 10,
    "berkeley_autolab_ur5": 5,
    "berkeley_cable_routing": 10,
    "berkeley_fanuc_manipulation": 10,
    "berkeley_mvp": 5,
    "berkeley_rpt": 30,
    "bridge": 5,
    "cmu_play_fusion": 5,
    "cmu_stretch": 10,
    "dlr_edan_shared_control": 5,
    "dlr_sara_grid_clamp": 10,
    "dlr_sara_pour": 10,
    "dobbe": 30,
    "droid": 15,
    "fmb": 10,
    "fractal20220817_data": 3,
    "furniture_bench": 10,
    "iamlab_cmu_pickup_insert": 20,
    "jaco_play": 10,
    "kaist_nonprehensile": 10,
    "kuka": 10,
    "language_table": 10,
    "maniskill": 20,
    "nyu_door_opening_surprising_effectiveness": 3,
    "nyu_franka_play": 3,
    "nyu_rot": 3,
    "roboturk": 10,
    "stanford_hydra": 10,
    "stanford_kuka_multimodal": 20,
    "stanford_robocook": 5,
    "taco_play": 15,
    "tokyo_u_lsmo": 10,
    "toto": 30,
    "ucsd_kitchen": 2,
    "ucsd_pick_and_place": 3,
    "utaustin_mutex": 20,
    "utokyo_pr2_opening_fridge": 10,
    "utokyo_pr2_tabletop_manipulation": 10,
    "utokyo_xarm_bimanual": 10,
    "utokyo_xarm_pick_and_place": 10,
    "viola": 20,
}
_ALIASES = {"bridge_orig": "bridge", "bridge_dataset": "bridge", "fmb_dataset": "fmb", "droid_100": "droid"}


def known_rate(name: str) -> float | None:
    """Steps per second of a published dataset by its TFDS name; None for one that is not listed."""
    for suffix in ("_converted_externally_to_rlds", "_dataset"):
        name = _ALIASES.get(name, name).removesuffix(suffix)
    return _RATES.get(_ALIASES.get(name, name))
