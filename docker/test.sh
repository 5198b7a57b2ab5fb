#!/bin/sh
# Builds the images and runs them: `make docker-test`.
#
#     docker/test.sh            the server and a node alone, then the stack of compose.yaml
#     docker/test.sh server     the first only
#     docker/test.sh stack      the second only
#
# It uses the running Docker engine, or starts one for itself (as root) and ends it.  Unless OFFICIAL=1,
# it assumes that no registry can be reached: it makes a base image with debootstrap, and replaces the
# images of PostgreSQL, Redis and Kafka with Debian's packages and Maven's jars.  Downloads stay in
# .cache/docker for the next time.
#
#     OFFICIAL=1            pull python, PostgreSQL, Redis and Kafka from the registry, as users do
#     BASE=image            the base of our images, instead of one made with debootstrap
#     KEEP=1                leave containers and engine as they are at the end, until the next start
#     PIP_CERT, PIP_INDEX_URL, PIP_CONFIG_FILE    are passed to pip inside the builds
#
# Exit code 0: all tests passed; 1: a test failed; 2: the tests can't run here.
#
# Containers, volumes and networks have names that begin with the run's: fabric-test-, the process id of
# this script and the time when that process started.  At its end, or at SIGINT, SIGTERM and SIGHUP, the
# script removes what has its run's name.  Nothing can do so at SIGKILL: each start removes what is left
# of runs whose process is gone.  The tests themselves run in a process group of their own, so that a
# signal need not wait for what they do.
set -eu
cd "$(dirname "$0")/.."

COMPOSE_VERSION=v2.40.3 # built if Docker comes without it, as Debian's does
what=${1:-all}
case $what in all | server | stack) ;; *)
    echo "test.sh: 'server', 'stack' or nothing, not '$what'." >&2
    exit 2
    ;;
esac

