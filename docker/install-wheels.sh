#!/bin/sh
# install-wheels REQUIREMENTS WHEELS [INDEX]
# Installs exactly what a hashed requirements file lists. Wheels in the folder WHEELS (source archives where the package
# has no wheel) come first; when they are all there, no index is asked. INDEX replaces the default index.
# Secrets (optional): ca, a certificate bundle; pip_conf, a pip configuration (mirrors, tokens). Neither reaches the layer.
set -eu
requirements=$1 wheels=$2 index=${3:-}

wanted=$(grep -cE '^[A-Za-z0-9]' "$requirements" || true)
[ "$wanted" -gt 0 ] || exit 0
have=$(find "$wheels" -name '*.whl' -o -name '*.tar.gz' | wc -l)

set -- --require-hashes --no-deps --no-compile --no-build-isolation --root-user-action ignore --no-warn-script-location
[ "$have" -eq 0 ] || set -- "$@" --find-links "$wheels"
if [ "$have" -ge "$wanted" ]; then
    set -- "$@" --no-index
elif [ -n "$index" ]; then
    set -- "$@" --index-url "$index"
fi
# The cache holds a second copy of every wheel: worth it for the stack, which changes often, not for torch.
[ -n "${PIP_CACHE_DIR:-}" ] || set -- "$@" --no-cache-dir
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -s /run/secrets/pip_conf ] || export PIP_CONFIG_FILE=/run/secrets/pip_conf
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_DEFAULT_TIMEOUT=60 PYTHONDONTWRITEBYTECODE=1
exec pip install "$@" -r "$requirements"
