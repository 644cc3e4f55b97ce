#!/usr/bin/env bash
# Check, install, build, run and measure on a Jetson, with JetPack and the wheel of this package.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: jetson.sh [--dry-run] COMMAND

  check                     what this Jetson has, what is missing, and how to get it
  install WHEEL             make a virtual environment that sees the system's TensorRT
  build BUNDLE [OPTION…]    build the engines of a bundle, on this very device
  run BUNDLE IMAGE…         classify pictures, .npy files or folders of them
  measure BUNDLE IMAGE…     the same with pinned clocks: exit rates, median and p99 latency

--dry-run prints the commands and runs none. Further options go to python -m compress.build_engines
(build) and python -m compress.dispatch (run, measure).

environment (default):
  VENV      the virtual environment (~/early-exit)
  PYTHON    the system's Python, which sees TensorRT (python3)
  RESULTS   folder for the files of a measurement (.)
  WARM_UP   images at the start of a measurement that are not counted (20)
  SUDO      how to become root for nvpmodel and jetson_clocks (sudo, unless root already)

exit codes: 0 done, 2 usage, 3 bad input, 4 something is missing, or those of the program that ran
TEXT
}

VENV=${VENV:-$HOME/early-exit}
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-.}
WARM_UP=${WARM_UP:-20}
ROOT=${JETSON_ROOT:-} # tests put a tree of their own in the place of /
if [[ $(id -u) == 0 ]]; then
  SUDO=${SUDO-}
fi
SUDO=${SUDO-sudo}

readonly USAGE=2 BAD_INPUT=3 MISSING=4
readonly LITTLE_MEMORY_MB=1024 # TensorRT's builder alone takes some hundred
dry_run=false

fail() { # CODE MESSAGE
  echo "jetson.sh: error: $2" >&2
  exit "$1"
}

# Run a command, or print it as one could type it.
do_or_tell() {
  if $dry_run; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

as_root() {
  if [[ -n $SUDO ]]; then
    do_or_tell "$SUDO" "$@"
  else
    do_or_tell "$@"
  fi
}

# Print "MAJOR.MINOR" of the L4T release, such as 36.4; nothing where this is no Jetson.
l4t_release() {
  local file=$ROOT/etc/nv_tegra_release
  if [[ -r $file ]]; then
    sed -nE '1s/^# R([0-9]+) \(release\), REVISION: ([0-9]+).*/\1.\2/p' "$file"
  fi
}

# Print "JetPack|target of the export|Python|TensorRT" of a release; fail where it is unknown.
jetpack_of() {
  case $1 in
    35.[2-6]) echo '5.1|jetpack5.1|3.8|8.5.2' ;;
    36.[23]) echo '6.0|jetpack6.0|3.10|8.6.2' ;;
    36.[45]) echo '6.1 or 6.2|jetpack6.2|3.10|10.3.0' ;;
    38.[24]) echo '7.0 or 7.1|jetpack7|3.12|10.13.3' ;;
    39.2) echo '7.2|jetpack7|3.12|10.16.2' ;;
    *) return 1 ;;
  esac
}

missing=0

lacks() { # WHAT HOW
  echo "  MISSING  $1"
  echo "           $2"
  missing=$((missing + 1))
}

has() {
  echo "  ok       $1"
}

check_release() {
  local release facts jetpack target python tensorrt
  release=$(l4t_release)
  if [[ -z $release ]]; then
    lacks "no L4T release in $ROOT/etc/nv_tegra_release" \
      'this is no Jetson, or not its own system (a container?)'
  elif facts=$(jetpack_of "$release"); then
    IFS='|' read -r jetpack target python tensorrt <<<"$facts"
    has "L4T $release: JetPack $jetpack, which has Python $python and TensorRT $tensorrt"
    echo "           export bundles with --target $target"
  elif [[ ${release%%.*} -lt 35 || $release == 35.[01] ]]; then
    lacks "L4T $release has a TensorRT before 8.5, which cannot run the engines" \
      "flash JetPack 5.1 or newer"
  else
    echo "  unknown  L4T $release is not among the releases this script knows (35.2 to 39.2)"
    echo "           go on if the TensorRT below is 8.5 or newer, and export for its version"
  fi
}

# Say whether a Python can import a module, and its version.
check_module() { # PYTHON MODULE HOW
  local version
  if version=$("$1" -c "import $2; print($2.__version__)" 2>/dev/null); then
    has "$2 $version"
  else
    lacks "$2 cannot be imported by $1" "$3"
  fi
}