# started PID: a word for when that process started; fails if there is none.
started() {
    if [ -r /proc/self/stat ]; then
        { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 1
        # shellcheck disable=SC2086 # its words: the name ends with the last bracket, 22 is the start
        set -- ${stat##*) }
        shift 19
        echo "$1"
    else
        kill -0 "$1" 2> /dev/null && ps -o lstart= -p "$1" | tr -cd '[:alnum:]'
    fi
}

cache=$PWD/.cache/docker
mkdir -p "$cache"
engine= # process id of our own Docker engine
tests=  # process id, and group, of the tests
containers=
if [ -n "${FABRIC_TEST_RUN:-}" ]; then # the tests of a run that has begun
    project=$FABRIC_TEST_RUN
    work=$FABRIC_TEST_WORK
    began=$FABRIC_TEST_BEGAN
else
    project=fabric-test-$$-$(started $$)
    work=$(mktemp -d "${TMPDIR:-/tmp}/$project.XXXXXX")
    began=$(date +%s)
fi
export COMPOSE_PROJECT_NAME="$project"

# ── output ────────────────────────────────────────────────────────────────────────────────────────

step() {
    end_if_killed
    printf '%4ds  %s\n' $(($(date +%s) - began)) "$*"
}

fail() {
    echo "test.sh: FAILED: $*" >&2
    for name in $containers; do
        echo "── the end of $name's log ──" >&2
        docker logs --tail 30 "$name" >&2 2>&1 || true
    done
    if [ -d "$work/stack" ]; then
        echo "── the ends of the stack's logs ──" >&2
        (cd "$work/stack/docker" && docker compose logs --tail 30 >&2) || true
    fi
    exit 1
}

cannot() {
    echo "test.sh: can't be tried here: $*" >&2
    exit 2
}

# expect "what it shows" command…
expect() {
    expected=$1
    shift
    if "$@" > "$work/out" 2>&1; then
        step "  ok: $expected"
    else
        cat "$work/out" >&2
        fail "$expected"
    fi
}

# until_true SECONDS "what is waited for" command…
until_true() {
    end=$(($(date +%s) + $1))
    waited_for=$2
    shift 2
    until "$@" > "$work/out" 2>&1; do
        end_if_killed
        if [ "$(date +%s)" -ge "$end" ]; then
            cat "$work/out" >&2
            fail "timed out: $waited_for"
        fi
        sleep 0.5
    done
    step "  ok: $waited_for"
}

# ── cleaning up ───────────────────────────────────────────────────────────────────────────────────

# has_gone RUN: whether no process works for this run any more; RUN is PID-START.
has_gone() {
    now=$(started "${1%%-*}") || return 0
    [ "$now" != "${1#*-}" ]
}

# runs_in: the runs, as PID-START, to which the names in the input belong.
runs_in() {
    sed -n 's/^fabric-test-\([0-9]\{1,\}-[0-9A-Za-z]\{1,\}\)[-_.].*/\1/p' | sort -u
}

# end_if_killed: nobody waits for these tests if their run is gone; the next start removes what is left.
end_if_killed() {
    if [ -n "${FABRIC_TEST_RUN:-}" ] && has_gone "${project#fabric-test-}"; then exit 1; fi
}

# remove_all RUN: its containers, volumes and networks.
remove_all() {
    prefix="fabric-test-$1"
    docker ps --all --format '{{.Names}}' | grep "^$prefix[-_]" | while read -r name; do
        docker rm --force --volumes "$name" > /dev/null < /dev/null || true
    done
    docker volume ls --format '{{.Name}}' | grep "^$prefix[-_]" | while read -r name; do
        docker volume rm --force "$name" > /dev/null < /dev/null || true
    done
    docker network ls --format '{{.Name}}' | grep "^$prefix[-_]" | while read -r name; do
        docker network rm "$name" > /dev/null < /dev/null || true
    done
}

# stop_tests DIRECTORY: end the tests of a run and all that they have started.
stop_tests() {
    [ -s "$1/tests" ] || return 0
    read -r group start < "$1/tests"
    [ "$(started "$group" || true)" = "$start" ] || return 0
    kill -s TERM -- "-$group" "$group" 2> /dev/null || true
    wait "$group" 2> /dev/null || true # it has no end before if it is ours
    for _ in $(seq 50); do
        kill -s 0 -- "-$group" 2> /dev/null || return 0
        sleep 0.1
    done
    kill -s KILL -- "-$group" 2> /dev/null || true
}

# remove_processes: what runs that are gone have left outside of Docker: tests, engine, directory.
remove_processes() {
    for directory in "${TMPDIR:-/tmp}"/fabric-test-*; do
        [ -d "$directory" ] && [ ! -L "$directory" ] && [ -O "$directory" ] || continue
        run=$(echo "${directory##*/}" | runs_in)
        if [ -z "$run" ] || ! has_gone "$run"; then continue; fi
        stop_tests "$directory"
        if [ -s "$directory/docker.pid" ]; then
            engine=$(cat "$directory/docker.pid")
            if grep -qF "$directory" "/proc/$engine/cmdline" 2> /dev/null; then stop_engine "$directory"; fi
            engine=
        fi
        rm -rf "$directory" || true
    done
}

# remove_leftovers: what runs that are gone have left in this Docker engine.
remove_leftovers() {
    {
        docker ps --all --format '{{.Names}}'
        docker volume ls --format '{{.Name}}'
        docker network ls --format '{{.Name}}'
    } | runs_in | while read -r run; do
        if has_gone "$run"; then
            remove_all "$run"
            step "removed what the run $run has left"
        fi
    done
}

leave() {
    code=$?
    trap - EXIT
    trap '' INT TERM HUP
    [ -z "$tests" ] || [ -s "$work/tests" ] || echo "$tests $(started "$tests")" > "$work/tests"
    stop_tests "$work"
    if [ -n "${KEEP:-}" ]; then
        echo "Kept until the next start: $work${engine:+, the engine $engine at $DOCKER_HOST}." >&2
        exit "$code"
    fi
    if docker info > /dev/null 2>&1; then
        remove_all "${project#fabric-test-}"
    fi
    if [ -n "$engine" ]; then
        stop_engine "$work"
    fi
    rm -rf "$work" || true
    exit "$code"
}
if [ -z "${FABRIC_TEST_RUN:-}" ]; then
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
fi

# ── the engine ────────────────────────────────────────────────────────────────────────────────────

start_engine() {
    if docker info > /dev/null 2>&1; then
        step "a Docker engine runs: $(docker version --format '{{.Server.Version}}')"
        return
    fi
    command -v dockerd > /dev/null || cannot "no Docker engine runs, and there is no dockerd to start; install one: apt install docker.io iptables."
    [ "$(id -u)" = 0 ] || cannot "no Docker engine runs, and only root can start one."
    export DOCKER_HOST="unix://$work/docker.sock"
    iptables -S FORWARD 2> /dev/null | head -n 1 > "$work/forward" || true
    cat /proc/sys/net/ipv4/ip_forward > "$work/ip_forward"
    for storage in "" vfs; do
        dockerd --host "$DOCKER_HOST" --data-root "$cache/engine" --exec-root "$work/exec" \
            --pidfile "$work/docker.pid" ${storage:+--storage-driver "$storage"} > "$work/dockerd.log" 2>&1 &
        engine=$!
        for _ in $(seq 60); do
            if docker info > /dev/null 2>&1; then
                step "started a Docker engine: $(docker info --format '{{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}}')"
                return
            fi
            kill -0 "$engine" 2> /dev/null || break
            sleep 0.5
        done
        kill "$engine" 2> /dev/null || true
        wait "$engine" || true
        engine=
    done
    tail -n 20 "$work/dockerd.log" >&2
    cannot "the Docker engine does not start; above is the end of its log."
}

# stop_engine DIRECTORY: it leaves its bridge and its rules in place, and FORWARD closed to everybody else.
stop_engine() {
    forward=$(cat "$1/forward" 2> /dev/null) || forward=
    ip_forward=$(cat "$1/ip_forward" 2> /dev/null) || ip_forward=
    kill "$engine" 2> /dev/null || true
    for _ in $(seq 60); do
        kill -0 "$engine" 2> /dev/null || break
        sleep 0.5
    done
    wait "$engine" 2> /dev/null || true
    umount "$1/exec/netns/default" 2> /dev/null || true
    case $forward in
    *DOCKER*) return ;; # another engine's
    esac
    if [ "$ip_forward" = 0 ]; then echo 0 > /proc/sys/net/ipv4/ip_forward; fi
    ip link delete docker0 2> /dev/null || true
    for table in nat filter; do
        iptables -t "$table" -S 2> /dev/null | grep -E '^-A (PREROUTING|OUTPUT|POSTROUTING|FORWARD) .*(DOCKER|docker0|172\.1[78]\.)' |
            sed 's/^-A/-D/' | while read -r rule; do
            # shellcheck disable=SC2086 # its words
            iptables -t "$table" $rule 2> /dev/null || true
        done
        chains=$(iptables -t "$table" -S 2> /dev/null | sed -n 's/^-N \(DOCKER.*\)/\1/p')
        for chain in $chains; do iptables -t "$table" -F "$chain" || true; done
        for chain in $chains; do iptables -t "$table" -X "$chain" || true; done
    done
    # shellcheck disable=SC2086 # -P FORWARD ACCEPT
    [ -z "$forward" ] || iptables $forward || true
}

# Compose is a plugin that may be missing, and with it the way to build: then one is built.
need_compose() {
    if docker compose version > /dev/null 2>&1; then
        return
    fi
    # shellcheck disable=SC2016 # expanded in there
    if [ ! -x "$cache/config/cli-plugins/docker-compose" ]; then
        command -v go > /dev/null || cannot "there is no 'docker compose', and no Go to build it with; install Docker's Compose plugin, or Go."
        step "building docker compose $COMPOSE_VERSION, which is missing here"
        mkdir -p "$cache/config/cli-plugins"
        timeout 1200 sh -euc '
            cd "$1"
            source=$(go mod download -json "github.com/docker/compose/v2@$2" | sed -n "s/.*\"Dir\": \"\(.*\)\".*/\1/p")
            cp -r "$source" compose
            chmod -R u+w compose
            cd compose
            CGO_ENABLED=0 go build -trimpath -o ../docker-compose \
                -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$2" ./cmd
            ' - "$work" "$COMPOSE_VERSION" > "$work/go.log" 2>&1 || {
            tail -n 5 "$work/go.log" >&2
            cannot "docker compose could not be built."
        }
        mv "$work/docker-compose" "$cache/config/cli-plugins/docker-compose"
    fi
    export DOCKER_CONFIG="$cache/config"
    docker compose version > /dev/null || cannot "docker compose does not work."
}

