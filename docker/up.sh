#!/bin/sh
# From a checkout to the first token: builds the images, starts the stack, creates a key and a join
# token, and prints how to use them.
#
#     docker/up.sh [--monitoring] [ADDRESS]
#
# ADDRESS is the public name or IP address of this machine; it is needed the first time only.  Run
# it again after an update: existing files are kept, and no second key is created.  With
# FABRIC_NO_BUILD=1 it uses existing images, as built with `docker build`.
set -eu
cd "$(dirname "$0")"

monitoring=
if [ "${1:-}" = --monitoring ]; then
    monitoring=yes
    shift
fi
./setup.sh "$@"

compose() {
    docker compose --file compose.yaml "$@"
}

server() {
    compose exec -T server "$@"
}

# setting NAME DEFAULT: as compose reads it, from the environment, then .env.
setting() {
    given=$(printenv "$1" || sed -n "s/^$1=//p" .env)
    echo "${given:-$2}"
}

# give SERVICE FILE: nobody may read the secret but the user that the service's container runs as.
# The chown happens in a container: it needs no root here, and user namespaces are taken into account.
give() {
    user=$(compose --profile monitoring run --rm --no-deps --no-TTY --entrypoint id "$1" -u | tr -d '\r')
    case $user in '' | *[!0-9]*)
        echo "up.sh: can't learn which user the container of $1 runs as." >&2
        exit 1
        ;;
    esac
    docker run --rm --network none --read-only --cap-drop ALL --cap-add CHOWN --cap-add FOWNER --cap-add DAC_OVERRIDE \
        --user 0 --volume "$PWD/secrets:/secrets" --entrypoint sh "$(setting FABRIC_SERVER_IMAGE fabric-server:latest)" \
        -c 'chmod 600 "/secrets/$1" && chown "$2" "/secrets/$1"' - "$2" "$user"
}

if [ -z "${FABRIC_NO_BUILD:-}" ]; then
    compose build
fi
compose up --detach --wait --wait-timeout 300 postgres redis kafka server consumer

# The CA of the server's certificate, for curl and for Prometheus.
server cat /var/lib/fabric/certs/ca.pem > secrets/.ca.pem.new
chmod 644 secrets/.ca.pem.new
mv secrets/.ca.pem.new secrets/ca.pem

if [ -n "$monitoring" ]; then
    if [ ! -s secrets/metrics.key ]; then
        (umask 077 && server fabric-server keys create prometheus --management --scope metrics > secrets/.metrics.key.new)
        mv secrets/.metrics.key.new secrets/metrics.key
    fi
    give prometheus metrics.key
    compose --profile monitoring up --detach
    echo "Grafana: http://localhost:$(setting GRAFANA_PORT 3000), user admin, password in docker/secrets/grafana-password."
fi

if [ ! -s secrets/first.key ]; then
    (umask 077 && server fabric-server keys create first > secrets/.first.key.new)
    mv secrets/.first.key.new secrets/first.key
fi
token=$(server fabric-server nodes invite --name first 2> /dev/null)
address=$(setting FABRIC_SERVER_ADDRESS "")

cat << END

The fabric is up. On the machine with the GPU (the token is valid for one machine and one day):

  fabric-client join $token
  fabric-client run

Then send a request from this checkout:

  curl --no-buffer --cacert docker/secrets/ca.pem https://${address%%,*}:$(setting FABRIC_SERVER_PUBLIC_PORT 18080)/v1/chat/completions \\
    -H "Authorization: Bearer \$(cat docker/secrets/first.key)" -H 'Content-Type: application/json' \\
    -d '{"model": "MODEL", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'
END
