#!/bin/sh
# Creates the files that compose.yaml needs and that must not be in git: docker/secrets, docker/.env.
#
#     docker/setup.sh [ADDRESS]
#
# ADDRESS is the public name or IP address of this machine: it goes into the server's certificate
# and into join tokens.  Existing files are kept.  Remove docker/secrets only together with the
# volumes (docker compose down --volumes): PostgreSQL keeps the password that it was created with.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "setup.sh: $*" >&2
    exit 2
}

[ $# -le 1 ] || fail "give at most one address."

if [ ! -e .env ]; then
    [ $# -eq 1 ] || fail "give the public name or address of this machine, such as gpu.example.org."
    (umask 077 && printf '# Settings of this machine; see compose.yaml.\nFABRIC_SERVER_ADDRESS=%s\n' "$1" > .env.new)
    mv .env.new .env
    echo "Made docker/.env."
elif [ $# -eq 1 ] && ! grep -qxF "FABRIC_SERVER_ADDRESS=$1" .env; then
    fail "docker/.env has another address: $(grep '^FABRIC_SERVER_ADDRESS=' .env). Edit it there."
fi

# Compose mounts these files with their modes, and each container reads its own as another user.  So
# the files are readable for all, and the directory only for its owner.
mkdir -p secrets
chmod 700 secrets

secret() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# keep NAME MODE: write standard input to the file, unless it exists.
keep() {
    if [ -e "secrets/$1" ]; then
        cat > /dev/null
        return
    fi
    (umask 077 && cat > "secrets/.$1.new")
    chmod "$2" "secrets/.$1.new"
    mv "secrets/.$1.new" "secrets/$1"
    echo "Made docker/secrets/$1."
}

secret | keep postgres-password 644
secret | keep grafana-password 644
# Not mounted anywhere; redis.conf and fabric-server.toml contain it.
secret | keep redis-password 600
postgres=$(cat secrets/postgres-password)
redis=$(cat secrets/redis-password)

keep redis.conf 644 << END
requirepass $redis
END
keep fabric-server.toml 644 << END
store = "postgresql://fabric:$postgres@postgres:5432/fabric"
cache = "redis://:$redis@redis:6379/0"
bus = "kafka://kafka:9092"
END
keep fabric-consumer.toml 644 << END
store = "postgresql://fabric:$postgres@postgres:5432/fabric"
bus = "kafka://kafka:9092"
END