# The first `docker` on the path that can build with BuildKit: with its plugin, or old enough to have
# it inside (before 23).
find_builder() {
    old=$IFS
    IFS=:
    for directory in $PATH; do
        IFS=$old
        [ -x "$directory/docker" ] || continue
        major=$("$directory/docker" version --format '{{.Client.Version}}' 2> /dev/null | cut -d. -f1)
        if "$directory/docker" buildx version > /dev/null 2>&1 || [ "${major:-99}" -lt 23 ]; then
            builder=$directory/docker
            return
        fi
    done
    IFS=$old
    cannot "no docker command here can build with BuildKit: install its buildx plugin."
}

# build TAG context, arguments…
build() {
    tag=$1
    shift
    DOCKER_BUILDKIT=1 timeout 900 "$builder" build --quiet --tag "$tag" "$@" > "$work/build.log" 2>&1 || {
        tail -n 30 "$work/build.log" >&2
        fail "the image $tag could not be built"
    }
}

# ── images ────────────────────────────────────────────────────────────────────────────────────────

# make_base SUITE PACKAGES: fabric-test/base:SUITE, Debian as debootstrap makes it.
make_base() {
    if docker image inspect "fabric-test/base:$1" > /dev/null 2>&1; then
        return
    fi
    if [ ! -s "$cache/$1.tar" ]; then
        command -v debootstrap > /dev/null || cannot "there is no debootstrap to make a base image with: apt install debootstrap, or set OFFICIAL=1."
        step "making a base image of Debian $1 with debootstrap"
        scripts=/usr/share/debootstrap/scripts
        [ -e "$scripts/$1" ] || set -- "$1" "$2" "$scripts/sid" # a suite that is newer than debootstrap
        timeout 900 debootstrap --variant=minbase --include="$2" \
            "$1" "$work/root" "" ${3:+"$3"} > "$work/debootstrap.log" 2>&1 || {
            tail -n 5 "$work/debootstrap.log" >&2
            cannot "debootstrap failed."
        }
        tar --directory "$work/root" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists \
            --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man \
            --create --file "$cache/$1.tar.new" .
        mv "$cache/$1.tar.new" "$cache/$1.tar"
        rm -rf "$work/root"
    fi
    docker import "$cache/$1.tar" "fabric-test/base:$1" > /dev/null
}

