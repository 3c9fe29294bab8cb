#!/usr/bin/env bash
# The whole main job on this machine, in the folder demo/: a scene, its data set, a U-Net trained by two Horovod ranks,
# the map and its page. `make demo` calls it; each time it makes the run anew.
#
#   IMAGES='scenes/2019*.tif scenes/2020*.tif' LABELS=nlcd.tif    your own files instead of a generated scene
#   EPOCHS=5                                                       how long to train (default 25)
#
# IMAGES and LABELS hold one path, or one glob, spaces and all; or several words, quoted as in a shell:
# make demo IMAGES="'my scenes/*.tif' other.tif" LABELS='my labels.tif'
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=$PWD/.venv/bin/python
MAKE_SCENE=$PWD/scripts/make_scene.py

say() { printf '\ndemo: %s\n' "$*"; }
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}
hpcdl() {
  printf '\n$ hpcdl'
  printf ' %q' "$@"
  echo
  "$PYTHON" -m hpcdl "$@"
}

# find_words NAME VALUE: the paths and globs in the value, absolute and each ended by NUL. hpcdl itself expands the globs.
find_words() {
  "$PYTHON" - "$@" <<'PYTHON'
import glob, os, shlex, sys

name, value = sys.argv[1:]
try:
    words = [value] if os.path.exists(value) or glob.glob(value) else shlex.split(value)
except ValueError as error:
    sys.exit(f"demo: {name}={value}: {error}; quote its words as in a shell")
for word in words:
    if os.path.exists(word):
        print(os.path.abspath(word), end="\0")
    elif glob.glob(word):
        print(os.path.join(glob.escape(os.getcwd()), word), end="\0")
    else:
        sys.exit(f"demo: {name}: no file matches {word!r}; the path starts from {os.getcwd()}")
PYTHON
}

[[ -x $PYTHON ]] || die "no .venv yet: run make install"
STARTED=$SECONDS
mkdir -p demo
if [[ -n ${IMAGES:-}${LABELS:-} ]]; then
  [[ -n ${IMAGES:-} && -n ${LABELS:-} ]] || die "give both IMAGES and LABELS, or neither"
  # Through a file: an array filled from a process substitution would hide its failure.
  find_words IMAGES "$IMAGES" >demo/.words
  mapfile -d '' -t images <demo/.words
  find_words LABELS "$LABELS" >demo/.words
  mapfile -d '' -t labels <demo/.words
  rm demo/.words
  [[ ${#labels[@]} -eq 1 ]] || die "LABELS must be one file or glob, not ${#labels[@]} (quote a path that has spaces)"
else
  say "Making a scene (your own: make demo IMAGES=... LABELS=...)"
  "$PYTHON" "$MAKE_SCENE" demo/scene
  images=("$PWD/demo/scene/image.tif")
  labels=("$PWD/demo/scene/nlcd.tif")
fi

# Runs go to ./runs, and an hpcdl.yaml that a user keeps in the checkout does not count here.
cd demo
rm -rf data runs/demo map.tif map.png
hpcdl preprocess landcover --images "${images[@]}" --labels "${labels[0]}" --chip-px 64 --train-stride-px 32 --out data
hpcdl submit unet --data data --cluster local --ntasks-per-node 2 --name demo --wait \
  --set width=16 --set depth=3 --set optimizer.lr=3e-3 --set "epochs=${EPOCHS:-25}" --set checkpoint.epochs=5
hpcdl predict demo --images "${images[@]}" --labels "${labels[0]}" --region test --out map.tif
[[ -f map.png ]] || die "hpcdl predict ended well but left no demo/map.png"
say "done in $((SECONDS - STARTED)) s; the map:"
printf '%s\n' "$PWD/map.png"
