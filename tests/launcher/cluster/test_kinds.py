"""What each kind of launcher writes, read again by what would read it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_recipe import small_config, write_config

from recloom.launcher.cli import main

NODES = [{"address": "10.0.0.1", "gpus": 8}, {"address": "10.0.0.2", "gpus": 8}]
SECRET = "hf_do_not_write_me_down"


class Setting:
    """An experiment and a cluster in a shared folder, and fake commands that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "experiment.yaml"
        write_config(self.config, small_config(folder / "run", folder / "model"))
        self.launch = folder / "run/launch"

    def cluster(self, kind: str, **settings: Any) -> Path:
        raw = {"kind": kind, "shared": str(self.folder), "interface": "lo", "nodes": NODES, **settings}
        return write_config(self.folder / f"{kind}.yaml", {k: v for k, v in raw.items() if v is not None})

    def fake(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    def everything_written(self) -> str:
        files = [path for path in self.folder.rglob("*") if path.is_file() and "bin" not in path.parts]
        return "\n".join(path.read_text(errors="replace") for path in files)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    made = Setting(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    return made


def run(setting: Setting, cluster: Path, *arguments: str) -> int:
    return main(["launch", str(setting.config), "--cluster", str(cluster), *arguments])


def slurm(setting: Setting, **settings: Any) -> Path:
    return setting.cluster("slurm", **{"nodes": 2, "gpus": 8, "time_limit": "1-00:00:00", **settings})


def kubernetes(setting: Setting) -> Path:
    pods = {"image": "registry.example/recloom:1", "volume_claim": "recloom", "secret": "recloom-tokens"}
    return setting.cluster("kubernetes", nodes=3, gpus=4, memory="512Gi", **pods)


def test_dry_run_prints_all_and_writes_nothing(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    clusters = {
        "deepspeed --log_level error --hostfile": setting.cluster("hostfile"),
        "--node 1  # on 10.0.0.2": setting.cluster("per_node"),
        "submit.sh": slurm(setting),
        "kubectl apply -f": kubernetes(setting),
    }
    for command, cluster in clusters.items():
        assert run(setting, cluster, "--dry-run", "--training.epochs", "7") == 0
        told = capsys.readouterr().out
        assert command in told.partition("--- commands")[2]
        assert "epochs: 7" in told and "GLOO_SOCKET_IFNAME" in told or cluster.stem == "per_node"
        assert SECRET not in told
    assert not (setting.folder / "run").exists()


def test_mistakes_are_sentences(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = setting.cluster("per_node")
    assert run(setting, cluster, "--run_dir", "/elsewhere/run") == 2
    assert "run_dir = '/elsewhere/run': outside of the cluster's shared" in capsys.readouterr().err
    assert run(setting, cluster, "--restarts", "-1") == 2
    assert run(setting, cluster, "--node", "2") == 2
    assert "--node 2: the cluster has 2 nodes: give a number from 0 to 1." in capsys.readouterr().err
    assert run(setting, cluster, "--seeds", "[1, 2]") == 2
    assert run(setting, setting.folder / "nowhere.yaml") == 2
    lacking = setting.cluster("per_node", interface="nosuch0")
    assert run(setting, lacking, "--node", "0") == 2
    assert "has no such interface with an IPv4 address: name one of" in capsys.readouterr().err


def test_hostfile_is_what_deepspeed_reads_and_pdsh_gets_no_secret(setting: Setting) -> None:
    """DeepSpeed itself runs, with a pdsh and an ssh that only note what they are told."""
    notes = setting.folder / "bin/notes"
    setting.fake("ssh", "exit 0")
    setting.fake("pdsh", f'printf "%s\\n" "$*" >> {notes}; env >> {notes}.env; exit 0')
    variables = {"NCCL_IB_HCA": "mlx5_0,mlx5_1"}
    cluster = setting.cluster("hostfile", ssh_port=2222, environment=variables)
    assert run(setting, cluster) == 1, "no rank ever ran: a good exit code of pdsh is not believed"
    check, training = notes.read_text().splitlines()
    assert "launcher/cluster/check.py" in check
    assert "-w 10.0.0.1,10.0.0.2" in training and "--master_addr=10.0.0.1 --master_port=29500" in training
    script = str(Path("launcher/train.py").name)
    assert re.search(
        rf"{script} --config {setting.launch}/config.yaml --watch 30 --watch-start 600", training
    )
    for variable in ("GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME==lo", "NCCL_IB_HCA=mlx5_0,mlx5_1"):
        assert f"export {variable};" in training.replace('"', "")
    assert SECRET not in training and SECRET not in Path(f"{notes}.env").read_text()
    assert SECRET not in setting.everything_written()


def test_ssh_starts_every_node_and_takes_over_the_worst_code(setting: Setting) -> None:
    notes = setting.folder / "bin/notes"
    setting.fake("ssh", f'echo "$*" >> {notes}; [[ "$*" == *10.0.0.2* ]] && exit 1; exit 0')
    assert run(setting, setting.cluster("hostfile", remote="ssh"), "--restarts", "3") == 1
    lines = sorted(notes.read_text().splitlines())
    assert len(lines) == 2
    for node, line in enumerate(lines):
        assert f"10.0.0.{node + 1} cd {Path.cwd()} && exec" in line
        assert line.endswith(f"--restarts 3 --node {node}")
    setting.fake("ssh", "exit 75")
    assert run(setting, setting.cluster("hostfile", remote="ssh")) == 75


def test_slurm_scripts(setting: Setting) -> None:
    setting.fake("sbatch", f'echo "$*" >> {setting.folder}/bin/notes; echo 41')
    cluster = slurm(setting, partition="gpu", account="lab", leave_seconds=90, cpus_per_rank=4)
    assert run(setting, cluster, "--restarts", "2") == 0
    submitted = Path(setting.folder / "bin/notes").read_text().splitlines()
    assert [line.split("/")[-1] for line in submitted] == ["inputs.sbatch", "train.sbatch", "rest.sbatch"]
    assert all("--dependency=afterok:41" in line for line in submitted[1:])
    options = {}
    for name in ("inputs", "train", "rest"):
        path = setting.launch / f"{name}.sbatch"
        subprocess.run(["bash", "-n", str(path)], check=True)
        lines = path.read_text().splitlines()
        assert lines[0].startswith("#!")
        body = next(number for number, line in enumerate(lines[1:], 1) if not line.startswith("#SBATCH"))
        found = [line for line in lines if line.startswith("#SBATCH")]
        assert lines[1:body] == found, "Slurm stops reading options at the first command"
        options[name] = {line.split(" --")[1] for line in found}
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=32"} <= options["train"]
    assert {"requeue", "signal=USR1@90", "partition=gpu", "account=lab"} <= options["train"]
    assert "nodes=1" in options["inputs"] and "nodes=1" in options["rest"]
    assert "--until instructions" in (setting.launch / "inputs.sbatch").read_text()
    assert SECRET not in setting.everything_written()


def test_a_job_set_with_a_pod_a_node(setting: Setting) -> None:
    setting.fake("kubectl", f'cp "${{@: -1}}" {setting.folder}/bin/applied')
    work = setting.folder / "laptop"
    work.mkdir()
    before = Path.cwd()
    os.chdir(work)
    try:
        assert run(setting, kubernetes(setting), "--restarts", "4") == 0
    finally:
        os.chdir(before)
    text = (setting.folder / "bin/applied").read_text()
    assert SECRET not in text
    settings, job_set = yaml.safe_load_all(text)
    assert yaml.safe_load(settings["data"]["config.yaml"])["name"] == "small"
    assert yaml.safe_load(settings["data"]["cluster.yaml"])["kind"] == "kubernetes"
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert job_set["spec"]["failurePolicy"] == {"maxRestarts": 4}
    (replicated,) = job_set["spec"]["replicatedJobs"]
    inner = replicated["template"]["spec"]
    assert (inner["completions"], inner["parallelism"], inner["completionMode"]) == (3, 3, "Indexed")
    spec = inner["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4, "memory": "512Gi"}
    assert container["envFrom"] == [{"secretRef": {"name": "recloom-tokens"}}]
    assert spec["terminationGracePeriodSeconds"] > 120
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]} == {"shared", "settings", "shm"}
    subprocess.run(["bash", "-n", "-c", container["command"][2]], check=True)
    master = f"{job_set['metadata']['name']}-node-0-0.{job_set['metadata']['name']}"
    assert container["command"][2].endswith(f'--node "$JOB_COMPLETION_INDEX" --master {master}')


def test_what_a_launch_wrote_can_be_launched(setting: Setting) -> None:
    assert run(setting, setting.cluster("per_node")) == 0
    written = {path.name: path for path in setting.launch.iterdir()}
    assert set(written) == {"config.yaml", "cluster.yaml", "hosts"}
    assert written["hosts"].read_text() == "10.0.0.1 slots=8\n10.0.0.2 slots=8\n"
    again = yaml.safe_load(written["cluster.yaml"].read_text())
    assert again["nodes"][0] == {"address": "10.0.0.1", "gpus": 8, "cpu_ranks": None}
    command = ["launch", str(written["config.yaml"]), "--cluster", str(written["cluster.yaml"]), "--dry-run"]
    assert main(command) == 0
