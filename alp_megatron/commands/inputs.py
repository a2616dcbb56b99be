"""What a command reads from elsewhere is checked before it makes anything."""

from alp_megatron.config.schema import Config


def check_inputs(config: Config) -> None:
    """Reads every line of the task's files, and asks the servers that are given.

    For a configuration that `validate` has accepted. Raises UserError naming file and line, or
    the server.
    """
    if config.task.name == "file":
        from alp_megatron.tasks.task import build_task

        build_task(config)
    if config.rollout.server_urls:
        from alp_megatron.rollout.server_check import check_server_urls

        check_server_urls(config)
