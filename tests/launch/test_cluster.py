"""The batch script: read back by bash and by eye of the options it must hold."""

import json
import subprocess

import pytest

from alp_megatron.cli import main
from alp_megatron.errors import UserError
from alp_megatron.launch.cluster import load_cluster, render, seconds
from tests.support.batch_scripts import CPU, H100, QUICKSTART, bash_accepts, directives


def test_every_key_of_a_cluster_is_in_the_script(tmp_path):
    words = ["qos=high", "constraint=ib&h100", "modules=[cuda/13, gcc]", "processes_per_node=4"]
    script = render(load_cluster(H100, words), tmp_path / "run")
    found = directives(script)
    assert (
        found
        | {
            "partition": "gpu",
            "account": "research",
            "qos": "high",
            "constraint": "ib&h100",
            "nodes": "2",
            "gpus-per-node": "8",
            "cpus-per-task": "96",
            "time": "24:00:00",
            "signal": "B:USR1@1800",
            "requeue": "",
            "output": f"{tmp_path}/run/launch/logs/job-%j.log",
        }
        == found
    )
    assert "module load cuda/13\nmodule load gcc\n" in script
    assert "export NCCL_IB_HCA=mlx5\n" in script
    assert "--nnodes=2 --nproc-per-node=4" in script
    assert "--container-image=/shared/images/alp-megatron.sqsh" in script
    assert "/shared/data:/shared/data:ro" in script and bash_accepts(script)


def test_apptainer_and_no_requeue(tmp_path):
    words = ["gpus_per_node=1", "requeue=false"]
    words += ["container={runtime: apptainer, image: 'a b.sif', mounts: ['/data:/data:ro']}"]
    script = render(load_cluster(CPU, words), tmp_path)
    assert "apptainer exec --nv" in script and "--bind /data:/data:ro" in script
    assert "'a b.sif'" in script and bash_accepts(script)
    assert "no-requeue" in directives(script) and "scontrol requeue" not in script


def test_what_the_shell_would_read_is_quoted(tmp_path):
    """bash, given the script's own assignments, has exactly the values that were written."""
    evil = "$(touch pwned) `id` 'x' \"y\" ;&|\\ *"
    run_dir = tmp_path / "run $HOME 'one' %j"
    words = [f"environment.EVIL={json.dumps(evil)}", "environment.NUMBER=3"]
    script = render(load_cluster(CPU, words), run_dir)
    kept = [li for li in script.splitlines() if li.startswith(("run_dir=", "export "))]
    check = "\n".join([*kept, 'printf "%s\\n%s\\n%s" "$run_dir" "$EVIL" "$NUMBER"'])
    read = subprocess.run(["bash", "-c", check], capture_output=True, text=True, cwd=tmp_path)
    assert read.stdout.split("\n") == [str(run_dir), evil, "3"]
    assert not (tmp_path / "pwned").exists() and bash_accepts(script)
    assert "%%j/launch/logs/job-%j.log" in directives(script)["output"]


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b"])
def test_a_path_that_slurm_cannot_read_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="rename it"):
        render(load_cluster(CPU, []), tmp_path / name)


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("nodez=2", "Unknown key nodez: did you mean nodes."),
        ("nodes=0", "nodes is 0"),
        ("partition='a b'", "partition is 'a b'"),
        ("time_limit=90", "time_limit is 90"),
        ("time_limit='1:99:00'", "time_limit is '1:99:00'"),
        ("stop_before_end=3600", "stop_before_end=3600 is not less than time_limit=01:00:00"),
        ("environment.A-B=1", "environment.A-B is no name"),
        ("container.runtime=docker", "container.runtime is"),
        ("container={image: x, mounts: ['a:b']}", "container.mounts holds 'a:b'"),
    ],
)
def test_bad_clusters_are_one_sentence(override, sentence):
    with pytest.raises(UserError) as caught:
        load_cluster(CPU, [override])
    assert sentence in str(caught.value)


def test_more_processes_than_gpus():
    with pytest.raises(UserError, match="processes_per_node=9 is more than gpus_per_node=8"):
        load_cluster(H100, ["processes_per_node=9"])


def test_time_limits():
    assert seconds("00:00:59") == 59
    assert seconds("2-01:30:00") == (2 * 24 + 1) * 3600 + 1800


@pytest.mark.parametrize(
    "word, sentence",
    [
        ("runtime.world_size=3", "runtime.world_size=3, but the job has 2 processes"),
        ("cluster.nodes=3", "runtime.world_size=3 is not a multiple of the 2 processes"),
        ("cluster.nodez=3", "Unknown key nodez"),
        ("model.path=nowhere", "nowhere"),
    ],
)
def test_a_run_that_cannot_be_is_not_submitted(word, sentence, tmp_path, capsys):
    run_dir = tmp_path / "run"
    words = ["launch", "submit", QUICKSTART, "--cluster", CPU, f"run_dir={run_dir}", word]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err and not run_dir.exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    run_dir = tmp_path / "run"
    words = ["launch", "submit", QUICKSTART, "--cluster", CPU, f"run_dir={run_dir}", "--dry-run"]
    assert main(words) == 0
    assert bash_accepts(capsys.readouterr().out) and not run_dir.exists()


def test_a_dry_run_says_what_is_not_here(tmp_path, capsys):
    """Of the models on GPUs only config.json is in the repository; to submit one all is needed."""
    words = ["launch", "submit", "configs/models/qwen2.5-7b/8xh100.yaml", "--cluster", H100]
    words += ["cluster.nodes=1", f"run_dir={tmp_path}/run", "task.name=file"]
    words += ["task.train=configs/quickstart.yaml", "task.eval=nowhere.jsonl"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert bash_accepts(said.out)
    assert said.err.splitlines() == [
        "note: not checked, because not here: the weights of model.path=configs/models/qwen2.5-7b",
        "note: not checked, because not here: task.eval=nowhere.jsonl",
    ]
    assert main([*words, "--dry-run", "rollout.max_new_tokens=9000"]) == 2
    assert "rollout.max_new_tokens=9000 leaves no room" in capsys.readouterr().err
    assert main(words) == 2
    assert "model.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