# The Python of the official base is in no release of Debian yet: the next one has it.
need_base() {
    if [ -n "${OFFICIAL:-}" ] || [ -n "${BASE:-}" ]; then
        return
    fi
    make_base forky ca-certificates,python3,python3-venv
    BASE=fabric-test/base:forky
}

build_programs() {
    set -- ${BASE:+--build-arg "BASE=$BASE"}
    if [ -z "${OFFICIAL:-}" ]; then # no compiler in the base, and perhaps none to be had
        set -- "$@" --build-arg COMPILE=
    fi
    certificates=${PIP_CERT:-$(python3 -m pip config get global.cert 2> /dev/null || true)}
    if [ -s "${certificates:-}" ]; then
        set -- "$@" --secret "id=ca.pem,src=$certificates"
    fi
    if [ -n "${PIP_INDEX_URL:-}" ]; then
        (umask 077 && printf '[global]\nindex-url = %s\n' "$PIP_INDEX_URL" > "$work/pip.conf")
        set -- "$@" --secret "id=pip.conf,src=$work/pip.conf"
    elif [ -s "${PIP_CONFIG_FILE:-}" ]; then
        set -- "$@" --secret "id=pip.conf,src=$PIP_CONFIG_FILE"
    fi
    for program in server client consumer; do
        build "fabric-test/$program" --file docker/Dockerfile --target "$program" "$@" .
        size=$(docker image inspect --format '{{.Size}}' "fabric-test/$program")
        step "built $program: $((size / 1000000)) MB"
    done
    if [ -n "${BASE:-}" ]; then
        size=$(docker image inspect --format '{{.Size}}' "$BASE")
        step "  of these, the base $BASE: $((size / 1000000)) MB"
    fi
}

