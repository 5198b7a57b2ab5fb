#!/bin/sh
# Pins every image by its digest: pulls the current image of each tag and writes name:tag@sha256:… into
# docker/.env, which compose.yaml reads.  Run it again to update the pins.
set -eu
cd "$(dirname "$0")"

[ -e .env ] || {
    echo "pin.sh: docker/.env does not exist; run docker/setup.sh first." >&2
    exit 2
}

pinned=$(
    sed -nE 's/.*\$\{([A-Z]+_IMAGE|BASE):-(docker\.io[^}]*)\}.*/\1 \2/p' compose.yaml |
        while read -r variable image; do
            docker pull --quiet "$image" > /dev/null < /dev/null
            digest=$(docker image inspect --format '{{index .RepoDigests 0}}' "$image")
            echo "$variable=$image@${digest#*@}"
        done
)
{
    grep -vE '^([A-Z]+_IMAGE|BASE)=.*@sha256:' .env || true
    echo "$pinned"
} > .env.new
chmod 600 .env.new
mv .env.new .env
echo "$pinned"
