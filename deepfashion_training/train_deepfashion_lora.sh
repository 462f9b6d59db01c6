#!/usr/bin/env bash
# Train a try-on LoRA: choose a preset, look at the machine, then run `accelerate launch` on
# train_deepfashion_lora.py beside this file, and hand on to it what this script is told by signals.
# See usage() below, or --help.
#
# It installs nothing, changes no directory (so relative paths stay the user's), and hands every argument that
# is not its own to train_deepfashion_lora.py, whole and in order.
set -euo pipefail

# What `make setup` installs; after a colon its name in requirements.txt, where that is another.
packages=(
  torch diffusers transformers accelerate peft datasets numpy PIL:Pillow safetensors huggingface_hub yaml:PyYAML
  jinja2:Jinja2 imagehash:ImageHash sklearn:scikit-learn matplotlib tqdm psutil tensorboard sentencepiece
  google.protobuf:protobuf torchmetrics
)

die() { # die STATUS MESSAGE
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

# The folder of this file, also when it is called through a symbolic link.
own_folder() {
  local file="${BASH_SOURCE[0]}" folder
  while [[ -L $file ]]; do
    folder="$(CDPATH='' cd -P -- "$(dirname -- "$file")" && pwd -P)"
    file="$(readlink -- "$file")"
    [[ $file == /* ]] || file="$folder/$file"
  done
  CDPATH='' cd -P -- "$(dirname -- "$file")" && pwd -P
}

preset_file() { # preset_file NAME|FILE: where it lies; nothing when it is unknown, which the wrapper will say
  if [[ -f "$here/presets/$1.yaml" ]]; then
    printf '%s\n' "$here/presets/$1.yaml"
  elif [[ -f $1 ]]; then
    printf '%s\n' "$1"
  fi
}

needed_gib() { # needed_gib NAME|FILE: the GPU memory that the preset asks for, 0 when it asks for none
  local file
  file="$(preset_file "$1")"
  [[ -n $file ]] || { echo 0; return; }
  awk '
    /^[^#]*gpu_memory_gib:/ { sub(/.*gpu_memory_gib:[ \t]*/, ""); gib = $0 + 0; exit }
    END { print gib + 0 }
  ' <"$file"
}

usage() {
  cat <<'USAGE'
usage: train_deepfashion_lora.sh [--quick-test | --h100 | --low-vram] [--embedded] [--plan] [--dry-run] [FLAG VALUE ...]

Train a LoRA that teaches FLUX-Fill try-on trousers, skirts and dresses. Without a preset flag: full.

USAGE
  local name flag
  for name in quick_test full h100 low_vram; do
    case $name in
      full) flag='(none)' ;;
      *) flag="--${name//_/-}" ;;
    esac
    awk -v flag="$flag" '
      /^about:/ { sub(/^about:[ \t]*/, ""); gsub(/^"|"[ \t]*$/, ""); about = $0 }
      /^[^#]*gpu_memory_gib:/ { sub(/.*gpu_memory_gib:[ \t]*/, ""); gpu = $0 + 0 }
      /^[^#]*disk_gib:/ { sub(/.*disk_gib:[ \t]*/, ""); disk = $0 + 0 }
      END { printf "  %-13s %s\n  %-13s needs a GPU with %s GiB and %s GiB of disk\n", flag, about, "", gpu, disk }
    ' <"$here/presets/$name.yaml"
  done
  cat <<'USAGE'
  --preset X    one of presets/*.yaml by name, or a file of your own like them
  --embedded    the small model and drawn wardrobe that come with the project: any machine, no network;
                --quick-test does this by itself where no GPU is large enough
  --upstream X  train through another script, such as that of nftblackmagic/catvton-flux; --upstream_check X says how
                it would be driven, and trains nothing
  --plan        what the run will take in time, memory and disk, and which flags suit this GPU, from some measured
                steps, or from a table where there is no GPU; with --gpu_hour_price X also in money. Trains nothing
  --dry-run     print the exact command and start nothing
  --help        this text

Every other flag goes to train_deepfashion_lora.py and the trainer, and wins over the preset. Processes: one per GPU
that CUDA_VISIBLE_DEVICES shows; on a CPU two, with --upstream one. Python: $PYTHON, else the repository's .venv, else
python3.

examples:
  bash train_deepfashion_lora.sh --quick-test
  bash train_deepfashion_lora.sh --h100 --plan --gpu_hour_price 2.50
  bash train_deepfashion_lora.sh --h100 --cloth_types lower,full --output_dir outputs/skirts
  CUDA_VISIBLE_DEVICES=1 bash train_deepfashion_lora.sh --low-vram --max_train_steps 500
USAGE
}

# Sets `python`, or fails.
find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    command -v -- "$PYTHON" >/dev/null 2>&1 || return 1
    python=$PYTHON
  elif [[ -x $root/.venv/bin/python ]]; then
    python=$root/.venv/bin/python
  else
    command -v python3 >/dev/null 2>&1 || return 1
    python=python3
  fi
}

show_help() {
  usage
  if find_python; then
    printf '\nThe flags of train_deepfashion_lora.py:\n\n'
    "$python" "$wrapper" --help 2>/dev/null || echo '(not available: it did not run with this Python)'
  fi
  printf '\nThe flags of the trainer: python %q --help\n' "$root/train_flux_inpaint.py"
}

# Prints the packages that "$python" lacks, without importing any. A folder called datasets in the working
# directory is no package, so that directory is left out of the search.
missing_packages() {
  # shellcheck disable=SC2016  # Python, not shell
  "$python" -c '
import importlib.util, sys
sys.path[:] = [entry for entry in sys.path if entry]
missing = []
for package in sys.argv[1:]:
    module, _, name = package.partition(":")
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        missing.append(name or module)
print(", ".join(missing))
' "${packages[@]}"
}

# Prints the memory in MiB of every GPU that the trainer will see, one a line; 0 where nvidia-smi does not know.
# CUDA reads CUDA_VISIBLE_DEVICES up to the first name that it does not know; so does this.
visible_gpus() {
  case ${ACCELERATE_USE_CPU:-} in
    1 | [Tt][Rr][Uu][Ee] | [Yy] | [Yy][Ee][Ss] | [Tt] | [Oo][Nn]) return ;; # what accelerate takes for true
  esac
  local listing
  listing="$(nvidia-smi --query-gpu=index,uuid,memory.total --format=csv,noheader,nounits 2>/dev/null)" || return 0
  awk -F ' *, *' -v limited="${CUDA_VISIBLE_DEVICES+yes}" -v wanted="${CUDA_VISIBLE_DEVICES-}" '
    $1 ~ /^[0-9]+$/ { number[++count] = $1; uuid[count] = $2; memory[count] = $3 + 0 }
    END {
      if (limited != "yes") { for (i = 1; i <= count; i++) print memory[i]; exit }
      parts = split(wanted, names, ",")
      for (part = 1; part <= parts; part++) {
        name = names[part]; gsub(/[ \t]/, "", name)
        if (name ~ /^MIG-/) { print 0; exit } # a slice: its size is not in this list, and CUDA shows only one
        for (i = 1; i <= count; i++)
          if ((name ~ /^[0-9]+$/ && name + 0 == number[i]) || (name ~ /^GPU-/ && index(uuid[i], name) == 1)) break
        if (i > count || (i in seen)) exit
        seen[i] = 1
        print memory[i]
      }
    }
  ' <<<"$listing"
}

gib() { awk -v mib="$1" 'BEGIN { printf "%.1f", mib / 1024 }'; } # gib MIB

enough() { awk -v mib="$1" -v need="$2" 'BEGIN { exit !(mib == 0 || mib >= need * 1024) }'; } # enough MIB GIB

# One line: what the preset needs, what is here, what to do instead.
too_small() {
  local found instead='' name
  if ((gpus == 0)); then
    found="none is visible here"
    [[ -z ${CUDA_VISIBLE_DEVICES+set} ]] || found+=" (CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES')"
  elif ((gpus == 1)); then
    found="the one here has $(gib "$smallest")"
  else
    found="the smallest of the $gpus here has $(gib "$smallest") (CUDA_VISIBLE_DEVICES can leave it out)"
  fi
  for name in full low_vram; do # the presets that ask for less
    awk -v other="$(needed_gib "$name")" -v need="$need" 'BEGIN { exit !(other < need) }' || continue
    case $name in
      full) instead+="the default preset ($(needed_gib full) GiB), " ;;
      low_vram) instead+="--low-vram ($(needed_gib low_vram) GiB, a 24 GB card), " ;;
    esac
  done
  printf '%s' "the preset $preset needs an NVIDIA GPU with $need GiB of memory, and $found; use ${instead}" \
    "--quick-test (any machine), or add --embedded for the small model that comes with the project"
}

# --- the arguments ---------------------------------------------------------------------------------------------------
here="$(own_folder)"
root="$(dirname -- "$here")"
wrapper="$here/train_deepfashion_lora.py"

preset=full
preset_flag='' # the flag that chose it
own_preset=()  # ("--preset" NAME) unless the user's arguments hold it
passed=()      # the user's arguments without the launcher's own
dry_run=no
embedded=no
check_only=no
plan=no
own_script=no # --upstream: trains through a script of the user's
look_only=no  # --upstream_check: about a script, whatever the machine

choose() { # choose NAME FLAG
  [[ -z $preset_flag ]] || die 2 "$preset_flag and $2 each choose a preset; give one of them"
  preset=$1
  preset_flag=$2
}

for argument in ${@+"$@"}; do
  case $argument in
    -h | --help)
      show_help
      exit 0
      ;;
  esac
done

while (($#)); do
  case $1 in
    --quick-test | --h100 | --low-vram)
      name="${1#--}"
      choose "${name//-/_}" "$1"
      ;;
    --dry-run) dry_run=yes ;;
    --preset)
      [[ $# -ge 2 && -n $2 && $2 != --* ]] || die 2 "--preset needs a value: a name from $here/presets or a file"
      choose "$2" "$1"
      passed+=("$1" "$2")
      shift
      ;;
    --preset=*)
      [[ -n ${1#--preset=} ]] || die 2 "--preset needs a value: a name from $here/presets or a file"
      choose "${1#--preset=}" --preset
      passed+=("$1")
      ;;
    *)
      [[ $1 != --embedded ]] || embedded=yes
      [[ $1 != --check ]] || check_only=yes
      [[ $1 != --plan ]] || plan=yes
      [[ $1 != --upstream && $1 != --upstream=* ]] || own_script=yes
      [[ $1 != --upstream_check && $1 != --upstream_check=* ]] || look_only=yes
      passed+=("$1")
      ;;
  esac
  shift
done
[[ $preset_flag == --preset ]] || own_preset=(--preset "$preset")

# --- the machine -----------------------------------------------------------------------------------------------------
gpus=0
smallest=0 # MiB; 0 when unknown
while IFS= read -r memory; do
  if ((gpus == 0 || memory < smallest)); then smallest=$memory; fi
  gpus=$((gpus + 1))
done < <(visible_gpus)

need="$(needed_gib "$preset")"
complaint=''
estimate_only=no # --plan where there is no GPU to measure on
layer=()
if [[ $embedded == no && $look_only == no && $need != 0 ]] && { ((gpus == 0)) || ! enough "$smallest" "$need"; }; then
  if [[ $preset == quick_test ]]; then
    found="no NVIDIA GPU is visible"
    ((gpus == 0)) || found="the GPU has $(gib "$smallest") GiB and the quick test of the full model needs $need"
    echo "note: $found, so this quick test runs --embedded: the small model that comes with the project" >&2
    layer=(--embedded)
  elif [[ $plan == yes ]]; then # a GPU that is too small is measured all the same: other flags may fit
    ((gpus > 0)) || estimate_only=yes
  else
    complaint="$(too_small)"
  fi
fi

if ! find_python; then
  [[ -z ${PYTHON:-} ]] || die 1 "PYTHON names '$PYTHON', which cannot be run; unset it or name a Python 3.10 to 3.13"
  die 1 "no Python was found; install Python 3.10 to 3.13 and run \`make setup\` in $root"
fi

# --- the command -----------------------------------------------------------------------------------------------------
arguments=(${own_preset[@]+"${own_preset[@]}"} ${layer[@]+"${layer[@]}"} ${passed[@]+"${passed[@]}"})

# --mixed_precision and --dynamo_backend only keep accelerate from listing the defaults it took: the trainer hands its
# own --mixed_precision to Accelerator. --gpu_ids all leaves the choice to CUDA_VISIBLE_DEVICES, whatever
# `accelerate config` once wrote.
processes=$((gpus > 0 ? gpus : 1))
command=("$python" -m accelerate.commands.accelerate_cli launch --quiet --num_processes "$processes" --num_machines 1
  --mixed_precision no --dynamo_backend no)
if ((gpus == 0)); then
  # On a CPU only the small model trains, whose products are so short that waiting for a second thread costs more than
  # it brings, while two processes share the pairs of a step well: benchmarks/README.md has figures of two cores.
  # accelerate starts several processes on a CPU only through MPI, so torchrun does. A script of somebody else's has one.
  command+=(--cpu --num_cpu_threads_per_process "${OMP_NUM_THREADS:-1}")
  [[ $own_script == yes ]] || command+=("$here/launch.py" --standalone --nproc_per_node 2)
elif ((gpus == 1)); then
  command+=(--gpu_ids all)
else
  # Port 0 is any free one, so that two runs can share a machine.
  command+=(--multi_gpu --gpu_ids all --main_process_port 0)
fi
[[ $estimate_only == no ]] || command=("$python")
command+=("$wrapper" ${arguments[@]+"${arguments[@]}"})

if [[ $dry_run == yes ]]; then
  [[ -z $complaint ]] || printf 'warning: %s\n' "$complaint" >&2
  printf -v line '%q ' "${command[@]}"
  printf '%s\n' "${line% }"
  exit 0
fi

missing="$(missing_packages)" || die 1 "$python does not run; unset PYTHON, or run \`make setup\` in $root"
[[ $look_only == no || -n $missing ]] || exec "$python" "$wrapper" ${passed[@]+"${passed[@]}"}
if [[ -n $complaint ]]; then
  # Wrong use is still worth exit status 2, but what the check thinks of models and tokens is not the point now.
  if [[ -z $missing ]]; then
    status=0
    answer="$("$python" "$wrapper" --check ${arguments[@]+"${arguments[@]}"} 2>&1)" || status=$?
    [[ $status != 2 ]] || { printf '%s\n' "$answer" >&2; exit 2; }
  fi
  die 1 "$complaint"
fi
[[ -z $missing ]] || die 1 "$python lacks $missing; run \`make setup\` in $root, which fills its .venv"
[[ $estimate_only == no ]] || exec "${command[@]}"

# accelerate hands on neither signals nor exit statuses. So the trainer's processes leave their numbers in a folder, and
# the first of them its status; a signal goes to them, and this script ends when the last of them has.
DEEPFASHION_LAUNCH="$(mktemp -d)" || die 1 "no temporary folder could be made; is the disk full?"
export DEEPFASHION_LAUNCH
trap 'rm -rf -- "$DEEPFASHION_LAUNCH"' EXIT

running() { # prints the trainer's processes that have not ended
  local file
  for file in "$DEEPFASHION_LAUNCH"/pid-*; do
    if [[ -e $file ]] && kill -0 "${file##*-}" 2>/dev/null; then printf '%s\n' "${file##*-}"; fi
  done
}

stopped=''  # the signal that this script got
launched='' # accelerate
told=' '    # processes that know of it

tell() { # tell SIGNAL: each of the trainer's processes
  local process
  for process in $(running); do
    told+="$process "
    kill -s "$1" "$process" 2>/dev/null || true
  done
}

# shellcheck disable=SC2329  # the traps call it
pass_on() { # pass_on SIGNAL
  stopped=$1
  if [[ -n $(running) ]]; then
    tell "$1"
  elif [[ -n $launched ]]; then
    kill -s TERM "$launched" 2>/dev/null || true # nothing has been loaded yet
  fi
}

trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

start() { # start COMMAND...: run it to its end, whatever signals come; sets status
  set -m # a process group of its own: Ctrl-C comes through this script, and once
  "$@" </dev/null & # in the background a question would wait for ever
  launched=$!
  set +m
  [[ -z $stopped ]] || kill -s TERM "$launched" 2>/dev/null || true
  while :; do
    status=0
    wait "$launched" || status=$?
    kill -0 "$launched" 2>/dev/null || break # a signal to this script also ends the wait
  done
}

# One process says what is wrong before several start.
start "$python" "$wrapper" --check ${arguments[@]+"${arguments[@]}"}
[[ $stopped != INT ]] || exit 130
[[ $stopped != TERM ]] || exit 143
[[ $status == 0 && $check_only == no ]] || exit "$status"
start "${command[@]}"
# What outlives accelerate has lost it to a signal: it is to save and end, once it can hear.
while processes="$(running)" && [[ -n $processes ]]; do
  for process in $processes; do
    [[ $told == *" $process "* ]] || tell TERM
  done
  sleep 0.2
done
# A rank that failed has stopped the others, so its status counts; otherwise the first rank's, which ends last.
failed="$(grep -hvxE '0|130|143' "$DEEPFASHION_LAUNCH"/status-* 2>/dev/null | head -n 1 || true)"
if [[ -n $failed ]]; then
  status=$failed
elif [[ -s $DEEPFASHION_LAUNCH/status-0 ]]; then
  status="$(cat "$DEEPFASHION_LAUNCH/status-0")"
elif [[ $stopped == INT ]]; then
  status=130
elif [[ $stopped == TERM ]]; then
  status=143
elif [[ -n $(compgen -G "$DEEPFASHION_LAUNCH/pid-*") ]]; then
  status=1
  printf '%s\n' "error: the trainer was killed and could say nothing: most often the machine's main memory was too small" \
    "(dmesg tells). The same command with --resume_from_checkpoint latest continues." >&2
fi
exit "$status"