check_memory() {
  local file=$ROOT/proc/meminfo free_mb
  free_mb=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' "$file" 2>/dev/null || true)
  if [[ -z $free_mb ]]; then
    echo "  unknown  free memory ($file has no MemAvailable)"
  elif ((free_mb < LITTLE_MEMORY_MB)); then
    lacks "$free_mb MB of memory free, less than the $LITTLE_MEMORY_MB that building engines may take" \
      "close programs, leave the desktop (sudo systemctl isolate multi-user.target) or add swap"
  else
    has "$free_mb MB of memory free"
  fi
}

check_tool() { # NAME
  if command -v "$1" >/dev/null; then
    has "$1"
  else
    lacks "$1 is not on PATH" 'it comes with JetPack; is /usr/sbin on PATH?'
  fi
}

check() {
  if $dry_run; then
    echo "+ read $ROOT/etc/nv_tegra_release $ROOT/proc/meminfo"
    for module in tensorrt numpy PIL; do
      do_or_tell "$PYTHON" -c "import $module"
    done
    do_or_tell "$VENV/bin/python" -c 'import compress, numpy, tensorrt'
    return
  fi
  echo "This Jetson:"
  check_release
  check_module "$PYTHON" tensorrt 'sudo apt-get install python3-libnvinfer'
  check_module "$PYTHON" numpy 'sudo apt-get install python3-numpy'
  check_memory
  check_tool nvpmodel
  check_tool jetson_clocks
  if "$PYTHON" -c 'import PIL' 2>/dev/null; then
    has 'Pillow, so pictures can be read'
  else
    echo "  without  Pillow: only .npy files can be read (or: sudo apt-get install python3-pil)"
  fi
  if "$VENV/bin/python" -c 'import compress, numpy, tensorrt' 2>/dev/null; then
    has "this package, in $VENV"
  else
    lacks "$VENV/bin/python cannot import this package, numpy and tensorrt" 'jetson.sh install WHEEL'
  fi
  if ((missing)); then
    fail $MISSING "$missing of the things above are missing"
  fi
}

