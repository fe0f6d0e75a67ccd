#!/usr/bin/env bash
# Trains ACT step by step: ./demo_training.sh DATASET OUTPUT [--yes] [words for scripts/train_act.py ...]
# Asks before it starts; --yes answers every question with yes. DEVICE=cpu trains without a card.
# Paths are those of the folder that it is called from.
set -euo pipefail

yes=
words=()
for word in "$@"; do
    if [ "$word" = --yes ] || [ "$word" = -y ]; then yes=1; else words+=("$word"); fi
done
if [ "${#words[@]}" -lt 2 ]; then
    echo "Usage: ./demo_training.sh DATASET OUTPUT [--yes] [--key=value ...]" >&2
    exit 2
fi
absolute() {
    case "$1" in
    /* | hub:*) printf '%s' "$1" ;;
    *) printf '%s' "$PWD/$1" ;;
    esac
}
dataset=$(absolute "${words[0]}") output=$(absolute "${words[1]}") device=${DEVICE:-cuda}
cd "$(dirname "$0")"

confirm() {
    [ -z "$yes" ] || return 0
    if [ ! -t 0 ]; then
        echo "Nobody is here to answer '$1'. Give --yes." >&2
        exit 2
    fi
    read -r -p "$1 [y/N] " answer
    [ "$answer" = y ] || [ "$answer" = Y ] || { echo "Nothing was started."; exit 0; }
}

python -c "import torch, sys
from policy.act import build_act_policy
print(f'PyTorch {torch.__version__}, CUDA available: {torch.cuda.is_available()}, cards: {torch.cuda.device_count()}')"
echo "Dataset: $dataset"
echo "Output:  $output"
echo "Device:  $device"
confirm "Start training?"
exec python scripts/train_act.py --config configs/policy_act.yaml --dataset_dir "$dataset" --output_dir "$output" \
    --device "$device" "${words[@]:2}"
