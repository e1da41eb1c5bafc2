"""Where the ranks meet: torch's store, listening on the configured interface only.

Left to itself torch listens on every interface of the machine, the outside one included.
"""

from __future__ import annotations

import os
from typing import Any


def open_rendezvous(world_size: int) -> Any:
    """Rank 0's store on the address of the launcher's interface; the caller keeps it as long as it trains.

    Told that the store exists already (torch calls this an agent's store), `init_process_group` joins it as
    one more client. Its listening socket is ours, so that its address is. None without an interface.
    """
    import torch.distributed as dist

    from recloom.launcher.cluster.address import interface_address, listen

    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    if interface is None or os.environ["RANK"] != "0" or world_size == 1:
        return None
    address, port = interface_address(interface), int(os.environ["MASTER_PORT"])
    listener = listen(address, port, backlog=4096)
    store = dist.TCPStore(
        address, port, world_size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return store
