#!/bin/sh
# Says what is wrong with the mounted folders before Python starts, then becomes the command.
set -eu
for folder in /cache /runs; do
    if [ ! -w "$folder" ]; then
        echo "$folder cannot be written by user $(id -u):$(id -g), whom the container runs as. Run \`invoke use --gpu NAME\`" \
            "(it writes your user into .env and makes the folders), or give the mounted folder to that user." >&2
        exit 2
    fi
done
exec "$@"
