"""Start a training run on this machine: check the flags, choose processes, hand signals on, and end as they end.

``train_deepfashion_lora.sh`` runs this file. It starts one process per visible GPU, or two on a CPU, by itself:
accelerate and torchrun hand Ctrl-C on as another signal or not at all, and torchrun kills after 30 s, which may be too
short for a checkpoint.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # run by path: the package is found from here, and its folders do not become top-level names
    sys.path[0] = str(HERE.parent)

from deepfashion_training.cli import FlagParser, Preset, load_preset, run_command  # noqa: E402
from deepfashion_training.run_arguments import PRESET_FLAGS, build_parser, parse, smaller_steps  # noqa: E402
from training_run.cores import ON_CPU, usable_cores  # noqa: E402
from training_run.processes import process_state  # noqa: E402
from training_run.stopping import LAUNCHER  # noqa: E402

TRAIN = HERE / "train_deepfashion_lora.py"
ACCELERATE_CONFIG = HERE / "accelerate.yaml"
#: Exit codes of a process that a signal has stopped: by itself, after saving, or at once.
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
#: Seconds that other processes have to end after one has failed.
PATIENCE = 30.0

EXAMPLES = """examples:
  bash train_deepfashion_lora.sh --quick-test
  bash train_deepfashion_lora.sh --h100 --plan --gpu_hour_price 2.50
  bash train_deepfashion_lora.sh --h100 --cloth_types lower,full --output_dir outputs/skirts
  CUDA_VISIBLE_DEVICES=1 bash train_deepfashion_lora.sh --low-vram --max_train_steps 500

A value comes from the command line, else from the preset, else it is the default above. Results go to outputs/PRESET
unless --output_dir names another folder. Processes: one per GPU that CUDA_VISIBLE_DEVICES shows; on a CPU two, with
--upstream one. --quick-test adds --embedded by itself where no GPU is large enough. Python: $PYTHON, else the
repository's .venv, else python3."""

#: Prints as JSON the GiB of memory of the GPUs that CUDA shows, and what keeps PyTorch from those that it does not. A
#: process of its own, so that the launcher holds no GPU.
ASK_CUDA = """import json, torch
from training_run.guards import gpu_fault
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
print(json.dumps([[torch.cuda.get_device_properties(gpu).total_memory / 2**30 for gpu in gpus], gpu_fault()]))"""


def launcher_parser() -> FlagParser:
    """The flags of the launcher: those of a training run, and ``--dry-run``."""
    parser = build_parser()
    parser.prog = "train_deepfashion_lora.sh"
    parser.usage = f"%(prog)s [{' | '.join(PRESET_FLAGS)}] [--embedded] [--plan] [--dry-run] [FLAG VALUE ...]"
    group = next(group for group in parser._action_groups if group.title == "run")
    group.add_argument("--dry-run", action="store_true", help="print a command that does the same, and start nothing")
    return parser


def presets_text() -> str:
    """The presets, each with the flag that chooses it and what it needs."""
    lines = ["presets:"]
    for flag, name in {"(none)": "full", **PRESET_FLAGS}.items():
        preset = load_preset(name)
        lines.append(f"  {flag:<13} {preset.about}")
        lines.append(f"  {'':<13} needs a GPU with {preset.gpu_memory_gib:g} GiB and {preset.disk_gib:g} GiB of disk")
    return "\n".join(lines)


def missing_packages() -> list[str]:
    """Packages of ``requirements.txt`` that this Python lacks; none is imported."""
    missing = []
    for name in re.findall(r"^[\w-]+", (HERE.parent / "requirements.txt").read_text("utf-8"), re.MULTILINE):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return list(dict.fromkeys(missing))


def visible_gpus() -> list[float]:
    """GiB of memory of every GPU that the trainer will see. Raises ``ValueError`` where PyTorch cannot use one."""
    hidden = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "y", "yes", "t", "on")  # as accelerate
    if hidden or shutil.which("nvidia-smi") is None:  # which spares machines without a driver the start of torch
        return []
    told = subprocess.run(
        [sys.executable, "-c", ASK_CUDA], capture_output=True, text=True, check=False, cwd=HERE.parent
    )
    if told.returncode:
        raise ValueError(f"PyTorch does not start: {(told.stderr.strip().splitlines() or ['no word'])[-1]}")
    gpus, fault = json.loads(told.stdout.splitlines()[-1])
    if fault:
        raise ValueError(fault)
    return [float(gib) for gib in gpus]


def look_at_gpus(args: argparse.Namespace) -> tuple[list[float], str | None]:
    """``visible_gpus``, and why PyTorch can use none where the machine has one.

    Raises ``ValueError`` with that for a run that needs one; others are warned, and ``--check`` says it with the rest.
    """
    try:
        return visible_gpus(), None
    except ValueError as error:
        if not (args.embedded or args.upstream_check or args.check or args.dry_run):
            raise ValueError(f"{error}, or add --embedded, the small model of the project") from error
        if not args.check:
            sys.stderr.write(f"warning: {error}\n")
        return [], str(error)


def too_small(preset: Preset, gpus: list[float]) -> str | None:
    """What the preset needs and what is here instead, or None where it fits."""
    need = preset.gpu_memory_gib
    if not need or (gpus and min(gpus) >= need):
        return None
    found = f"the smallest one here has {min(gpus):.1f}" if gpus else "none is visible here"
    return f"the preset {preset.name} needs an NVIDIA GPU with {need:g} GiB of memory, and {found}"