# JetPack has neither pip nor ensurepip; where pip is missing, a pure wheel is unpacked as it is.
install() {
  [[ $# == 1 ]] || fail $USAGE "install takes one WHEEL; received $# arguments"
  [[ -r $1 && $1 == *.whl ]] || fail $BAD_INPUT "wheel $1 is not a readable .whl file; check the path"
  [[ ! -e $VENV || -e $VENV/pyvenv.cfg ]] ||
    fail $BAD_INPUT "VENV is $VENV, which exists and is no virtual environment; give another folder"
  local site
  do_or_tell "$PYTHON" -m venv --clear --without-pip --system-site-packages "$VENV"
  if $dry_run || "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    do_or_tell "$VENV/bin/python" -m pip install --quiet --no-deps --no-index --ignore-installed "$1"
  else
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$VENV/bin/python" -m zipfile -e "$1" "$site"
  fi
  if ! $dry_run; then
    "$VENV/bin/python" -m compress.dispatch -h >/dev/null ||
      fail $MISSING "the installed package does not start; see above, and run: jetson.sh check"
    echo "installed in $VENV"
  fi
}

need_package() {
  $dry_run || [[ -x $VENV/bin/python ]] ||
    fail $MISSING "$VENV/bin/python does not exist; run first: jetson.sh install WHEEL"
}

need_bundle() { # COUNT WORDS ARGUMENT…
  local least=$1 words=$2
  shift 2
  [[ $# -ge $least ]] || fail $USAGE "expected $words; received $# arguments"
  [[ -r $1/manifest.json ]] ||
    fail $BAD_INPUT "bundle $1 has no manifest.json; expected what python -m compress.export_trt wrote"
}

# Say when a bundle was exported for another JetPack than this one: its operators may not build.
compare_target() { # BUNDLE
  local facts target ours
  facts=$(jetpack_of "$(l4t_release)") || return 0
  ours=$(cut -d'|' -f2 <<<"$facts")
  target=$(sed -nE 's/^  "target": *"([^"]*)".*/\1/p' "$1/manifest.json" | head -n 1)
  if [[ -n $target && $target != "$ours" ]]; then
    echo "jetson.sh: note: bundle $1 was exported with --target $target, this Jetson is $ours;" \
      "if building fails, export it again" >&2
  fi
}

build() {
  need_bundle 1 'build BUNDLE' "$@"
  need_package
  compare_target "$1"
  do_or_tell "$VENV/bin/python" -m compress.build_engines "$@"
}

run() {
  need_bundle 2 'run BUNDLE IMAGE…' "$@"
  need_package
  do_or_tell "$VENV/bin/python" -m compress.dispatch "$@"
}

clocks='' # where the clocks are stored while they are pinned

restore_clocks() {
  local stored=$clocks
  if [[ -z $stored ]]; then
    return
  fi
  clocks=''
  as_root jetson_clocks --restore "$stored" ||
    fail $MISSING "the clocks could not be restored; do it with: sudo jetson_clocks --restore $stored"
  $dry_run || rm -rf "${stored%/*}"
}

# Keep the clocks at their highest until this script ends, however it ends.
pin_clocks() {
  local folder
  if $dry_run; then
    folder=${TMPDIR:-/tmp}/jetson-clocks
  else
    command -v jetson_clocks >/dev/null || fail $MISSING "jetson_clocks is not on PATH; run: jetson.sh check"
    folder=$(mktemp -d)
  fi
  # jetson_clocks asks before it overwrites, so the file must be a new one.
  as_root jetson_clocks --store "$folder/clocks.txt" ||
    fail $MISSING "the clocks could not be stored, so they were left alone"
  clocks=$folder/clocks.txt
  trap restore_clocks EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  as_root jetson_clocks
}

power_mode() {
  as_root nvpmodel -q || echo 'power mode: nvpmodel -q failed'
}

# Latency without the images of the warm-up; exit rates over all images.
summarise() { # FILE
  "$VENV/bin/python" - "$1" "$WARM_UP" <<'PYTHON'
import json
import sys

import numpy as np

with open(sys.argv[1], encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
summary = next((line["summary"] for line in lines if "summary" in line), None)
if summary is None:
    sys.exit("jetson.sh: error: the run ended before its summary; see the messages above")
latencies = [line["latency_ms"] for line in lines if "latency_ms" in line]
cold = min(int(sys.argv[2]), len(latencies) // 2)
print(f"{summary['images']} images, {summary['errors']} with errors, by {summary['backend']}")
print("exit rates " + ", ".join(
    f"{number}: {'-' if rate is None else f'{rate:.1%}'}"
    for number, rate in enumerate(summary["exit_rates"])
))
if latencies:
    warm = latencies[cold:]
    median, p99 = np.percentile(warm, [50, 99])
    print(f"latency {median:.3f} ms median, {p99:.3f} ms p99, {np.mean(warm):.3f} ms mean")
    print(f"of {len(warm)} images; the first {cold} are not counted")
    if sum(warm) < 10_000:
        print(f"note: {sum(warm) / 1000:.1f} s in the network; 10 s or more make steadier figures")
medians = summary.get("segment_ms_median", [])
if medians:
    print("segments " + ", ".join(
        f"{number}: {'-' if value is None else f'{value:.3f} ms'}"
        for number, value in enumerate(medians)
    ))
PYTHON
}

describe() { # BUNDLE
  local release
  release=$(l4t_release)
  echo "bundle $1, L4T ${release:-unknown}, $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  power_mode
}

measure() {
  need_bundle 2 'measure BUNDLE IMAGE…' "$@"
  need_package
  local dispatch=("$VENV/bin/python" -m compress.dispatch "$@" --json --times --quiet) status=0 stem
  if $dry_run; then
    power_mode
    pin_clocks
    do_or_tell "${dispatch[@]}"
    return
  fi
  stem=$RESULTS/measurement-$(date -u +%Y%m%dT%H%M%SZ)
  mkdir -p "$RESULTS"
  pin_clocks
  describe "$1" | tee "$stem.txt"
  "${dispatch[@]}" >"$stem.jsonl" || status=$? # images with errors do not spoil the others
  summarise "$stem.jsonl" | tee -a "$stem.txt" || ((status)) || status=1
  echo "written: $stem.txt $stem.jsonl"
  return "$status"
}

main() {
  if [[ ${1-} == --dry-run ]]; then
    dry_run=true
    shift
  fi
  local command=${1-}
  case $command in
    check | install | build | run | measure)
      shift
      "$command" "$@"
      ;;
    -h | --help) usage ;;
    *)
      usage >&2
      fail $USAGE "${command:+unknown command $command; }expected one of check, install, build, run, measure"
      ;;
  esac
}

main "$@"