build_stand_ins() {
    if [ -n "${OFFICIAL:-}" ]; then
        return
    fi
    if [ ! -e "$cache/kafka/.complete" ]; then
        command -v mvn > /dev/null || cannot "there is no mvn to fetch Kafka with: apt install maven, or set OFFICIAL=1."
        step "fetching Kafka's jars"
        timeout 600 mvn --quiet --batch-mode --file tests/lab/kafka-pom.xml dependency:copy-dependencies \
            -DincludeScope=runtime "-DoutputDirectory=$cache/kafka" > "$work/mvn.log" 2>&1 || {
            tail -n 5 "$work/mvn.log" >&2
            cannot "Kafka's jars could not be fetched."
        }
        touch "$cache/kafka/.complete"
    fi
    make_base bookworm ca-certificates
    mkdir "$work/stand-ins"
    cp docker/test/* "$work/stand-ins"
    cp -r "$cache/kafka" "$work/stand-ins/lib"
    for backend in postgres redis kafka; do
        build "fabric-test/$backend" --file "$work/stand-ins/stand-ins.Dockerfile" --target "$backend" \
            --build-arg BASE=fabric-test/base:bookworm "$work/stand-ins"
    done
    step "built what stands for PostgreSQL, Redis and Kafka"
    export POSTGRES_IMAGE=fabric-test/postgres REDIS_IMAGE=fabric-test/redis KAFKA_IMAGE=fabric-test/kafka
}

# ── what is tried ─────────────────────────────────────────────────────────────────────────────────

# Four that are free, side by side; the same inside and outside of the container.
find_ports() {
    python3 - << 'END'
import random, socket
while True:
    first = random.randrange(23000, 29000)
    try:
        for port in range(first, first + 6):
            with socket.socket() as probe:
                probe.bind(("0.0.0.0", port))
    except OSError:
        continue
    print(first)
    break
END
}

is_healthy() {
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]
}

# ask KEY WORD: a streamed answer by way of TLS, checked by the fabric's CA, into $work/answer.
ask() {
    printf 'Authorization: Bearer %s\n' "$1" > "$work/header"
    curl --silent --show-error --no-buffer --max-time 60 --cacert "$work/ca.pem" --header "@$work/header" \
        --header 'Content-Type: application/json' \
        --data "{\"model\": \"echo\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"$2\"}]}" \
        "https://localhost:$public_port/v1/chat/completions" > "$work/answer"
}

answered() {
    ask "$1" "$2" && grep -q "$2" "$work/answer" && [ "$(tail -n 2 "$work/answer" | head -n 1)" = "data: [DONE]" ]
}

operator() { # operator PATH: request to the API port with a management key
    printf 'Authorization: Bearer %s\n' "$management" > "$work/header"
    curl --silent --show-error --fail --max-time 20 --cacert "$work/ca.pem" --header "@$work/header" \
        "https://localhost:$api_port$1"
}

ledger_has() { # ledger_has COUNT: so many successful requests
    operator '/api/v1/requests?outcome=ok' > "$work/ledger" &&
        python3 -c 'import json, sys; sys.exit(len(json.load(sys.stdin)["data"]) != int(sys.argv[1]))' "$1" < "$work/ledger"
}

# run_node TOKEN: the client's image with the echo engine, on the host's network as at home.
run_node() {
    containers="$containers $project-echo $project-node"
    docker run --detach --name "$project-echo" --network host --read-only --cap-drop ALL --user 10001 \
        --entrypoint python fabric-test/client -m fabric_client.echo --port "$echo_port" --words-per-second 20 > /dev/null
    printf '%s\n' "$1" | docker run --rm --interactive --network host --read-only --tmpfs /tmp --cap-drop ALL \
        --volume "$project-node:/var/lib/fabric" fabric-test/client join --name box - > "$work/join.log" 2>&1 || {
        cat "$work/join.log" >&2
        fail "the node joins"
    }
    docker run --detach --name "$project-node" --network host --read-only --tmpfs /tmp --cap-drop ALL \
        --security-opt no-new-privileges --memory 256m --pids-limit 64 --volume "$project-node:/var/lib/fabric" \
        fabric-test/client run --name box --engine "http://localhost:$echo_port" > /dev/null
    until_true 60 "the node's container is healthy: linked" is_healthy "$project-node"
}

stop_node() {
    docker stop -t 30 "$project-node" > /dev/null
    expect "the node exits on SIGTERM" exited_well "$project-node"
    docker rm --force --volumes "$project-node" "$project-echo" > /dev/null
    docker volume rm "$project-node" > /dev/null
}

exited_well() {
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$1")" = 0 ]
}

is_locked_down() { # is_locked_down CONTAINER: user, root file system, capabilities, what is not in it
    docker exec "$1" sh -euc '
        test "$(id -u)" = 10001
        grep -q "^CapEff:.0000000000000000$" /proc/self/status
        grep -q "^NoNewPrivs:.1$" /proc/self/status
        touch /tmp/x
        for place in / /etc /usr /opt/fabric; do ! touch $place/x 2> /dev/null; done
        for tool in gcc cc ld make pip pip3 curl wget; do ! command -v $tool > /dev/null; done'
}

test_server() {
    step "the server alone, with its embedded store, cache and bus"
    name=$project-server
    containers="$containers $name"
    docker run --detach --name "$name" --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --memory 512m --pids-limit 128 --volume "$name:/var/lib/fabric" \
        --publish "$control_port:$control_port" --publish "$proxy_port:$proxy_port" \
        --publish "$public_port:$public_port" --publish "$api_port:$api_port" \
        --env FABRIC_SERVER_ADDRESS=localhost \
        --env "FABRIC_SERVER_CONTROL_PORT=$control_port" --env "FABRIC_SERVER_PROXY_PORT=$proxy_port" \
        --env "FABRIC_SERVER_PUBLIC_PORT=$public_port" --env "FABRIC_SERVER_API_PORT=$api_port" \
        fabric-test/server > /dev/null
    until_true 60 "its container is healthy" is_healthy "$name"
    expect "not root, read-only, no capabilities, no compilers" is_locked_down "$name"
    docker exec "$name" cat /var/lib/fabric/certs/ca.pem > "$work/ca.pem"
    key=$(docker exec "$name" fabric-server keys create alice 2> /dev/null)
    management=$(docker exec "$name" fabric-server keys create ops --management 2> /dev/null)
    run_node "$(docker exec "$name" fabric-server nodes invite 2> /dev/null)"
    until_true 30 "a streamed answer, over TLS" answered "$key" "Word-$began"
    until_true 10 "its row is in the ledger" ledger_has 1
    operator /metrics > "$work/metrics.server"

    ask "$key" "one two three four five six seven eight nine ten eleven twelve" &
    asking=$!
    sleep 0.5
    docker stop -t 70 "$name" > /dev/null
    wait "$asking" || fail "a running answer when the server is stopped"
    expect "a running answer is finished when the server is stopped" grep -qF "[DONE]" "$work/answer"
    expect "and the server ends by itself" exited_well "$name"
    docker start "$name" > /dev/null
    until_true 60 "it starts again with what it had" answered "$key" "Again-$began"
    stop_node
    docker rm --force --volumes "$name" > /dev/null
}

compose() {
    (cd "$work/stack/docker" && timeout 400 docker compose "$@")
}

in_postgres() { # in_postgres QUERY
    # shellcheck disable=SC2016 # expanded in there
    compose exec -T postgres sh -c 'PGPASSWORD=$(cat /run/secrets/postgres-password) psql -h 127.0.0.1 -U fabric -At -c "$1"' - "$1"
}

ledger_in_postgres() { # ledger_in_postgres COUNT
    [ "$(in_postgres "SELECT count(*) FROM ledger WHERE outcome = 'ok' AND model = 'echo'")" = "$1" ]
}

committed_in_kafka() { # the consumer's group has committed offsets in the ledger's topic
    compose exec -T kafka sh -c 'ls /var/lib/kafka/data' | grep -q '^request-ledger-'
}

test_stack() {
    step "the stack: server and consumer with PostgreSQL, Redis and Kafka"
    mkdir -p "$work/stack"
    cp -r docker "$work/stack/docker"
    cd "$work/stack/docker"
    rm -rf secrets .env
    ./setup.sh localhost > /dev/null
    cat >> .env << END
FABRIC_SERVER_CONTROL_PORT=$control_port
FABRIC_SERVER_PROXY_PORT=$proxy_port
FABRIC_SERVER_PUBLIC_PORT=$public_port
FABRIC_SERVER_API_PORT=$api_port
END
    cp -r secrets "$work/secrets"
    export FABRIC_SERVER_IMAGE=fabric-test/server FABRIC_CONSUMER_IMAGE=fabric-test/consumer FABRIC_NO_BUILD=1
    expect "the compose file is good" compose config --quiet
    expect "with --profile monitoring too" compose --profile monitoring config --quiet
    if command -v promtool > /dev/null; then
        expect "the alerts are good" promtool check rules monitoring/alerts.yml
    fi
    timeout 400 ./up.sh > "$work/up.log" 2>&1 || {
        cat "$work/up.log" >&2
        fail "docker/up.sh starts it"
    }
    step "  ok: docker/up.sh starts it, all of it healthy"
    expect "a second docker/up.sh changes nothing" timeout 400 ./up.sh
    # shellcheck disable=SC2016 # expanded in there
    expect "nor the secrets" sh -c 'for one in "$1"/*; do cmp "$one" "secrets/${one##*/}"; done' - "$work/secrets"
    cp secrets/ca.pem "$work/ca.pem"
    for service in server consumer; do
        expect "the $service: not root, read-only, no capabilities, no compilers" \
            is_locked_down "$(compose ps --quiet "$service")"
    done
    for service in postgres redis kafka; do
        # shellcheck disable=SC2016 # expanded in there
        expect "$service: not root, read-only, no capabilities" compose exec -T "$service" \
            sh -euc 'test "$(id -u)" != 0; ! touch /x 2> /dev/null; grep -q "^CapEff:.0000000000000000$" /proc/self/status'
    done
    key=$(cat secrets/first.key)
    management=$(compose exec -T server fabric-server keys create ops --management 2> /dev/null)
    run_node "$(sed -n 's/.*fabric-client join \(fjt1_[^ ]*\).*/\1/p' "$work/up.log")"
    until_true 30 "a streamed answer, over TLS" answered "$key" "Word-$began"
    until_true 60 "its row has come to PostgreSQL" ledger_in_postgres 1
    expect "it came through Kafka's topic request-ledger" committed_in_kafka
    until_true 10 "the api port shows it" ledger_has 1
    operator /metrics > "$work/metrics.stack"
    compose exec -T consumer python -c \
        'import urllib.request as r; print(r.urlopen("http://127.0.0.1:18082/metrics", timeout=9).read().decode())' > "$work/metrics.consumer"
    expect "alerts and dashboard name figures that exist" figures_exist

    compose stop consumer > /dev/null 2>&1
    until_true 30 "an answer while the consumer is away" answered "$key" "Away-$began"
    expect "is not in PostgreSQL yet" ledger_in_postgres 1
    compose start consumer > /dev/null 2>&1
    until_true 90 "its row arrives when the consumer is back" ledger_in_postgres 2
    compose stop redis kafka > /dev/null 2>&1
    until_true 30 "an answer while Redis and Kafka are away" answered "$key" "Alone-$began"
    compose start redis kafka > /dev/null 2>&1
    until_true 90 "its row comes when they are back" ledger_in_postgres 3
    compose down --timeout 60 > /dev/null 2>&1 || fail "docker compose down"
    timeout 400 ./up.sh > "$work/up.log" 2>&1 || {
        cat "$work/up.log" >&2
        fail "docker/up.sh starts it again"
    }
    until_true 60 "after down and up, key and node are still known" answered "$key" "Later-$began"
    until_true 90 "and the ledger goes on" ledger_in_postgres 4
    stop_node
    cd - > /dev/null
}

