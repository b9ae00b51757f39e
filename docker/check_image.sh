#!/usr/bin/env bash
# Builds the Dockerfile over a Debian root made here, without an engine or a registry of images, and looks at what came out.
# As root, with apt:  make image-check        Needs some 15 GB below $WORK; some ten minutes the first time.
#
# BASE is made by debootstrap and holds what pip is told on this machine (its configuration, local wheels), so that the
# Dockerfile is built as it stands. buildah runs the steps by chroot: neither user namespaces nor overlayfs are asked for.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-/var/tmp/onward-image}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
TORCH_INDEX=${TORCH_INDEX:-https://pypi.org/simple}   # with a local CPU wheel of torch; else https://download.pytorch.org/whl/cpu
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot

say() { printf '== %s\n' "$*"; }
[ "$(id -u)" = 0 ] || { echo "run as root: debootstrap and chroot need it" >&2; exit 2; }
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq buildah debootstrap >/dev/null
fi
mkdir -p "$WORK"
storage=(--root "$WORK/storage" --runroot "$WORK/run")

if ! buildah "${storage[@]}" inspect --type image localhost/onward-base >/dev/null 2>&1; then
  say "a Debian 12 root by debootstrap"
  rm -rf "$WORK/root"
  debootstrap --variant=minbase bookworm "$WORK/root" "$MIRROR" >"$WORK/debootstrap.log"
  for file in /etc/apt/sources.list.d/*.sources; do
    if [ -e "$file" ]; then install -D -m 0644 "$file" "$WORK/root$file"; fi
  done
  # Under another name: the Dockerfile's own step makes the bundle of certificates anew.
  install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$WORK/root/etc/ssl/of-this-machine.crt"
  {
    printf '[global]\ncert = /etc/ssl/of-this-machine.crt\n'
    pip config list 2>/dev/null | sed -n "/^global\.cert=/d; s/^global\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p"
  } >"$WORK/root/etc/pip.conf"
  base=$(buildah "${storage[@]}" from scratch)
  buildah "${storage[@]}" copy -q "$base" "$WORK/root" / >/dev/null
  buildah "${storage[@]}" commit -q --rm "$base" localhost/onward-base >/dev/null
  rm -rf "$WORK/root"
fi

links=()                        # directories of wheels that pip is told of: seen while building, never in the image
for place in $(pip config list 2>/dev/null | grep -oE "(file://)?/[A-Za-z0-9._/-]+" | sort -u); do
  case $place in file://*) place=$(dirname "${place#file://}") ;; esac
  if [ -d "$place" ]; then links+=(--volume "$place:$place:ro"); fi
done
context=$PWD
if [ -d .git ]; then           # what is committed, as a clean checkout has it
  context=$WORK/context
  rm -rf "$context" && mkdir "$context" && git archive HEAD | tar -x -C "$context"
fi
say "docker/Dockerfile"
buildah "${storage[@]}" build --layers --file "$context/docker/Dockerfile" --ignorefile "$context/.dockerignore" "${links[@]}" \
  --build-arg BASE=localhost/onward-base --build-arg "TORCH_INDEX=$TORCH_INDEX" --tag onward:check "$context" 2>&1 | tail -n 40

say "what came out"
image=$(buildah "${storage[@]}" from onward:check)
trap 'buildah "${storage[@]}" rm "$image" >/dev/null' EXIT
run() { buildah "${storage[@]}" run "$image" -- "$@"; }
user=$(run id -u)
[ "$user" = 10001 ] || { echo "it runs as user $user" >&2; exit 1; }
run sh -c 'touch /app/flows/x 2>/dev/null && exit 1; touch /onward/x /mlflow/x /prefect/x'
run onward --help
run python -m pip check
run python -W ignore -c 'import mlflow.server.auth, asyncpg, psycopg, distributed, torch; print("torch", torch.__version__)'
run sh -c 'prefect version --omit-integrations 2>/dev/null | head -n 1; mlflow --version'
found=$(run sh -c 'find / -xdev \( -name .env -o -name .git -o -name "*.pem" -path "/app/*" -o -name store -path "/app/*" \) -not -path "/proc/*" 2>/dev/null || true')
[ -z "$found" ] || { echo "it holds what it should not: $found" >&2; exit 1; }
say "a run of the corpus stages inside"
buildah "${storage[@]}" copy -q --chown 10001:10001 "$image" "$context/configs" /onward/configs >/dev/null
run onward run configs/demo.yaml --until tokenize --slices 1 --json
say "done: user $user, $(buildah "${storage[@]}" images --format '{{.Size}}' onward:check)"
