"""Cores that a process may use: its affinity, and the CPU quotas of control groups of both versions."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

import train_flux_inpaint as tfi
import training_run
from deepfashion_training import prepare
from training_run import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores: writes files of its control groups, and says in which ones this process is."""
    monkeypatch.setattr(cores, "allowed_cores", lambda: 64)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")

    def write(own: str = "0::/", **files: str) -> None:
        (tmp_path / "own").write_text(own + "\n")
        for name, content in files.items():
            path = Path(tmp_path, "cgroup", *name.split("__")[:-1], name.split("__")[-1].replace("cpu_", "cpu."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")

    return write


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 64), ("800000 100000", 8), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 64)],
)
def test_a_container_of_version_2_sees_its_own_quota_at_the_root(machine, quota, usable):
    machine(cpu_max=quota)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "usable"), [("-1", 64), ("400000", 4)])
def test_a_container_of_version_1(machine, mount, quota, usable):
    files = {f"{mount}__cpu_cfs_quota_us": quota, f"{mount}__cpu_cfs_period_us": "100000"}
    machine("9:memory:/docker/a\n4:cpu,cpuacct:/docker/a", **files)  # the path is the host's, and not here
    assert cores.usable_cores() == usable


def test_the_smallest_quota_on_the_way_to_the_root_counts_and_others_do_not(machine):
    machine(
        "0::/pod/job", pod__job__cpu_max="1200000 100000", pod__cpu_max="300000 50000", pod__other__cpu_max="1000 1000"
    )
    assert cores.usable_cores() == 6
    machine("4:cpu,cpuacct:/slice", cpu__slice__cpu_cfs_quota_us="3000", cpu__slice__cpu_cfs_period_us="1000")
    assert cores.usable_cores() == 3


def test_without_control_groups_the_affinity_counts(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "allowed_cores", lambda: 3)
    assert cores.usable_cores() == 3
    machine("0::/../..")
    assert cores.usable_cores() == 3


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ("flags\t\t: fpu amx_bf16 avx512f\n", True),
        ("flags\t\t: fpu avx512_bf16 avx512f\n", True),
        ("flags\t\t: fpu avx512f amx_tile\n", False),
        (None, False),
    ],
)
def test_products_in_bf16_are_where_linux_says_so(tmp_path, monkeypatch, said, there):
    monkeypatch.setattr(cores, "CPU_FACTS", tmp_path / "cpuinfo")
    if said is not None:
        cores.CPU_FACTS.write_text(said)
    assert cores.has_bf16_products() is there


def test_processes_of_prepare_and_threads_of_torch_follow(machine, tiny_args, accelerator, monkeypatch):
    machine(cpu_max="500000 100000")
    flags = ["--dataset_name", "a", "--output_dir", "b"]
    assert prepare.build_parser().parse_args(flags).num_proc == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    importlib.reload(training_run)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    importlib.reload(training_run)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)  # the trainer by itself, which loads torch first
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    tfi.start(tiny_args("--report_to", "none"))
    assert chosen == [5]