figures_exist() {
    python3 - "$work/stack/docker/monitoring" "$work"/metrics.* << 'END'
import json, re, sys
from pathlib import Path

monitoring, *files = map(Path, sys.argv[1:])
exist = set()
for file in files:
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", file.read_text(), re.M):
        exist |= {name, name.removesuffix("_total") + "_total"} if kind == "counter" else {name}
        if kind == "histogram":
            exist |= {f"{name}_{end}" for end in ("bucket", "sum", "count")}
missing = {
    f"{name} in {file}"
    for file in (monitoring / "alerts.yml", monitoring / "grafana/dashboards/fabric.json")
    for name in re.findall(r"\b(?:fabric|process)_\w+", file.read_text())
    if name not in exist
}
json.loads((monitoring / "grafana/dashboards/fabric.json").read_text())
sys.exit("\n".join(sorted(missing)) or 0)
END
}

# ── all of it ─────────────────────────────────────────────────────────────────────────────────────

run_tests() {
    need_compose
    find_builder
    need_base
    build_programs
    first=$(find_ports)
    control_port=$first proxy_port=$((first + 1)) public_port=$((first + 2)) api_port=$((first + 3)) echo_port=$((first + 4))
    if [ "$what" != stack ]; then test_server; fi
    if [ "$what" != server ]; then
        build_stand_ins
        test_stack
    fi
    step "all of it works"
}

if [ -n "${FABRIC_TEST_RUN:-}" ]; then
    run_tests
    exit
fi
remove_processes
start_engine
command -v python3 > /dev/null || cannot "there is no python3; install it: apt install python3."
remove_leftovers
export FABRIC_TEST_RUN="$project" FABRIC_TEST_WORK="$work" FABRIC_TEST_BEGAN="$began"
python3 -c 'import os, sys; os.setsid(); os.execvp("sh", ["sh", *sys.argv[1:]])' docker/test.sh "$what" &
tests=$!
echo "$tests $(started "$tests")" > "$work/tests"
code=0
wait "$tests" || code=$?
exit "$code"
