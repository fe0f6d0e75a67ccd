#!/bin/sh
# Installs what the image needs from the distribution: Python where the base has none, a C compiler, Python's headers.
# Does nothing on a base that has all of it (`invoke base` makes one), so that such a site asks no mirror.
# Secrets (optional): ca, a certificate bundle for https mirrors; apt_sources, a sources list to be used instead.
set -eu

missing=
{ command -v gcc && [ -e /usr/include/stdio.h ]; } >/dev/null || missing="gcc libc6-dev"
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3 python3-venv"
# Triton's launcher includes Python.h. python:3.11 images bring it; for Debian's python3 it is a package.
header='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
python3 -c "$header" 2>/dev/null || missing="$missing libpython3-dev"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

if [ -n "$missing" ]; then
    set --
    [ ! -s /run/secrets/ca ] || set -- -o Acquire::https::CAInfo=/run/secrets/ca
    [ ! -s /run/secrets/apt_sources ] ||
        set -- "$@" -o Dir::Etc::SourceList=/run/secrets/apt_sources -o Dir::Etc::SourceParts=/dev/null
    export DEBIAN_FRONTEND=noninteractive
    apt-get "$@" update -qq
    # shellcheck disable=SC2086  # one word per package
    apt-get "$@" install -y -qq --no-install-recommends $missing >/dev/null
    # Lists name the mirror; logs and caches differ from build to build.
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache
fi

python3 -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "The base has Python %d.%d; the locks are for 3.11. Choose another base with --base." % sys.version_info[:2])'
python3 -c "$header" || { echo "The base's python3 has no Python.h, which Triton's launcher needs. Choose another base with --base." >&2; exit 1; }
