#!/bin/sh
# Says what is wrong with the mounted folders before Python starts, then becomes the command.
set -eu
for folder in /cache /runs; do
    [ ! -w "$folder" ] || continue
    echo "$folder cannot be written by user $(id -u):$(id -g), whom the container runs as." >&2
    # An engine that maps users gives the container a part of the machine's numbers only.
    read -r _ outside _ </proc/self/uid_map
    if [ "$outside" -ne 0 ]; then
        echo "This engine maps users, so that user is another one outside. If it is rootless, \`invoke use --gpu NAME\`" \
            "makes the container run as its root, which is you. With userns-remap, give the services" \
            "\`userns_mode: host\` in a compose file of your own; \`invoke doctor\` says which it is." >&2
    else
        echo "Run \`invoke use --gpu NAME\` (it writes your user into .env and makes the folders), or give the mounted" \
            "folder to that user." >&2
    fi
    exit 2
done
exec "$@"
