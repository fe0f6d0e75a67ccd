"""The published mixes by name: which datasets, with which weights.

A weight multiplies a dataset's number of steps. Sources: OpenVLA's ``oxe/mixtures.py`` and open-pi-zero's
``oxe_dataset_mixes.py``, whose mixes of one name differ in how they read Bridge.
"""

from __future__ import annotations

_RTX = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_orig": 1.0,
    "taco_play": 2.0,
    "jaco_play": 2.0,
    "berkeley_cable_routing": 3.0,
    "roboturk": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 1.0,
    "toto": 1.0,
}
_SOUP = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_orig": 1.0,
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "language_table": 0.1,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "dlr_edan_shared_control_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}
_COGACT = {name: weight for name, weight in _SOUP.items() if name != "language_table"} | {
    "fractal20220817_data": 1.0,
    "bc_z": 0.2,
    "fmb_dataset": 1.0,
    "dobbe": 0.2,
}

MIXES: dict[str, dict[str, float]] = {
    "custom_finetuning": {"custom_finetuning": 1.0},
    "bridge": {"bridge_dataset": 1.0},
    "fractal": {"fractal20220817_data": 1.0},
    "oxe_simple": {"fractal20220817_data": 1.0, "bridge_dataset": 1.0},
    "bridge_rt_1": {"bridge_orig": 1.0, "fractal20220817_data": 1.0},
    "rtx": _RTX,
    "oxe_magic_soup": _SOUP,
    "oxe_magic_soup_plus_minus": _COGACT,
}
"""Mix name -> dataset -> weight. ``bridge``, ``fractal`` and ``oxe_simple`` are open-pi-zero's, the others OpenVLA's;
CogACT's is ``oxe_magic_soup_plus_minus``. BC-Z must be version 0.1.0: later ones are broken."""