def work(argv: list[str]) -> int:
    """The whole launcher; returns the exit code."""
    parser, missing = launcher_parser(), missing_packages()
    if {"-h", "--help"} & set(argv):
        parser.epilog = EXAMPLES if missing else f"{presets_text()}\n\n{EXAMPLES}"
        parser.print_help()
        return 0
    if missing:
        fix = f"run `make setup` in {HERE.parent}, which fills its .venv"
        raise ValueError(f"{sys.executable} lacks {', '.join(missing)}; {fix}")
    args, _ = parse(argv, parser, load=False)
    words = [word for word in argv if word != "--dry-run"]
    (gpus, fault), preset, complaint = look_at_gpus(args), load_preset(args.preset), None
    if not (args.embedded or args.upstream_check or fault):
        complaint = too_small(preset, gpus)
    if complaint and preset.of_project and preset.name == "quick_test":
        sys.stderr.write(f"note: {complaint}, so this quick test runs --embedded: the small model of the project\n")
        complaint, args.embedded, words = None, True, ["--embedded", *words]
    # A plan without a GPU is an estimate, by one process. A GPU that is too small is measured: other flags may fit.
    alone = args.check or args.upstream_check or (args.plan and complaint is not None and not gpus)
    if complaint and not (args.plan or args.check):
        fits = [flag for flag, name in PRESET_FLAGS.items() if not too_small(load_preset(name), gpus)]
        complaint += f"; use {''.join(f'{flag}, or ' for flag in fits)}--embedded, the small model of the project"
        if not args.dry_run:
            raise ValueError(complaint)
        sys.stderr.write(f"warning: {complaint}\n")
    count = 1 if alone else len(gpus) or (1 if args.upstream else 2)
    on_cpu = not gpus and not (fault and args.check)  # the check is to see what the launcher saw
    command, environments = [sys.executable, str(TRAIN), *words], processes(count, on_cpu=on_cpu)
    if args.dry_run:
        if (steps := smaller_steps(words)) and not args.upstream:
            args, script = parse(words)
            from deepfashion_training.plan import say_what_fits  # after parse, which keeps its libraries quiet

            args.check = True  # which is to say it for cards that are not here, too
            say_what_fits(args, script, process_state(), steps)
        sys.stdout.write(f"{as_one_command(command, environments)}\n")
        return 0
    return supervise(command, environments)


def processes(count: int, on_cpu: bool) -> list[dict[str, str]]:
    """What the environment of each process has beside this one's."""
    shared = {name: os.environ.get(name, value) for name, value in ON_CPU.items()} if on_cpu else {}
    if count == 1:
        return [shared]
    with socket.socket() as free:  # any port, so that two runs can share a machine
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group = {**shared, **address, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def as_one_command(command: list[str], environments: list[dict[str, str]]) -> str:
    """A line for a shell that does without this launcher what it would do: `accelerate launch` on GPUs.

    It gets a configuration of ours, and as many threads as PyTorch takes by itself: one, if accelerate chose. On a CPU
    `accelerate launch` starts a single process, so several of them are torchrun's.
    """
    python, script, *flags = command
    count = str(len(environments))
    on_cpu = {name: value for name, value in environments[0].items() if name in ON_CPU}
    start: list[str] = []
    if not on_cpu:
        start = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(ACCELERATE_CONFIG)]
        start += ["--num_processes", count, *(["--multi_gpu"] if count != "1" else [])]
        if "OMP_NUM_THREADS" not in os.environ:
            start += ["--num_cpu_threads_per_process", str(usable_cores())]
    elif count != "1":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]
    words = [python, *start, script, *flags]
    settings = [f"{name}={shlex.quote(value)}" for name, value in on_cpu.items()]
    return " ".join([*settings, shlex.join(words)])


def supervise(command: list[str], environments: list[dict[str, str]]) -> int:
    """Run ``command`` once in each of ``environments`` until all have ended; returns the exit code.

    Signals go to every process, which has all the time that it needs to save. When one process fails the others are
    ended, and its exit code counts; else that of the first process does.
    """
    told: list[int] = []  # signals for the processes

    def note(signum: int, _frame: Any) -> None:
        told.append(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, note)
    # In sessions of their own: Ctrl-C in a terminal comes through here, and once.
    inherited = {**os.environ, LAUNCHER: str(os.getpid())}  # by which they see it end
    children = [
        subprocess.Popen(command, env={**inherited, **environment}, stdin=subprocess.DEVNULL, start_new_session=True)
        for environment in environments
        if not told
    ]
    handed_on, failed, ended_at = 0, 0, 0.0
    while running := [child for child in children if child.poll() is None]:
        codes = [child.returncode for child in children if child.returncode]
        failed = failed or next((code for code in codes if code not in STOPPED), 0)
        ended_at = ended_at or (time.monotonic() if codes else 0.0)
        waited_enough = codes and time.monotonic() - ended_at > PATIENCE
        if not told and (failed or waited_enough):
            told.append(signal.SIGTERM)
        elif failed and waited_enough:
            told.append(signal.SIGKILL)
        for number in told[handed_on:]:
            for child in running:
                child.send_signal(number)
            handed_on += 1
        time.sleep(0.1)
    codes = [child.returncode for child in children]
    failed = failed or next((code for code in codes if code and code not in STOPPED), 0)
    if failed < 0:
        sys.stderr.write(
            f"error: {signal.Signals(-failed).name} has ended the trainer before it could say why: most often the "
            "machine's main memory was too small (dmesg tells). The same command with --resume_from_checkpoint latest "
            "continues.\n"
        )
        return 1
    code = failed or (codes[0] if codes else -told[0])
    return code if code >= 0 else 128 - code


def main(argv: list[str] | None = None) -> int:
    """Run the launcher with ``argv``; returns the exit code."""
    return run_command("train_deepfashion_lora", argv, work, "nothing was started")


if __name__ == "__main__":
    sys.exit(main())
